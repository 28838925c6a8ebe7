"""Which pairs of blocks are scored in full, which are drawn from, and a sparse sweep over the first kind."""

from dataclasses import dataclass

import numpy as np

from andscale.indexing.cpu_sweep import PairSweep, RowState, Span, run_rounds
from andscale.indexing.partials import BLOCK_ROWS
from andscale.metrics import Progress

_ROWS_A_TURN = 1024


@dataclass(frozen=True)
class BlockPairs:
    """How the pairs of blocks are treated; every pair in none of the two kinds is far.

    Attributes:
        near: (E, 2) int64, pairs (a, b) with a <= b, each once; every (a, a) is one of them.
        middle: (M, 2) int64, (a, b): the rows of a are scored against samples drawn from b. Not near.
        num_blocks: of BLOCK_ROWS samples, the last one perhaps shorter.
    """

    near: np.ndarray
    middle: np.ndarray
    num_blocks: int

    def near_lists(self) -> tuple[np.ndarray, np.ndarray]:
        """For every block the blocks near it: (num_blocks + 1,) starts and (2 E - num_blocks,) blocks, int64."""
        different = self.near[self.near[:, 0] != self.near[:, 1]]
        return _lists(np.concatenate([self.near, different[:, ::-1]]), self.num_blocks)

    def middle_lists(self) -> tuple[np.ndarray, np.ndarray]:
        """For every block those that are drawn from for its rows: (num_blocks + 1,) starts and (M,) blocks, int64."""
        return _lists(self.middle, self.num_blocks)


def pair_blocks(features: np.ndarray, num_near: int, num_middle: int) -> BlockPairs:
    """For every block the blocks whose mean is most similar to its own are near, the next ones of a middle distance.

    The mean similarity of two blocks is the inner product of their means; the weight that they have for each other
    rises with it. A pair is near if either of the two asks for it, because its scores serve both.

    Args:
        features: (N, D) float32, in the order of the blocks.
        num_near: near blocks that a block asks for, itself not counted.
        num_middle: blocks of a middle distance, at most; those that are near because the other one asked go.
    """
    num_blocks = -(-len(features) // BLOCK_ROWS)
    means = np.empty((num_blocks, features.shape[1]), np.float32)
    for block in range(num_blocks):  # a product is ten times as fast as numpy's sum over the first axis
        rows = features[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        means[block] = np.full(len(rows), 1 / len(rows), np.float32) @ rows
    count = min(num_near + num_middle, num_blocks - 1)
    best = np.empty((num_blocks, count), np.int64)
    for start in range(0, num_blocks, _ROWS_A_TURN):
        similarities = means[start : start + _ROWS_A_TURN] @ means.T
        own = np.arange(len(similarities))
        similarities[own, start + own] = -np.inf
        best[start : start + _ROWS_A_TURN] = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    near, middle = (_pairs(columns) for columns in (best[:, :num_near], best[:, num_near:]))
    own = np.arange(num_blocks)
    near = np.unique(np.sort(np.concatenate([near, np.column_stack([own, own])]), axis=1), axis=0)
    is_near = np.isin(np.sort(middle, axis=1) @ [num_blocks, 1], near @ [num_blocks, 1])
    return BlockPairs(near, middle[~is_near], num_blocks)


def sweep_pairs(state: RowState, pairs: np.ndarray, temperature: float, num_threads: int, progress: Progress) -> None:
    """Score some pairs of blocks, each once and for the rows of both, in an order that does not depend on threads.

    Args:
        state: updated in place.
        pairs: (E, 2) int64, (a, b) with a <= b.
        temperature: tau.
        num_threads: plain threads, one a core.
        progress: advanced by rows times columns.
    """
    run_rounds(_rounds(pairs), PairSweep(state, state, temperature), num_threads, progress)


def _rounds(pairs: np.ndarray) -> list[list[tuple[Span, Span]]]:
    """The pairs in rounds in which no block stands twice: each goes into the first round that is free for both."""
    taken: dict[int, set[int]] = {}
    rounds: list[list[tuple[Span, Span]]] = []
    for a, b in pairs.tolist():
        busy_a, busy_b = taken.setdefault(a, set()), taken.setdefault(b, set())
        number = 0
        while number in busy_a or number in busy_b:
            number += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(((a, a + 1), (b, b + 1)))
        busy_a.add(number)
        busy_b.add(number)
    return rounds


def _pairs(blocks: np.ndarray) -> np.ndarray:
    """(C, n) blocks of C blocks as (C n, 2) pairs."""
    rows = np.repeat(np.arange(len(blocks)), blocks.shape[1])
    return np.column_stack([rows, blocks.ravel()])


def _lists(pairs: np.ndarray, num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=num_blocks))])
    return starts.astype(np.int64), np.ascontiguousarray(ordered[:, 1])
