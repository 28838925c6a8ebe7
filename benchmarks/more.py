"""The other benchmarks, each a command of its own with a table of its own, run small behind the comparison."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Section:
    """A benchmark that ``make bench`` runs too.

    Attributes:
        title: over its table.
        module: of this folder.
        arguments: of its command.
    """

    title: str
    module: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """How a person runs it."""
        return " ".join(["python -m", f"benchmarks.{self.module}", *self.arguments])


def sections(*, quick: bool) -> list[Section]:
    """What is not discovery beside its peers: files, evaluation, images, step, service ..."""
    rows = ("2000", "3000", "300") if quick else ("320000", "100000", "2000")
    queries = ("2000", "200") if quick else ("60000", "2000")
    return [
        Section("Writing and reading verified features beside numpy's files", "parquet", (rows[0], "128")),
        Section(
            "Approximate discovery beside the exact sweep", "approximate", ("--samples", rows[1], "--repeats", "1")
        ),
        Section("Weighted kNN and linear classifiers beside their bare parts", "evaluation", queries),
        Section("The objective beside dense autograd", "objective", ("--quick",) if quick else ()),
        Section("Images to the network's input beside torchvision", "images", ("--images", rows[2])),
        Section(
            "The training job beside the bare network",
            "step",
            ("--images", "600", "--turns", "1") if quick else ("--turns", "4"),
        ),
        Section(
            "The service under load, with two swaps of rounds",
            "service",
            ("--samples", "3000", "--seconds", "1") if quick else ("--samples", "200000", "--seconds", "15"),
        ),
    ]


def run_section(section: Section, limit_s: float) -> str:
    """What the benchmark prints, or why it could not be run; on the CPU alone, as the comparison is."""
    command = [sys.executable, "-m", f"benchmarks.{section.module}", *section.arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"not measured: ended after {limit_s:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"not measured: {lines[-1] if lines else f'exit code {done.returncode}'}"
    return done.stdout.strip()
