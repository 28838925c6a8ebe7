"""What is damaged or stale is named and, where the user says so, moved aside and made again."""

import secrets

from andscale.config import MethodConfig
from andscale.errors import RunError
from andscale.orchestration.steps import Step, damage, outputs, stale_parent, steps_of_round
from andscale.store.files import fsync_path
from andscale.store.run_layout import RunLayout


def refuse_damage(layout: RunLayout, rounds: range, method: MethodConfig) -> None:
    """Raise RunError when a file of these rounds is missing or has another size than its record says.

    Contents are left to the jobs that read them, which check every hash.
    """
    for number in rounds:
        for step in steps_of_round(number, method):
            what = damage(layout, step)
            if what is not None:
                raise RunError(f"{what}: launch round {number} with --rebuild to move it aside and make it again")


def find_unfit(layout: RunLayout, rounds: range, method: MethodConfig) -> dict[Step, str]:
    """The steps of these rounds whose artefacts are damaged, by every hash, or stale -> what is wrong."""
    steps = [step for number in rounds for step in steps_of_round(number, method)]
    found = {step: damage(layout, step, by_hash=True) for step in steps}
    damaged = {step: what for step, what in found.items() if what is not None}
    # a damaged manifest cannot say what was made from it
    stale = {} if damaged else find_stale(layout, rounds, method)
    return damaged | stale


def find_stale(layout: RunLayout, rounds: range, method: MethodConfig) -> dict[Step, str]:
    """The steps of these rounds that were made from artefacts which have been made again since -> in words."""
    stale = {}
    for number in rounds:
        for step in steps_of_round(number, method):
            parent = stale_parent(layout, step)
            if parent is not None:
                stale[step] = f"it was made from another {parent} than the one that is there now"
    return stale


def move_aside(layout: RunLayout, step: Step, why: str) -> None:
    """Rename all artefacts of a step to hidden siblings ``.damaged-NAME-...``; nothing is deleted."""
    token = secrets.token_hex(4)
    for name in outputs(layout, step):
        folder = layout.root / name
        if folder.exists():
            aside = folder.with_name(f".damaged-{folder.name}-{token}")
            folder.rename(aside)
            fsync_path(folder.parent)
            print(f"{step}: {folder.name}/ is now {aside}", flush=True)
    print(f"{step} is made again: {why}", flush=True)
