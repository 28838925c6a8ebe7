"""From candidates to neighbours: scored again in float64, put into canonical order, and searched for once more where a
sweep's float32 cannot decide.

A similarity is the float64 inner product rounded to float32; larger ones come first, equal ones by smaller sample id.
The products of a pair are added in one order wherever it is scored, so the answer does not depend on how samples were
shared out.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from andscale.indexing.partials import BLOCK_ROWS, NO_ID, SUM_SCALE, Partials
from andscale.indexing.threads import in_turns
from andscale.metrics import Progress

_ROWS_A_TURN = 256


def rounding(dim: int) -> float:
    """What two float32 sums of D products of unit vectors can differ by in practice."""
    return float(2.0**-22 * math.sqrt(dim))


def add_candidates(
    partials: Partials, features: np.ndarray, columns: np.ndarray, column_start: int, ids: np.ndarray, num_threads: int
) -> None:
    """Score candidates in float64 and keep the best K of each row.

    Args:
        partials: n rows, K candidates each; updated in place.
        features: (n, D) float32, the rows.
        columns: (m, D) float32, where the candidates come from.
        column_start: sample id of the first column.
        ids: (n, C) integers, sample ids of candidates, each once a row and none that the row has; negative for none.
        num_threads: plain threads.
    """

    def work(start: int, stop: int) -> None:
        _add_rows(start, stop, features, columns, column_start, ids, partials.scores, partials.ids)

    _by_rows(work, len(features), num_threads)


def undecided_rows(partials: Partials, dim: int) -> np.ndarray:
    """Rows, (u,) int64, in which a sample that was left out may be as near as the K-th neighbour."""
    doubtful = (partials.cuts >= -1.5) & (partials.scores[:, -1] <= partials.cuts + rounding(dim))
    return np.flatnonzero(doubtful)


def search_all(
    queries: np.ndarray,
    query_ids: np.ndarray,
    columns: np.ndarray,
    column_start: int,
    partials: Partials,
    search: "DenseSearch",
) -> None:
    """Score queries against every column in float64: the best K, and the sums of the softmax. Slow and exact.

    Args:
        queries: (q, D) float32.
        query_ids: (q,) int64; a sample is not its own neighbour, but belongs to its softmax.
        columns: (m, D) float32.
        column_start: sample id of the first column.
        partials: q rows, no candidate among the columns yet; updated in place.
        search: temperature, threads, progress.
    """
    scale = math.log2(math.e) / search.temperature

    def work(start: int, stop: int) -> None:
        _search_rows(
            start, stop, queries, query_ids, columns, column_start, scale, partials.scores, partials.ids,
            partials.weight_sums, partials.weighted_exponents,
        )  # fmt: skip
        search.progress.advance((stop - start) * len(columns))

    _by_rows(work, len(queries), search.num_threads)


class DenseSearch:
    """How ``search_all`` runs.

    Args:
        temperature: tau.
        num_threads: plain threads.
        progress: advanced by rows times columns.
    """

    def __init__(self, temperature: float, num_threads: int, progress: Progress):
        self.temperature, self.num_threads, self.progress = temperature, num_threads, progress


def merge(into: Partials, other: Partials) -> None:
    """Add what another sweep saw of the same rows in other columns; both hold K exact candidates."""
    into.weight_sums += other.weight_sums
    into.weighted_exponents += other.weighted_exponents
    np.maximum(into.cuts, other.cuts, out=into.cuts)
    _merge_rows(into.scores, into.ids, other.scores, other.ids)


def _by_rows(work: Callable[[int, int], None], num_rows: int, num_threads: int) -> None:
    """Call ``work(start, stop)`` for all rows, a few hundred at a time."""

    def turn(number: int) -> None:
        work(number * _ROWS_A_TURN, min((number + 1) * _ROWS_A_TURN, num_rows))

    in_turns(turn, -(-num_rows // _ROWS_A_TURN), num_threads)


# sums may be taken in vectors: the order depends on D alone, so a pair has the same bits everywhere
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _inner_product(x: Any, y: Any) -> Any:
    total = np.float64(0)
    for d in range(x.shape[0]):
        total += np.float64(x[d]) * np.float64(y[d])
    return total


@numba.njit(nogil=True, cache=True)
def _keep(scores: Any, ids: Any, score: Any, sample_id: Any) -> None:
    """Put a candidate into its canonical place in one row's (K,) lists, if it has one."""
    place = scores.shape[0]
    while place > 0 and (
        scores[place - 1] < score
        or (scores[place - 1] == score and (ids[place - 1] == NO_ID or sample_id < ids[place - 1]))
    ):
        place -= 1
    if place == scores.shape[0]:
        return
    for last in range(scores.shape[0] - 1, place, -1):
        scores[last] = scores[last - 1]
        ids[last] = ids[last - 1]
    scores[place] = score
    ids[place] = sample_id


@numba.njit(nogil=True, cache=True)
def _add_rows(  # noqa: PLR0913, PLR0917 - compiled functions take arrays, not objects
    start: Any, stop: Any, features: Any, columns: Any, column_start: Any, candidates: Any, scores: Any, ids: Any
) -> None:
    for row in range(start, stop):
        for c in range(candidates.shape[1]):
            candidate = np.int64(candidates[row, c])
            if candidate >= 0:
                score = np.float32(_inner_product(features[row], columns[candidate - column_start]))
                _keep(scores[row], ids[row], score, candidate)


@numba.njit(nogil=True, cache=True)
def _search_rows(  # noqa: PLR0913, PLR0917 - as above
    start: Any,
    stop: Any,
    queries: Any,
    query_ids: Any,
    columns: Any,
    column_start: Any,
    scale: Any,
    scores: Any,
    ids: Any,
    weight_sums: Any,
    weighted_exponents: Any,
) -> None:
    for row in range(start, stop):
        weight_sum = weighted = np.float64(0)
        for column in range(columns.shape[0]):
            # whole numbers at the blocks' ends: the sums are the same however the columns were cut into shards
            if column % BLOCK_ROWS == 0 and column:
                weight_sums[row] += np.int64(np.rint(weight_sum * SUM_SCALE))
                weighted_exponents[row] += np.int64(np.rint(weighted * SUM_SCALE))
                weight_sum = weighted = np.float64(0)
            product = _inner_product(queries[row], columns[column])
            x = (product - 1) * scale
            weight = 2.0**x
            weight_sum += weight
            weighted += weight * x
            if column + column_start != query_ids[row]:
                score = np.float32(product)
                if score >= scores[row, -1]:
                    _keep(scores[row], ids[row], score, column + column_start)
        weight_sums[row] += np.int64(np.rint(weight_sum * SUM_SCALE))
        weighted_exponents[row] += np.int64(np.rint(weighted * SUM_SCALE))


@numba.njit(nogil=True, cache=True)
def _merge_rows(scores: Any, ids: Any, other_scores: Any, other_ids: Any) -> None:
    for row in range(scores.shape[0]):
        for c in range(other_ids.shape[1]):
            if other_ids[row, c] >= 0:
                _keep(scores[row], ids[row], other_scores[row, c], other_ids[row, c])
