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


def has_all_outputs(layout: RunLayout, step: Step) -> bool:
    """Whether all artefacts of a step are there, made from whatever they were made from."""
    return all(artifacts.is_complete(layout.root / name) for name in outputs(layout, step))


def stale_parent(layout: RunLayout, step: Step) -> str | None:
    """The first artefact that a step's own were made from in another version than the one that is there now."""
    for name, kind in outputs(layout, step).items():
        if not artifacts.is_complete(layout.root / name):
            continue
        for parent, digest in artifacts.load_manifest(layout.root / name, kind).provenance.parents.items():
            folder = layout.root / parent
            if not parent.startswith("rounds/") or not artifacts.is_complete(folder):
                continue
            if artifacts.load_manifest(folder, folder.name).digest != digest:
                return parent
    return None


def damage(layout: RunLayout, step: Step, *, by_hash: bool = False) -> str | None:
    """What is wrong with the artefacts of a step that are there, in one line: files that are missing or of another
    size, and with ``by_hash`` of another content.
    """
    for name, kind in outputs(layout, step).items():
        folder = layout.root / name
        if not folder.exists():
            continue
        try:
            manifest = artifacts.load_manifest(folder, kind)
            for record in manifest.files:
                artifacts.check_size(folder / record.name, record.bytes)
            if by_hash:
                artifacts.verify(folder, kind)
        except RunError as error:
            return str(error)
    return None


def is_done(layout: RunLayout, step: Step) -> bool:
    """Whether all artefacts of a step are complete and were made from what is there now.

    Raises:
        RunError: an artefact was made from another version of one that it depends on.
    """
    if not has_all_outputs(layout, step):
        return False
    parent = stale_parent(layout, step)
    if parent is not None:
        raise RunError(
            f"{step} of {layout.root} was made from another {parent} than the one that is there now: launch with "
            "--rebuild to make it again"
        )
    return True


def next_round(layout: RunLayout, method: MethodConfig) -> int:
    """The first round that has a step to do."""
    number = 0
    while all(is_done(layout, step) for step in steps_of_round(number, method)):
        number += 1
    return number


def pending_steps(
    layout: RunLayout, rounds: range, method: MethodConfig, absent: frozenset[Step] = frozenset()
) -> list[Step]:
    """The steps of these rounds that are not done, in order; those of ``absent`` count as not done.

    Raises:
        UsageError: one of them needs a step that is neither done nor among them.
    """
    steps = [step for number in rounds for step in steps_of_round(number, method)]
    pending = [step for step in steps if step in absent or not is_done(layout, step)]
    for step in pending:
        for needed in prerequisites(step):
            has_it = needed in steps_of_round(needed.round_number, method)
            if not has_it or needed in pending or is_done(layout, needed):
                continue
            missing = [name for name in outputs(layout, needed) if not artifacts.is_complete(layout.root / name)]
            what = missing[-1].rpartition("/")[2]
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
