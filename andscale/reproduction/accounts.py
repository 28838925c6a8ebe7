"""What a table's runs took: seconds of their ranks, and the commits and numbers of ranks that trained them."""

from collections.abc import Iterable, Mapping
from typing import Any

from andscale.config_resources import ResourcesConfig
from andscale.orchestration.steps import Step, outputs, steps_of_round
from andscale.reproduction.plan import PlannedRun
from andscale.store.artifacts import Manifest, load_manifest
from andscale.store.run_layout import RunLayout


def manifests(run: PlannedRun) -> list[Manifest]:
    """Of all that a run's figures come from: its rounds, and the round 0 that it took over.

    Raises:
        RunError: one is missing or damaged.
    """
    return [made for step in _steps(run) for made in _made(run, step)]


def rank_seconds(runs: Iterable[PlannedRun]) -> float:
    """Seconds of every step of the runs times its ranks; what rows share counts once, for whoever did it.

    A step's artefacts are timed from its start, so the longest counts; of a job that went on, its last attempt.
    """
    spent: dict[tuple[str, Step], float] = {}
    for run in runs:
        for step in _steps(run):
            made = _made(run, step)
            ranks = max(m.figures.get("world_size", _ranks(run.config.resources, step.kind)) for m in made)
            origins = [m.figures.get("adopted_from", {"run": run.root.name, "seconds": m.seconds}) for m in made]
            spent[origins[0]["run"], step] = ranks * max(origin["seconds"] for origin in origins)
    return sum(spent.values())


def commits(runs: Iterable[PlannedRun]) -> list[str]:
    """Of the code that wrote the runs' artefacts, and that trained what they took over; ``unknown`` where none is."""
    made = [manifest for run in runs for manifest in manifests(run)]
    trained = [m.figures["adopted_from"].get("commit") for m in made if "adopted_from" in m.figures]
    return sorted({commit or "unknown" for commit in [*(m.commit for m in made), *trained]})


def trained_round_0(run: PlannedRun) -> str | None:
    """The run that trained the round 0 that this one took over; None where it trained its own."""
    taken: Mapping[str, Any] = _made(run, Step("train", 0))[0].figures.get("adopted_from", {})
    return taken.get("run")


def training_ranks(run: PlannedRun) -> list[int]:
    """The numbers of ranks that trained a run, each once: [1], or [1, 2] where it changed from round to round."""
    made = [manifest for step in _steps(run) if step.kind == "train" for manifest in _made(run, step)]
    return sorted({m.figures["world_size"] for m in made})


def _steps(run: PlannedRun) -> list[Step]:
    steps = [step for number in run.rounds for step in steps_of_round(number, run.config.method)]
    return steps if run.donor is None else [Step("train", 0), *steps]


def _made(run: PlannedRun, step: Step) -> list[Manifest]:
    layout = RunLayout(run.root)
    return [load_manifest(layout.root / name, kind) for name, kind in outputs(layout, step).items()]


def _ranks(resources: ResourcesConfig, kind: str) -> int:
    nodes, tasks = resources.job_size(kind)
    return nodes * tasks
