"""Launching rounds: which run, which steps, where."""

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from andscale.config import MethodConfig, RunConfig
from andscale.config_file import apply_overrides, build_config, load_config
from andscale.errors import RunError, UsageError
from andscale.orchestration.follow import follow
from andscale.orchestration.founding import check_faiss, check_network, data_set_of, held_run
from andscale.orchestration.holding import Hold
from andscale.orchestration.records import read_job_record
from andscale.orchestration.repair import find_stale, find_unfit, move_aside, refuse_damage
from andscale.orchestration.steps import Step, is_done, next_round, pending_steps, prerequisites, steps_of_round
from andscale.spelling import spelt
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run, refuse_foreign, refuse_other_config

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
    follow: bool = False
    rebuild: bool = False


def launch(request: LaunchRequest) -> None:
    """Bring the asked rounds to completion on this machine, or submit them to Slurm and return.

    Raises:
        UsageError: the request cannot be met as it stands. RunError: a step failed, or Slurm does not answer.
    """
    if request.cluster not in CLUSTERS:
        raise UsageError(f"--cluster {request.cluster!r}: choose one of {', '.join(CLUSTERS)}")
    root = run_root(request)
    config = open_run(root, request)
    layout = RunLayout(root)
    rounds = _rounds(request, layout, config.method)
    if request.dry_run:
        # the scripts of a Slurm that was asked for can be shown where none answers
        cluster = request.cluster if request.cluster == "slurm" else choose_cluster(request.cluster)
        print(describe_plan(layout, _to_do(layout, rounds, config, request.rebuild), config, cluster))
        return
    if not request.rebuild and not _to_do(layout, rounds, config):
        _report(layout, rounds)
        return
    cluster = choose_cluster(request.cluster)
    if cluster == "local":
        _refuse_many_nodes(config)
    look = find_unfit
    while True:
        with held_run(root, config) as hold:
            if request.rebuild:
                for step, why in look(layout, rounds, config.method).items():
                    move_aside(layout, step, why)
            _act(layout, rounds, config, cluster, hold)
        if cluster == "slurm" and not request.follow:
            _say_submitted(layout, request)
            return
        if cluster == "slurm":
            follow(root, rounds, accept_stale=request.rebuild)
        # what was made again may differ from what its successors were made from
        look = find_stale
        if not request.rebuild or not look(layout, rounds, config.method):
            break
    _report(layout, rounds)


def _refuse_many_nodes(config: RunConfig) -> None:
    """Raise UsageError when a kind of job is to have more nodes than this machine alone."""
    several = [
        setting
        for kind, setting in (("train", "num_nodes"), ("index", "index_num_nodes"), ("evaluate", "evaluate_num_nodes"))
        if config.resources.job_size(kind)[0] > 1
    ]
    if several:
        raise UsageError(f"resources.{several[0]} is above 1: a run on this machine alone has one node")


def run_root(request: LaunchRequest) -> Path:
    """The folder of the run that a request is for.

    Raises:
        UsageError: none is named and there is none, or its path has a character that logs' paths cannot have.
    """
    root = request.run or _default_run(request.config)
    if {"%", "\n"} & set(str(root.resolve())):
        # submitit and Slurm replace %j, %t and the like anywhere in a log's path
        raise UsageError(f"{root.resolve()}: the path of a run cannot have '%' or a line break in it")
    return root


def open_run(root: Path, request: LaunchRequest) -> RunConfig:
    """The config of this launch: the run's recorded one with this launch's resources and reading, or a new run's.

    Raises:
        UsageError: no run and no --config, a foreign folder, or a config that differs from the run's.
    """
    if not RunLayout(root).record.exists():
        if request.config is None:
            load_run(root)  # says what is wrong with the folder
        assert request.config is not None
        refuse_foreign(root)
        config = load_config(request.config, list(request.overrides))
        data_set_of(config)
        check_network(config)
        check_faiss()
        return config
    record = load_run(root)
    if request.config is not None:
        given = load_config(request.config, list(request.overrides))
    else:
        values = apply_overrides(record.config.model_dump(mode="json"), list(request.overrides))
        given = build_config(values, "--set")
    refuse_other_config(root, record.config, given)
    return given


def choose_cluster(asked: str) -> str:
    """``slurm`` or ``local``; ``auto`` takes Slurm only when a controller answers."""
    if asked == "local":
        return asked
    from andscale.orchestration.slurm_queue import controller_answers

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
            script = sbatch_script(layout, step, config, ids)
            lines += ["    " + line for line in script.splitlines()]
    return "\n".join(lines)


def resolve_run(run: Path | None) -> Path:
    """The run that a command means: the one named, else the only or newest below ``runs/``.

    Raises:
        UsageError: there is none.
    """
    if run is not None:
        return run
    found = sorted(RUNS.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"there is no run below {RUNS}/: start one with {spelt('launch')} --config, or name --run")
    if len(found) > 1:
        print(f"the newest run: {found[-1].parent}", file=sys.stderr)
    return found[-1].parent


def _to_do(layout: RunLayout, rounds: range, config: RunConfig, rebuild: bool = False) -> list[Step]:
    """The steps that are not done; damage is refused, or counts as not done with ``rebuild``."""
    if rebuild:
        unfit = find_unfit(layout, rounds, config.method)
        for step, why in unfit.items():
            print(f"{step} would be moved aside and made again: {why}")
        return pending_steps(layout, rounds, config.method, frozenset(unfit))
    refuse_damage(layout, range(max(0, rounds.start - 1), rounds.stop), config.method)
    return pending_steps(layout, rounds, config.method)


def _rounds(request: LaunchRequest, layout: RunLayout, method: MethodConfig) -> range:
    """The rounds asked for; with nothing asked for, the next one, or the last one when there are no more; to be
    rebuilt, all that have been launched.
    """
    rounds = request.rounds
    if rounds is None and request.rebuild:
        rounds = range(max(layout.round_numbers(), default=0) + 1)
    elif rounds is None:
        refuse_damage(layout, range(method.last_round + 1), method)
        first = min(next_round(layout, method), method.last_round)
        rounds = range(first, first + 1)
    if rounds.stop - 1 <= method.last_round:
        return rounds
    if method.name == "random":
        raise UsageError(f"method.name = random has no round {rounds.stop - 1}: there is nothing to train")
    raise UsageError(
        f"round {rounds.stop - 1} is outside the curriculum: method.num_rounds = {method.num_rounds}, "
        f"rounds 0 to {method.num_rounds}"
    )


def _default_run(config: Path | None) -> Path:
    return resolve_run(None) if config is None else RUNS / config.stem


def _act(layout: RunLayout, rounds: range, config: RunConfig, cluster: str, hold: Hold) -> None:
    steps = [step for number in rounds for step in steps_of_round(number, config.method)]
    for step in steps:
        _refuse_job_elsewhere(layout, step, cluster)
    if cluster == "slurm":
        from andscale.orchestration.slurm import submit_chain
        from andscale.orchestration.slurm_queue import settled_jobs

        queued = settled_jobs(layout, steps)
        submit_chain(layout, pending_steps(layout, rounds, config.method), config, queued, hold)
    else:
        from andscale.orchestration.local import run_steps

        run_steps(layout, pending_steps(layout, rounds, config.method), config)


def _refuse_job_elsewhere(layout: RunLayout, step: Step, cluster: str) -> None:
    """Raise RunError when the step's last job may live where this launch would not see it."""
    if cluster == "slurm":
        from andscale.orchestration.local import find_live_job

        job = find_live_job(layout, step)
        if job is not None:
            raise RunError(f"{step} runs on this machine (process {job.pid}): launch with --cluster local")
    record = read_job_record(layout, step)
    if record is None or is_done(layout, step):
        return
    path = layout.round(step.round_number).job_record(step.kind)
    if record.cluster == "local" and record.host != socket.gethostname():
        raise RunError(f"{step} was started on {record.host} and may still run: launch there, or remove {path}")
    if record.cluster == "slurm" and cluster == "local":
        from andscale.orchestration.slurm_queue import controller_answers, queued_jobs

        if not controller_answers() or queued_jobs(layout, [step]):
            raise RunError(
                f"{step} may still be Slurm job {record.job_id}: launch with --cluster slurm, or cancel it and remove "
                f"{path}"
            )


def _say_submitted(layout: RunLayout, request: LaunchRequest) -> None:
    print(f"submitted; logs below {layout.rounds}; {spelt('status')} --run {layout.root} --follow shows it live")
    if request.rebuild:
        print("when that is done, launch with --rebuild again: what was made from another version is made again then")


def _report(layout: RunLayout, rounds: range) -> None:
    from andscale.audit.tables import run_table

    print(f"\n{layout.root}")
    print(run_table(layout.root))
    for number in rounds:
        print(f"round {number} is complete")
