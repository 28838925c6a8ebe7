"""The exact sweep on the CPU: every pair of blocks is scored once and serves the rows of both.

Blocks of BLOCK_ROWS rows lie on one grid for all samples, and a pair is always taken the same way round (the lower
block as rows), so a weight is the same number wherever it is computed; sums are whole numbers. Threads and ranks can
share the pairs in any way and get the same bits.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from andscale.indexing.partials import BLOCK_ROWS, NO_SCORE, SUM_SCALE
from andscale.indexing.threads import in_threads
from andscale.indexing.tile_kernel import TileShape, host_tile_shape
from andscale.metrics import Progress

if TYPE_CHECKING:
    from andscale.indexing.cpu_kernels import Rows

_PANEL_BYTES = 4 * 1024**2
_MAX_PACKED_BLOCKS = 8
"""Blocks of columns that a thread packs at a time: packing is paid once for as many blocks of rows."""

_BEYOND = np.float32(-1e30)
"""Shift of columns that stand for no sample: their weight is 2^-126."""


@dataclass
class RowState:
    """What a sweep carries for the n rows of a shard.

    Attributes:
        start: sample id of the first row; a multiple of BLOCK_ROWS.
        features: (n, D) float32, C-contiguous.
        thresholds: (n_padded,) float32: a similarity up to this is left out.
        scores: (n_padded, C) float32, falling; NO_SCORE where there is no candidate.
        ids: (n_padded, C) int32, the candidates' sample ids.
        sums: (2, n_padded) int64, sums of 2^x and 2^x x in units of 2^-32.
    """

    start: int
    features: np.ndarray
    thresholds: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    sums: np.ndarray

    @classmethod
    def begin(cls, start: int, features: np.ndarray, num_candidates: int, cuts: np.ndarray | None = None) -> "RowState":
        """No column seen yet; candidates up to ``cuts`` ((n,) float32) are not wanted."""
        num_padded = -(-len(features) // BLOCK_ROWS) * BLOCK_ROWS
        thresholds = np.full(num_padded, np.inf, np.float32)
        thresholds[: len(features)] = NO_SCORE if cuts is None else cuts
        return cls(
            start=start,
            features=features,
            thresholds=thresholds,
            scores=np.full((num_padded, num_candidates), NO_SCORE, np.float32),
            ids=np.full((num_padded, num_candidates), -1, np.int32),
            sums=np.zeros((2, num_padded), np.int64),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of rows, the last one filled up."""
        return len(self.thresholds) // BLOCK_ROWS

    def for_kernel(self) -> "Rows":
        """The same arrays as the compiled loops take them."""
        from andscale.indexing.cpu_kernels import Rows

        tail = _filled_tail(self.features)
        return Rows(self.start, self.features, tail, self.thresholds, self.scores, self.ids, self.sums)


def sweep_within(state: RowState, temperature: float, num_threads: int, progress: Progress) -> None:
    """Score all pairs of a shard's rows, each once; a sample is never its own candidate.

    Args:
        state: updated in place.
        temperature: tau.
        num_threads: plain threads, one a core.
        progress: advanced by rows times columns, each counted once.
    """
    width = _packed_blocks(state.features.shape[1], state.num_blocks, num_threads)
    spans = _spans(state.num_blocks, width)
    rounds = [[(span, span) for span in spans], *_tournament(spans)]
    run_rounds(rounds, PairSweep(state, state, temperature), num_threads, progress)


def sweep_between(
    lower: RowState, upper: RowState, lower_blocks: range, temperature: float, num_threads: int, progress: Progress
) -> None:
    """Score some blocks of one shard against all of another that comes later, for the rows of both.

    Args:
        lower: the shard of smaller sample ids; updated in place.
        upper: the other one; updated in place.
        lower_blocks: which blocks of ``lower``.
        temperature: tau.
        num_threads: plain threads, one a core.
        progress: advanced by rows times columns.
    """
    width = _packed_blocks(lower.features.shape[1], min(len(lower_blocks), upper.num_blocks), num_threads)
    rows = [(lower_blocks.start + a, lower_blocks.start + b) for a, b in _spans(len(lower_blocks), width)]
    columns = _spans(upper.num_blocks, width)
    size = max(len(rows), len(columns))
    rounds = [
        [(rows[i], columns[(i + turn) % size]) for i in range(len(rows)) if (i + turn) % size < len(columns)]
        for turn in range(size)
    ]
    run_rounds(rounds, PairSweep(lower, upper, temperature), num_threads, progress)


def default_threads() -> int:
    """One thread a core that this process may use, or what torch was told, whichever is less."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, torch.get_num_threads()))


Span = tuple[int, int]


class PairSweep:
    """Two shards (or twice the same) and what their pairs of blocks have in common."""

    def __init__(self, lower: RowState, upper: RowState, temperature: float):
        self.is_same, self.dim = lower is upper, lower.features.shape[1]
        self.rows, self.columns = lower.for_kernel(), upper.for_kernel()
        self.scale = np.float32(math.log2(math.e) / temperature)
        self.shifts = np.full((2, BLOCK_ROWS), -self.scale, np.float32)
        self.shifts[1, len(upper.features) - (upper.num_blocks - 1) * BLOCK_ROWS :] = _BEYOND
        self.shape = host_tile_shape()
        self.kernel = compiled_sweep(self.shape)

    def score(self, spans: tuple[Span, Span], scratch: "Scratch") -> int:
        """Score the blocks of a span of rows against those of a span of columns; returns how many pairs of samples."""
        num_scored: int = self.kernel(
            self.rows, self.columns, self.is_same, spans, self.scale, self.shifts, scratch.packed, scratch.buffers
        )
        return num_scored


class Scratch:
    """What one thread writes to: packed columns, the sums of a pair of blocks, the similarities of a tile."""

    def __init__(self, num_blocks: int, dim: int, shape: TileShape):
        panels = BLOCK_ROWS // shape.num_columns
        self.packed = np.empty((num_blocks, panels, dim, shape.num_columns), np.float32)
        row_sums = np.empty((2, BLOCK_ROWS * shape.lanes), np.float32)
        column_sums = np.empty((2, BLOCK_ROWS), np.float32)
        hits = np.empty(shape.num_rows * shape.num_columns, np.float32)
        self.buffers = (row_sums, column_sums, hits, np.empty(2 * shape.num_rows, np.int64))


def run_rounds(rounds: list[list[tuple[Span, Span]]], sweep: PairSweep, num_threads: int, progress: Progress) -> None:
    """Work through the rounds with threads, one after the other; the pairs of a round touch different rows."""
    width = max(b - a for pairs in rounds for _, (a, b) in pairs)
    turns = [itertools.count() for _ in rounds]
    barrier = threading.Barrier(num_threads)

    def work() -> None:
        scratch = Scratch(width, sweep.dim, sweep.shape)
        for pairs, turn in zip(rounds, turns, strict=True):
            # next() of a count is one step under the interpreter's lock
            for number in turn:
                if number >= len(pairs):
                    break
                progress.advance(sweep.score(pairs[number], scratch))
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait()
            if barrier.broken:
                return

    in_threads(work, num_threads, barrier.abort)


def _packed_blocks(dim: int, num_blocks: int, num_threads: int) -> int:
    """Blocks of columns to pack at a time: within _PANEL_BYTES, and few enough that every thread has work."""
    fitting = max(1, _PANEL_BYTES // (4 * BLOCK_ROWS * dim))
    return max(1, min(_MAX_PACKED_BLOCKS, fitting, num_blocks // (4 * num_threads)))


def _spans(num_blocks: int, width: int) -> list[Span]:
    return [(start, min(start + width, num_blocks)) for start in range(0, num_blocks, width)]


def _tournament(spans: list[Span]) -> Iterator[list[tuple[Span, Span]]]:
    """Every pair of different spans once, in rounds in which no span plays twice (round-robin, circle method)."""
    size = len(spans) + len(spans) % 2
    for turn in range(size - 1):
        circle = [(turn + i) % (size - 1) for i in range(size - 1)]
        pairs = [(size - 1, circle[0]), *((circle[i], circle[size - 1 - i]) for i in range(1, size // 2))]
        yield [(spans[min(pair)], spans[max(pair)]) for pair in pairs if max(pair) < len(spans)]


def _filled_tail(features: np.ndarray) -> np.ndarray:
    """The rows behind the last whole block, zeros behind them: (BLOCK_ROWS, D) float32."""
    whole = len(features) // BLOCK_ROWS * BLOCK_ROWS
    tail = np.zeros((BLOCK_ROWS, features.shape[1]), np.float32)
    tail[: len(features) - whole] = features[whole:]
    return tail


@functools.cache
def compiled_sweep(shape: TileShape) -> Any:
    """The sweep for one shape of tiles, compiled at its first call (two seconds, once a process)."""
    from andscale.indexing.cpu_kernels import build_kernel

    return build_kernel(shape, BLOCK_ROWS, SUM_SCALE)
