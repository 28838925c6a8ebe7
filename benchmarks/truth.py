"""What is right, in float64, for some of the rows; and how far an answer is from it."""

from dataclasses import dataclass

import numpy as np

_ROWS_A_TURN = 200


@dataclass(frozen=True)
class Truth:
    """The right answer for some rows of N samples.

    Attributes:
        features: (N, D) float32.
        rows: (n,) int64 sample ids.
        kth: for each k asked for, (n,) float64: the similarity of the k-th neighbour.
        entropies: (n,) float64, nats (eq 5).
    """

    features: np.ndarray
    rows: np.ndarray
    kth: dict[int, np.ndarray]
    entropies: np.ndarray

    def recall(self, ids: np.ndarray, k: int) -> float:
        """Share of the ids that are among the k most similar other samples; rounding ties count as right.

        Args:
            ids: (n, k) int64, the answer for ``rows``.
            k: neighbours.
        """
        own, others = self.features[self.rows].astype(np.float64), self.features[ids].astype(np.float64)
        similarities = np.einsum("nd,nkd->nk", own, others)
        # two float32 sums of D products of unit vectors can differ by so much
        tolerance = 2.0**-22 * self.features.shape[1] ** 0.5
        is_right = (similarities >= self.kth[k][:, None] - tolerance) & (ids != self.rows[:, None])
        for row in np.flatnonzero([len(set(found)) < k for found in ids.tolist()]):
            is_right[row] &= np.isin(np.arange(k), np.unique(ids[row], return_index=True)[1])
        return float(is_right.mean())

    def entropy_error(self, entropies: np.ndarray) -> float:
        """Largest |H - H_float64|, nats, over ``rows``."""
        return float(np.abs(entropies - self.entropies).max())


def find_truth(features: np.ndarray, rows: np.ndarray, ks: set[int], tau: float) -> Truth:
    """Score some rows against all samples in float64: N x n x D products, a second for 2,000 rows of 60,000.

    Args:
        features: (N, D) float32, unit length.
        rows: (n,) int64 sample ids.
        ks: numbers of neighbours that will be judged.
        tau: temperature.
    """
    columns = features.astype(np.float64)
    kth = {k: np.empty(len(rows)) for k in ks}
    entropies = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_A_TURN):
        ids = rows[start : start + _ROWS_A_TURN]
        part = slice(start, start + len(ids))
        scores = columns[ids] @ columns.T
        logits = scores / tau
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        totals = weights.sum(axis=1)
        entropies[part] = np.log(totals) - (weights * logits).sum(axis=1) / totals
        scores[np.arange(len(ids)), ids] = -np.inf
        for k in ks:
            kth[k][part] = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    return Truth(features, rows, kth, entropies)
