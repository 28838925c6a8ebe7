"""A table's runs launched in order; what is not done goes on, what is shared is trained once."""

from dataclasses import replace
from pathlib import Path

from andscale.errors import UsageError
from andscale.orchestration.launch import launch
from andscale.orchestration.sharing import adopt_initialisation, initialisation_digest
from andscale.orchestration.steps import is_done, steps_of_round
from andscale.reproduction.plan import Plan, PlannedRun, planned_runs
from andscale.spelling import spelt
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run


def run_all(plan: Plan) -> list[PlannedRun]:
    """Launch what is not done, one run after the other; the same call goes on after any stop.

    Returns:
        The runs that are not complete, which on Slurm are those that wait.

    Raises:
        UsageError: a data set is not prepared; nothing was started.
    """
    runs = planned_runs(plan)
    if plan.scale == "smoke":
        _prepare_stand_ins(runs)
    refuse_unprepared(runs)
    for number, run in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {run.arm.label}, seed {run.seed}: {run.root}", flush=True)
        if is_complete(run):
            continue
        donor = _trained_donor(run, plan.root)
        request = run.request
        if donor is not None:
            if not adopt_initialisation(donor, request) and not _has_round_0(run.root):
                request = replace(request, rounds=range(run.config.method.last_round + 1))  # it has begun its own
        elif run.donor is not None and not run.root.exists():
            print(f"waits for round 0 of {run.donor}: the same command goes on when that is trained")
            continue
        launch(request)
    return [run for run in runs if not is_complete(run)]


def is_complete(run: PlannedRun) -> bool:
    """Whether every step of its rounds is done."""
    layout, method = RunLayout(run.root), run.config.method
    return all(is_done(layout, step) for number in run.rounds for step in steps_of_round(number, method))


def refuse_unprepared(runs: list[PlannedRun]) -> None:
    """Raise UsageError with the commands where a data set is not prepared."""
    places = sorted({run.config.data.dataset for run in runs})
    absent = [p for p in places if "://" not in p and not (Path(p) / "dataset.json").exists()]
    if absent:
        needs_folder = ("imagenet", "cub200", "dogs")
        commands = [
            f"python {spelt('prepare')} {Path(p).name} {'FOLDER ' if Path(p).name in needs_folder else ''}{p}"
            for p in absent
        ]
        raise UsageError(f"not prepared: {', '.join(absent)}; run {'; '.join(commands)}")


def _trained_donor(run: PlannedRun, folder: Path) -> Path | None:
    """A run that has trained the round 0 of this one: the plan's donor, or one of another table."""
    if run.donor is not None and _has_round_0(run.donor):
        return run.donor
    key = initialisation_digest(run.config)
    others = [path.parent for path in sorted(folder.glob("*/run.json")) if path.parent != run.root]
    alike = [root for root in others if _has_round_0(root) and initialisation_digest(load_run(root).config) == key]
    return alike[0] if alike else None


def _has_round_0(root: Path) -> bool:
    layout = RunLayout(root)
    return (layout.round(0).model / "manifest.json").exists() and (layout.round(0).memory / "manifest.json").exists()


def _prepare_stand_ins(runs: list[PlannedRun]) -> None:
    from andscale.data.prepare import PrepareOptions, prepare

    for place in sorted({run.config.data.dataset for run in runs}):
        if not (Path(place) / "dataset.json").exists():
            prepare(Path(place).name, None, Path(place), PrepareOptions())
