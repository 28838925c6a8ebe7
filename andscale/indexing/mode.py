"""Exact or approximate: which discovery an index job takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from andscale.errors import UsageError
from andscale.metrics import Progress

_ALWAYS_EXACT = 1_000_000
"""Below this no machine takes an hour: two cores take six minutes."""

_LONGEST_EXACT_S = 3600.0
_TIMED_ROWS = 9600


@dataclass(frozen=True)
class Mode:
    """What was chosen.

    Attributes:
        name: ``exact`` or ``approximate``.
        exact_s: seconds that the exact sweep would take over all ranks; None where it was not asked.
    """

    name: str
    exact_s: float | None = None

    def __str__(self) -> str:
        if self.exact_s is None:
            return self.name
        minutes = round(self.exact_s / 60)
        hours, rest = divmod(minutes, 60)
        return f"exact would take about {f'{hours} h {rest} min' if hours else f'{rest} min'} here: {self.name}"


def choose_mode(
    mode: str, num_samples: int, dim: int, world_size: int, measure: Callable[[int], float] | None = None
) -> Mode:
    """The mode of discovery: as asked, or for ``auto`` approximate where exact would take more than an hour.

    Args:
        mode: ``index.mode``: ``auto``, ``exact`` or ``approximate``.
        num_samples: N.
        dim: D.
        world_size: ranks that share the work, each as fast as this one; only rank 0 need ask.
        measure: entries of the N x N score matrix a second of the exact sweep here, from D; None: timed on this CPU.

    Raises:
        UsageError: another mode.
    """
    if mode not in ("auto", "exact", "approximate"):
        raise UsageError(f'index.mode = "{mode}": it must be "auto", "exact" or "approximate"')
    if mode != "auto":
        return Mode(mode)
    if num_samples < _ALWAYS_EXACT and measure is None:
        return Mode("exact")
    exact_s = num_samples**2 / (measure or measure_cpu)(dim) / world_size
    return Mode("approximate" if exact_s > _LONGEST_EXACT_S else "exact", exact_s)


def measure_cpu(dim: int) -> float:
    """Entries of the score matrix that the exact sweep gets through in a second; takes tens of milliseconds.

    Each pair is scored once and counts as two entries. The better of two runs: the first may wait for the compiler.
    """
    from andscale.indexing.cpu_sweep import RowState, default_threads, sweep_within

    rows = np.random.default_rng(0).standard_normal((_TIMED_ROWS, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    seconds = []
    for _ in range(2):
        state = RowState.begin(0, rows, 9)
        with Progress("", 1, enabled=False) as progress:
            started = time.perf_counter()
            sweep_within(state, 0.1, default_threads(), progress)
            seconds.append(time.perf_counter() - started)
    return _TIMED_ROWS**2 / min(seconds)
