"""A sample of rows searched again in float64, in code that shares nothing with the sweep (promise 5)."""

from dataclasses import dataclass

import numpy as np

from andscale.distributed import gather_records
from andscale.errors import RunError
from andscale.indexing.ring import Ring, gather_arrays

_ENTROPY_TOLERANCE = 1e-4
_FLOAT16_ENTROPY_TOLERANCE = 1e-2
_SIMILARITY_TOLERANCE = 1e-5
_SCORES_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Claims:
    """What a sweep says of this rank's rows.

    Attributes:
        start: sample id of the first row.
        neighbour_ids: (n, K) int64.
        similarities: (n, K) float32.
        entropies: (n,) float32, nats.
        in_float16: whether the scores behind the entropies were.
    """

    start: int
    neighbour_ids: np.ndarray
    similarities: np.ndarray
    entropies: np.ndarray
    in_float16: bool = False


def check_rows(num_samples: int, count: int, seed: int) -> np.ndarray:
    """The rows to check: (min(count, N),) int64, ascending, a function of the seed."""
    rng = np.random.default_rng([seed, 0x636865])
    return np.sort(rng.choice(num_samples, size=min(count, num_samples), replace=False))


def check_against_float64(
    features: np.ndarray, claims: Claims, temperature: float, rows: np.ndarray, ring: Ring
) -> None:
    """Search some rows among all samples in float64 and compare; neighbours are compared up to rounding ties.

    Args:
        features: (n, D) float32, this rank's.
        claims: what is to be checked, of this rank's rows.
        temperature: tau.
        rows: (c,) int64, ascending sample ids of all ranks' rows to check; the same on every rank.
        ring: who holds which samples.

    Raises:
        RunError: a neighbour, a similarity or an entropy differs; the sample and both values are named.
    """
    answer, similarities, entropies = _ask(features, claims, temperature, rows, ring)
    tolerance = _FLOAT16_ENTROPY_TOLERANCE if claims.in_float16 else _ENTROPY_TOLERANCE
    _compare("similarity", rows, similarities, answer.best, _SIMILARITY_TOLERANCE)
    _compare("neighbour's similarity", rows, answer.claimed, answer.best, _SIMILARITY_TOLERANCE)
    _compare("entropy", rows, entropies, answer.entropies(), tolerance)


def compare_with_float64(
    features: np.ndarray, claims: Claims, temperature: float, rows: np.ndarray, ring: Ring
) -> dict[str, float]:
    """How good an approximate answer is: the same arguments as ``check_against_float64``.

    Returns:
        recall_at_1, recall_at_k (of the K neighbours claimed, rounding ties count), and of the entropies the mean
        absolute error and the Pearson correlation.

    Raises:
        RunError: a similarity is not that of its pair: nothing approximate about that.
    """
    answer, similarities, entropies = _ask(features, claims, temperature, rows, ring)
    _compare("similarity", rows, similarities, answer.claimed, _SIMILARITY_TOLERANCE)
    right = answer.claimed >= answer.best[:, -1:] - _SIMILARITY_TOLERANCE
    exact = answer.entropies()
    deviations = [values - values.mean() for values in (entropies.astype(np.float64), exact)]
    spread = np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    return {
        "recall_at_1": float((answer.claimed[:, 0] >= answer.best[:, 0] - _SIMILARITY_TOLERANCE).mean()),
        "recall_at_k": float(right.mean()),
        "mean_entropy_error_nats": float(np.abs(entropies - exact).mean()),
        "entropy_correlation": float((deviations[0] * deviations[1]).sum() / spread) if spread else 1.0,
    }


def _ask(
    features: np.ndarray, claims: Claims, temperature: float, rows: np.ndarray, ring: Ring
) -> tuple["_Answer", np.ndarray, np.ndarray]:
    """The float64 answer for some rows, and the similarities and entropies that are claimed for them, on every rank."""
    own = rows[(rows >= claims.start) & (rows < claims.start + len(features))] - claims.start
    counts = [int(c) for c in gather_records(len(own))]
    queries = gather_arrays(features[own], counts).astype(np.float64)
    neighbours = gather_arrays(claims.neighbour_ids[own], counts)
    answer = _Answer.empty(neighbours)
    for start in range(0, len(features), columns := max(1, _SCORES_BYTES // (16 * max(1, len(rows))))):
        block = features[start : start + columns].astype(np.float64)
        answer.add(queries @ block.T, rows, claims.start + start, neighbours, temperature)
    parts = gather_arrays(answer.packed()[None], [1] * ring.world.world_size)
    merged = _Answer.merged(parts, neighbours.shape[1])
    return merged, gather_arrays(claims.similarities[own], counts), gather_arrays(claims.entropies[own], counts)


@dataclass
class _Answer:
    """What some columns say of c rows, in float64.

    Attributes:
        best: (c, K), the largest similarities, falling.
        claimed: (c, K), those of the claimed neighbours; -inf where they are not among the columns.
        largest: (c,), the largest logit.
        total: (c,), sum of e^d over the logits, d = logit - largest.
        weighted: (c,), sum of e^d d.
    """

    best: np.ndarray
    claimed: np.ndarray
    largest: np.ndarray
    total: np.ndarray
    weighted: np.ndarray

    @classmethod
    def empty(cls, neighbours: np.ndarray) -> "_Answer":
        """No column seen yet."""
        nothing = np.full(neighbours.shape, -np.inf)
        zeros = np.zeros(len(neighbours))
        return cls(nothing, nothing.copy(), np.full(len(neighbours), -np.inf), zeros, zeros.copy())

    def add(self, scores: np.ndarray, rows: np.ndarray, start: int, neighbours: np.ndarray, temperature: float) -> None:
        """See (c, m) scores against the samples from ``start`` on."""
        stop = start + scores.shape[1]
        logits = scores / temperature
        self._add_logits(logits)
        place = np.clip(neighbours - start, 0, scores.shape[1] - 1)
        here = (neighbours >= start) & (neighbours < stop)
        self.claimed = np.where(here, np.take_along_axis(scores, place, axis=1), self.claimed)
        own = (rows >= start) & (rows < stop)
        scores[np.flatnonzero(own), rows[own] - start] = -np.inf
        self._add_best(scores)

    def _add_logits(self, logits: np.ndarray) -> None:
        largest = np.maximum(self.largest, logits.max(axis=1))
        fall = np.where(np.isfinite(self.largest), self.largest - largest, 0.0)
        logits -= largest[:, None]
        weights = np.exp(logits)
        self.weighted = np.exp(fall) * (self.weighted + fall * self.total) + (weights * logits).sum(axis=1)
        self.total = np.exp(fall) * self.total + weights.sum(axis=1)
        self.largest = largest

    def _add_best(self, scores: np.ndarray) -> None:
        width = self.best.shape[1]
        if scores.shape[1] > width:
            scores = np.partition(scores, -width, axis=1)[:, -width:]
        both = np.concatenate([self.best, scores], axis=1)
        self.best = -np.sort(-both, axis=1)[:, :width]

    def packed(self) -> np.ndarray:
        """All of it as one (c, 2 K + 3) array."""
        return np.column_stack([self.best, self.claimed, self.largest, self.total, self.weighted])

    @classmethod
    def merged(cls, parts: np.ndarray, width: int) -> "_Answer":
        """One answer from those of all ranks, (R, c, 2 K + 3)."""
        best = np.concatenate(list(parts[:, :, :width]), axis=1)
        largest, total, weighted = (parts[:, :, 2 * width + i] for i in range(3))
        top = largest.max(axis=0)
        # a rank without samples has no largest logit, and sums of zero
        fall = np.where(np.isfinite(largest), largest - top, 0.0)
        return cls(
            best=-np.sort(-best, axis=1)[:, :width],
            claimed=parts[:, :, width : 2 * width].max(axis=0),
            largest=top,
            total=(np.exp(fall) * total).sum(axis=0),
            weighted=(np.exp(fall) * (weighted + fall * total)).sum(axis=0),
        )

    def entropies(self) -> np.ndarray:
        """(c,) float64, nats (eq 5)."""
        entropies: np.ndarray = np.log(self.total) - self.weighted / self.total
        return entropies


def _compare(what: str, rows: np.ndarray, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    found, expected = found.reshape(len(rows), -1), expected.reshape(len(rows), -1)
    wrong = ~(np.abs(found - expected) <= tolerance)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise RunError(
            f"the search disagrees with float64: {what} of sample {rows[row]} is {found[row, column]:.7g}, float64 "
            f"says {expected[row, column]:.7g} ({wrong.any(axis=1).sum()} of {len(rows)} rows differ). Nothing was "
            "published; check that numba, FAISS and torch suit this machine and each other"
        )
