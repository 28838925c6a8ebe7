"""What is next, from disk alone."""

from dataclasses import dataclass
from typing import Literal

from andscale.config import MethodConfig
from andscale.errors import RunError, UsageError
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout

StepKind = Literal["index", "train", "evaluate"]


@dataclass(frozen=True)
class Step:
    """One job of a round."""

    kind: StepKind
    round_number: int

    def __str__(self) -> str:
        return f"{self.kind} round {self.round_number}"


def steps_of_round(round_number: int, method: MethodConfig) -> list[Step]:
    """The steps of a round in order; round 0 and methods without neighbourhoods have none to find."""
    kinds: tuple[StepKind, ...] = ("train", "evaluate")
    if round_number and method.finds_neighbours:
        kinds = ("index", *kinds)
    return [Step(kind, round_number) for kind in kinds]


def outputs(layout: RunLayout, step: Step) -> dict[str, str]:
    """The artefacts that a step publishes: name below the run -> kind."""
    prefix = f"rounds/{step.round_number:02d}"
    match step.kind:
        case "index":
            return {f"{prefix}/index": "index", f"{prefix}/neighbourhoods": "neighbourhoods"}
        case "train":
            return {f"{prefix}/model": "model", f"{prefix}/memory": "memory"}
        case "evaluate":
            return {f"{prefix}/evaluation": "evaluation"}


def prerequisites(step: Step) -> list[Step]:
    """The steps whose artefacts a step reads, where the method has them."""
    match step.kind:
        case "index":
            return [Step("train", step.round_number - 1)]
        case "train":
            before = [Step("train", step.round_number - 1), Step("index", step.round_number)]
            return before if step.round_number else []
        case "evaluate":
            return [Step("train", step.round_number)]


def is_done(layout: RunLayout, step: Step) -> bool:
    """Whether all artefacts of a step are complete and were made from what is there now.

    Raises:
        RunError: an artefact was made from another version of one that it depends on.
    """
    names = outputs(layout, step)
    if not all(artifacts.is_complete(layout.root / name) for name in names):
        return False
    for name, kind in names.items():
        for parent, digest in artifacts.load_manifest(layout.root / name, kind).provenance.parents.items():
            folder = layout.root / parent
            if not parent.startswith("rounds/") or not artifacts.is_complete(folder):
                continue
            if artifacts.load_manifest(folder, folder.name).digest != digest:
                raise RunError(
                    f"{layout.root / name} was made from another {parent} than the one that is there now: remove "
                    f"{layout.round(step.round_number).root} to make the round again"
                )
    return True


def next_round(layout: RunLayout, method: MethodConfig) -> int:
    """The first round that has a step to do."""
    number = 0
    while all(is_done(layout, step) for step in steps_of_round(number, method)):
        number += 1
    return number


def pending_steps(layout: RunLayout, rounds: range, method: MethodConfig) -> list[Step]:
    """The steps of these rounds that are not done, in order.

    Raises:
        UsageError: one of them needs a step that is neither done nor among them.
    """
    pending = [step for number in rounds for step in steps_of_round(number, method) if not is_done(layout, step)]
    for step in pending:
        for needed in prerequisites(step):
            has_it = needed in steps_of_round(needed.round_number, method)
            if not has_it or needed in pending or is_done(layout, needed):
                continue
            absent = [name for name in outputs(layout, needed) if not artifacts.is_complete(layout.root / name)]
            what = absent[-1].rpartition("/")[2]
            raise UsageError(f"round {needed.round_number} has no {what}: run --round {needed.round_number} first")
    return pending


def parse_rounds(text: str) -> range:
    """``"2"`` or ``"0-4"`` as a range that includes both ends; UsageError otherwise."""
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"--rounds {text!r} is not of the form A-B, for example 0-4")
    rounds = range(int(first), int(last or first) + 1)
    if not rounds:
        raise UsageError(f"--rounds {text!r} is empty: the first round comes first")
    return rounds
