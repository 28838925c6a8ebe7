# ruff: noqa: D301, PLR0913, PLR0917 - typer takes options from arguments, and paragraphs from backslash-b
"""The command that reproduces a table; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from andscale.errors import UsageError


def reproduce_table(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="table1 to table6, figure4 to figure7, n_ep, fashion_mnist.")
    ],
    scale: Annotated[str, typer.Option("--scale", help="full, or smoke: minutes on a CPU, on stand-ins.")] = "full",
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="3 by default; 1 for smoke.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("reproduced"),
    cluster: Annotated[str, typer.Option("--cluster", help="auto, slurm or local.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting of every run; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List runs and shared rounds, start nothing.")] = False,
) -> None:
    """Run what a table of the paper needs and write it with the published numbers beside.

    Runs that start alike train round 0 once, and tables share runs, below runs/reproduce/. Stopped or killed, the same
    command goes on. On Slurm it submits what it can and says what waits. Results come when all runs are complete.

    \b
    Example: python tools/reproduce.py table6 --scale smoke
    """
    from andscale.reproduction.plan import SCALES, Plan, describe_plan
    from andscale.reproduction.results import write_results
    from andscale.reproduction.runs import run_all
    from andscale.reproduction.tables import table_named

    if scale not in SCALES:
        raise UsageError(f"--scale {scale!r}: choose one of {', '.join(SCALES)}")
    number = seeds or (1 if scale == "smoke" else 3)
    plan = Plan(table_named(table), scale, number, tuple(overrides or ()), cluster)
    if dry_run:
        print(describe_plan(plan))
        return
    missing = run_all(plan)
    if missing:
        print(f"no table yet: {len(missing)} runs are not complete; the same command goes on:")
        print("\n".join(f"  {run.arm.label}, seed {run.seed}: {run.root}" for run in missing))
        return
    words = [f"--scale {scale}", f"--seeds {number}", *(f"--set {setting}" for setting in overrides or ())]
    for path in write_results(plan, out, f"python tools/reproduce.py {table} {' '.join(words)}"):
        print(f"wrote {path}")
