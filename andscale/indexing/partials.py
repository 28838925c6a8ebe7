"""What a sweep carries for every row, and how it is merged: sums of the softmax, and the best candidates so far.

Sums are kept as 64-bit integers in units of 2^-32, so that they add up to the same bits in any order: the table does
not depend on how many threads or ranks shared the work.
"""

from dataclasses import dataclass

import numpy as np

# numba's files in __pycache__ hold these numbers and do not notice a change here: remove them after one
BLOCK_ROWS = 480
"""Samples are cut into blocks of so many on one grid for all ranks. A multiple of every tile's rows and columns; two
blocks of 128 numbers a row (480 KB) lie in a core's cache."""

SUM_SCALE = 2.0**32
"""Units of ``weight_sums`` and ``weighted_exponents`` in one."""

NO_SCORE = np.float32(-2.0)
"""Stands where there is no candidate: below every similarity."""

NO_ID = -1


@dataclass
class Partials:
    """The state of n rows of the score matrix after some of its columns; x_ij = (s_ij - 1) log2(e) / tau.

    Attributes:
        weight_sums: (n,) int64, sum_j 2^x_ij in units of 2^-32.
        weighted_exponents: (n,) int64, sum_j 2^x_ij x_ij in units of 2^-32; never positive but for rounding.
        scores: (n, C) float32, the similarities of the candidates in any order; NO_SCORE where there is none.
        ids: (n, C) int64, their sample ids; NO_ID where there is none. Never the row's own id.
        cuts: (n,) float32: no sample left out has a score above it; NO_SCORE while none was left out.
    """

    weight_sums: np.ndarray
    weighted_exponents: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    cuts: np.ndarray

    @classmethod
    def empty(cls, num_rows: int, num_candidates: int) -> "Partials":
        """No column seen yet."""
        return cls(
            weight_sums=np.zeros(num_rows, np.int64),
            weighted_exponents=np.zeros(num_rows, np.int64),
            scores=np.full((num_rows, num_candidates), NO_SCORE, np.float32),
            ids=np.full((num_rows, num_candidates), NO_ID, np.int64),
            cuts=np.full(num_rows, NO_SCORE, np.float32),
        )

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of it, in the order of the attributes."""
        return self.weight_sums, self.weighted_exponents, self.scores, self.ids, self.cuts

    def entropies(self) -> np.ndarray:
        """Entropy of every row's similarity distribution (eq 5), (n,) float64, nats.

        H_i = ln(sum_j 2^x_ij) - ln(2) sum_j 2^x_ij x_ij / sum_j 2^x_ij
        """
        totals = self.weight_sums / SUM_SCALE
        entropies: np.ndarray = np.log(totals) - np.log(2.0) * (self.weighted_exponents / SUM_SCALE) / totals
        return entropies
