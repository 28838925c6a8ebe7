"""Launching rounds: which run, which steps, where."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from andscale.config import RunConfig, apply_overrides, build_config, load_config
from andscale.errors import RunError, UsageError
from andscale.orchestration.steps import Step, next_round, pending_steps, prerequisites
from andscale.store.artifacts import check_writable
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import RunRecord, create_run, load_run, refuse_other_config

RUNS = Path("runs")
CLUSTERS = ("auto", "slurm", "local")


@dataclass(frozen=True)
class LaunchRequest:
    """What the user asked for; None where nothing was said."""

    run: Path | None = None
    rounds: range | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    cluster: str = "auto"
    dry_run: bool = False


def launch(request: LaunchRequest) -> None:
    """Bring the asked rounds to completion on this machine, or submit them to Slurm and return.

    Raises:
        UsageError: the request cannot be met as it stands. RunError: a step failed, or Slurm does not answer.
    """
    if request.cluster not in CLUSTERS:
        raise UsageError(f"--cluster {request.cluster!r}: choose one of {', '.join(CLUSTERS)}")
    root = request.run or _default_run(request.config)
    record, config = open_run(root, request)
    layout = RunLayout(root)
    first = next_round(layout)
    # with nothing asked for: the next round, or the last one when the curriculum is at its end
    rounds = request.rounds or range(min(first, config.method.num_rounds), min(first, config.method.num_rounds) + 1)
    if rounds.stop - 1 > config.method.num_rounds:
        raise UsageError(
            f"round {rounds.stop - 1} is outside the curriculum: method.num_rounds = {config.method.num_rounds}, "
            f"rounds 0 to {config.method.num_rounds}"
        )
    steps = pending_steps(layout, rounds)
    cluster = choose_cluster(request.cluster) if steps else "none"
    if request.dry_run:
        print(describe_plan(layout, steps, config, cluster))
        return
    if steps:
        if record is None:
            create_run(root, config, *_data_set(config))
        check_writable(root)
        with hold_run(layout):
            _act(layout, pending_steps(layout, rounds), config, cluster)
    if cluster != "slurm":
        _report(layout, rounds)


def open_run(root: Path, request: LaunchRequest) -> tuple[RunRecord | None, RunConfig]:
    """The run's record (None when it is to be started) and the config of this launch.

    The config is the recorded one, with this launch's ``[resources]``.

    Raises:
        UsageError: no run and no --config, a foreign folder, or a config that differs from the run's.
    """
    if not RunLayout(root).record.exists():
        if request.config is None:
            load_run(root)  # says what is wrong with the folder
        assert request.config is not None
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(f"{root} exists and is not a run (no run.json in it): choose another --run")
        config = load_config(request.config, list(request.overrides))
        _data_set(config)
        return None, config
    record = load_run(root)
    if request.config is not None:
        given = load_config(request.config, list(request.overrides))
    else:
        values = apply_overrides(record.config.model_dump(mode="json"), list(request.overrides))
        given = build_config(values, "--set")
    refuse_other_config(root, record.config, given)
    return record, given


def choose_cluster(asked: str) -> str:
    """``slurm`` or ``local``; ``auto`` takes Slurm only when a controller answers."""
    if asked == "local":
        return asked
    from andscale.orchestration.slurm import controller_answers

    if controller_answers():
        return "slurm"
    if asked == "slurm":
        raise RunError("no Slurm controller answers here (scontrol ping): mend that, or launch with --cluster local")
    return "local"


def describe_plan(layout: RunLayout, steps: list[Step], config: RunConfig, cluster: str) -> str:
    """What a launch would do: the steps, and on Slurm their scripts."""
    if not steps:
        return f"{layout.root}: nothing to do"
    lines = [f"{layout.root}: {len(steps)} steps on {'Slurm' if cluster == 'slurm' else 'this machine'}"]
    for step in steps:
        after = [str(needed) for needed in prerequisites(step) if needed in steps]
        lines.append(f"  {step}" + (f", after {', '.join(after)}" if after else ""))
        if cluster == "slurm":
            from andscale.orchestration.slurm import sbatch_script

            ids = [f"<{needed}>" for needed in prerequisites(step) if needed in steps]
            script = sbatch_script(layout, step, config.resources, ids)
            lines += ["    " + line for line in script.splitlines()]
    return "\n".join(lines)


@contextlib.contextmanager
def hold_run(layout: RunLayout) -> Iterator[None]:
    """Hold the run for one launcher; the lock goes with the process, however it ends.

    Raises:
        RunError: another launcher holds it; the text says who, where and since when.
    """
    path = layout.root / "launcher.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{layout.root} is held by another launcher: {_holder(file)}") from None
        except OSError as error:
            print(f"warning: no lock on {path} ({error.strerror}): launch from one place only", file=sys.stderr)
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}, file)
        file.flush()
        yield


def resolve_run(run: Path | None) -> Path:
    """The run that a command means: the one named, else the only or newest below ``runs/``.

    Raises:
        UsageError: there is none.
    """
    if run is not None:
        return run
    found = sorted(RUNS.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"there is no run below {RUNS}/: start one with jobs/launch_round.py --config, or name --run")
    if len(found) > 1:
        print(f"the newest run: {found[-1].parent}", file=sys.stderr)
    return found[-1].parent


def _default_run(config: Path | None) -> Path:
    return resolve_run(None) if config is None else RUNS / config.stem


def _data_set(config: RunConfig) -> tuple[Path, str]:
    """The prepared data set's folder and fingerprint; raises UsageError when it is not one."""
    from andscale.data.shards import open_dataset

    root = Path(config.data.dataset)
    return root, open_dataset(root).fingerprint


def _act(layout: RunLayout, steps: list[Step], config: RunConfig, cluster: str) -> None:
    if cluster == "slurm":
        from andscale.orchestration.slurm import submit_chain

        submit_chain(layout, steps, config.resources)
        print(f"submitted; logs below {layout.rounds}; launch again to see what is done")
    else:
        from andscale.orchestration.local import run_steps

        run_steps(layout, steps, config.resources)


def _report(layout: RunLayout, rounds: range) -> None:
    from andscale.audit.tables import run_table

    print(f"\n{layout.root}")
    print(run_table(layout.root))
    for number in rounds:
        print(f"round {number} is complete")


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):
        return "it has not said who it is yet"
