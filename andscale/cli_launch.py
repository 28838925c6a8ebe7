# ruff: noqa: D301, PLR0913, PLR0917 - typer takes options from arguments, and paragraphs from backslash-b
"""The commands that start, show and end runs; what they need is imported when they run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from andscale.errors import UsageError

RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run folder; the only or newest one below runs/ by default.")
]


def launch_round(
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="One round.")] = None,
    rounds: Annotated[str | None, typer.Option("--rounds", metavar="A-B", help="Rounds A to B.")] = None,
    run: RunOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file, or a name of configs/; needed to start a run.")
    ] = None,
    cluster: Annotated[
        str,
        typer.Option("--cluster", help="auto, slurm or local; auto takes Slurm when a controller answers."),
    ] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="and, or a baseline: instance, deepcluster, nat, supervised, random"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps and scripts, do nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show the jobs on Slurm live.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Check every hash of the rounds; make again what is damaged or stale.")
    ] = False,
) -> None:
    """Run rounds: index, train, evaluate. Launching again is safe: what is done is skipped, what runs is found.

    Without --round or --rounds, the next round. The run's name is the config's. On Slurm the whole chain is submitted
    in one go; Ctrl-C leaves --follow, and the jobs go on.

    \b
    Example: python jobs/launch_round.py --rounds 0-2 --config configs/fashion_mnist_demo.toml
    """
    from andscale.config_file import find_config
    from andscale.orchestration.launch import LaunchRequest, launch
    from andscale.orchestration.steps import parse_rounds

    if round_number is not None and rounds is not None:
        raise UsageError("--round and --rounds exclude each other")
    asked = parse_rounds(rounds) if rounds is not None else None
    if round_number is not None:
        asked = range(round_number, round_number + 1)
    if config is not None and (found := find_config(config)) != config:
        print(f"config: {found}", file=sys.stderr)
        config = found
    settings = (*(overrides or ()), *([f"method.name={method}"] if method is not None else []))
    launch(LaunchRequest(run, asked, config, settings, cluster, dry_run, follow, rebuild))


def show_status(
    run: RunOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show it live.")] = False,
) -> None:
    """Show where every step of a run stands, and why; writes nothing, needs no Slurm.

    \b
    Example: andscale status --run runs/fashion_mnist_demo
    """
    import json

    from andscale.orchestration.follow import follow as follow_run
    from andscale.orchestration.launch import resolve_run
    from andscale.orchestration.status import run_status
    from andscale.orchestration.status_table import status_table

    if follow and as_json:
        raise UsageError("--json and --follow exclude each other")
    root = resolve_run(run)
    if follow:
        follow_run(root)
        return
    status = run_status(root)
    print(json.dumps(status.record(), indent=2) if as_json else status_table(status))


def cancel_run(run: RunOption = None) -> None:
    """Cancel a run's jobs, on Slurm or on this machine, and wait until they are gone. What is done stays.

    \b
    Example: andscale cancel --run runs/fashion_mnist_demo
    """
    from andscale.orchestration.cancel import cancel_run as cancel
    from andscale.orchestration.launch import resolve_run

    root = resolve_run(run)
    print("\n".join(cancel(root)) or f"nothing of {root} waits or runs")
