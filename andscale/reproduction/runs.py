"""A table's runs launched in order; what is not done goes on, what is shared is trained once."""

from dataclasses import replace
from pathlib import Path

from andscale.data.shards import open_dataset
from andscale.errors import RunError, UsageError
from andscale.orchestration.launch import choose_cluster, launch
from andscale.orchestration.records import read_job_record
from andscale.orchestration.sharing import adopt_initialisation, has_begun_round_0, initialisation_digest
from andscale.orchestration.slurm_queue import queued_jobs
from andscale.orchestration.steps import Step, has_all_outputs, is_done, steps_of_round
from andscale.reproduction.plan import Plan, PlannedRun, planned_runs, unprepared
from andscale.spelling import spelt
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run

_ROUND_0 = Step("train", 0)


def run_all(plan: Plan) -> list[PlannedRun]:
    """Launch what is not done, one run after the other; the same call goes on after any stop.

    Returns:
        The runs that are not complete, which on Slurm are those that wait.

    Raises:
        UsageError: a data set is not prepared, or not the one that a run was made from; nothing was started.
        RunError: runs failed, and the others went on; or Slurm was asked for and does not answer.
    """
    runs = planned_runs(plan)
    if plan.scale == "smoke":
        _prepare_stand_ins(runs)
    refuse_unprepared(runs)
    refuse_other_data(runs)
    if plan.cluster == "slurm":
        choose_cluster(plan.cluster)  # or every run would fail of it, one after the other
    failed: list[Path] = []
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run.arm.label}, seed {run.seed}: {run.root}", flush=True)
        try:
            if run.root not in failed and not is_complete(run):
                _launch(run, plan)
        except RunError as error:
            print(f"failed: {error}", flush=True)
            failed.append(run.root)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs failed, so there is no table: {', '.join(map(str, failed))}; the same "
            "command tries them again"
        )
    return [run for run in runs if not is_complete(run)]


def is_complete(run: PlannedRun) -> bool:
    """Whether every step of its rounds is done."""
    layout, method = RunLayout(run.root), run.config.method
    return all(is_done(layout, step) for number in run.rounds for step in steps_of_round(number, method))


def refuse_unprepared(runs: list[PlannedRun]) -> None:
    """Raise UsageError with the commands where a data set is not prepared."""
    absent = unprepared(runs)
    if absent:
        needs_folder = ("imagenet", "cub200", "dogs")
        commands = [
            f"python {spelt('prepare')} {Path(p).name} {'FOLDER ' if Path(p).name in needs_folder else ''}{p}"
            for p in absent
        ]
        raise UsageError(f"not prepared: {', '.join(absent)}; run {'; '.join(commands)}")


def refuse_other_data(runs: list[PlannedRun]) -> None:
    """Raise UsageError where a run was made from another version of its data set than the one that is there now."""
    for run in runs:
        if not RunLayout(run.root).record.exists():
            continue
        if _fingerprint(run) not in (None, load_run(run.root).dataset_fingerprint):
            raise UsageError(
                f"{run.root}: made from another version of {run.config.data.dataset} than the one that is there now: "
                f"prepare that version again, or move the run away from {run.root.parent} to make it anew"
            )


def _launch(run: PlannedRun, plan: Plan) -> None:
    """Launch what is not done of a run, after it took over round 0 where it can; or say what it waits for."""
    request = run.request
    whole = replace(request, rounds=range(run.config.method.last_round + 1))
    if not _has_round_0(run.root):
        donor = _trained_donor(run, plan.root)
        if donor is not None:
            if not adopt_initialisation(donor, request):
                request = whole  # it has begun its own
        elif has_begun_round_0(run.root):
            request = whole
        elif (awaited := run.donor or _in_training(run, plan)) is not None:
            print(f"waits for round 0 of {awaited}: the same command goes on when that is trained", flush=True)
            return
    launch(request)


def _trained_donor(run: PlannedRun, folder: Path) -> Path | None:
    """A run that has trained the round 0 of this one: the plan's donor, or one of another table."""
    if run.donor is not None and _has_round_0(run.donor):
        return run.donor
    return next((root for root in _alike(run, folder) if _has_round_0(root)), None)


def _in_training(run: PlannedRun, plan: Plan) -> Path | None:
    """A run of another table that trains the round 0 of this one on Slurm now, or whose job waits to."""
    for root in _alike(run, plan.root):
        record = read_job_record(RunLayout(root), _ROUND_0)
        if record is None or record.cluster != "slurm" or plan.cluster == "local":
            continue
        if choose_cluster(plan.cluster) != "slurm":
            return None
        jobs = queued_jobs(RunLayout(root), [_ROUND_0])
        # what has failed, or waits for somebody to release it, must not keep others
        if any(not job.never_starts and not job.is_held_after_a_failed_start for job in jobs):
            return root
    return None


def _alike(run: PlannedRun, folder: Path) -> list[Path]:
    """The other runs below a folder that have, or will have, the same round 0: they start alike, from the same data."""
    key, fingerprint = initialisation_digest(run.config), _fingerprint(run)
    found = []
    for path in sorted(folder.glob("*/run.json")):
        record = load_run(path.parent)
        same_data = fingerprint in (None, record.dataset_fingerprint)
        if path.parent != run.root and same_data and initialisation_digest(record.config) == key:
            found.append(path.parent)
    return found


def _fingerprint(run: PlannedRun) -> str | None:
    """Of a run's data set as it is now; None for one on a server, which is not asked: every job looks for itself."""
    place = run.config.data.dataset
    return None if "://" in place else open_dataset(Path(place)).fingerprint


def _has_round_0(root: Path) -> bool:
    return has_all_outputs(RunLayout(root), _ROUND_0)


def _prepare_stand_ins(runs: list[PlannedRun]) -> None:
    from andscale.data.prepare import PrepareOptions, prepare

    for place in unprepared(runs):
        prepare(Path(place).name, None, Path(place), PrepareOptions())
