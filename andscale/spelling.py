"""How the commands are spelt in hints and examples: by their files in a checkout, by the console script elsewhere.

Standard library only: every ``--help`` asks here.
"""

from functools import cache
from pathlib import Path

DOORS = {
    "launch": "jobs/launch_round.py",
    "train": "jobs/train_round.py",
    "rebuild": "jobs/rebuild_index.py",
    "evaluate": "jobs/evaluate_round.py",
    "inspect": "tools/inspect_neighbours.py",
    "serve": "tools/serve.py",
    "attention": "tools/attention.py",
    "map": "tools/map.py",
    "discover": "tools/discover.py",
    "export": "tools/export_onnx.py",
    "prepare": "tools/prepare_shards.py",
    "reproduce": "tools/reproduce.py",
    "doctor": "tools/doctor.py",
    "demo": "tools/demo.py",
}
"""The file of each command that has one."""


@cache
def in_checkout() -> bool:
    """Whether ``jobs/`` and ``tools/`` lie beside the package: a checkout, installed in place or not at all."""
    return (Path(__file__).resolve().parents[1] / DOORS["launch"]).is_file()


def spelt(command: str) -> str:
    """``jobs/rebuild_index.py`` or ``andscale rebuild``, whichever there is here; in a checkout what has no file is
    ``.venv/bin/andscale status``, for nobody has ``.venv/bin`` on PATH.
    """
    if not in_checkout():
        return f"andscale {command}"
    return DOORS.get(command, f".venv/bin/andscale {command}")


def make_env(before: str) -> str:
    """``before`` and ``make env`` in a checkout, where that mends an environment; nothing elsewhere."""
    return f"{before}make env" if in_checkout() else ""


def spell_all(text: str) -> str:
    """A help text, in which commands are spelt as in a checkout, as it is right here."""
    if in_checkout():
        return text
    # torchrun takes a file, or the console script with --no-python
    text = text.replace(f"-- {DOORS['train']}", "--no-python -- andscale train")
    for command, door in DOORS.items():
        text = text.replace(f"python {door}", f"andscale {command}").replace(door, f"andscale {command}")
    return text
