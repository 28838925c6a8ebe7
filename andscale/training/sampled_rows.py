"""Rows of the memory drawn at random, for the sampled objective.

Row ids are cut into m strata of as equal a size as possible, and one row is drawn from each. A row of a stratum of h
rows is drawn with probability 1/h, so with weight h the sum over drawn rows estimates the sum over all rows without
bias; with m = N every row is drawn with weight 1, and the sum is exact. No row is drawn twice, draws come sorted, so
those of a rank lie together, and where ids lie class by class every class gets its share, which a draw from all N at
once would leave to chance.
"""

import numpy as np


def strata_bounds(num_rows: int, num_strata: int) -> np.ndarray:
    """First row of every stratum, and N behind them: (m + 1,) int64; stratum t begins at floor(N t / m)."""
    return num_rows * np.arange(num_strata + 1, dtype=np.int64) // num_strata


def draw_rows(num_rows: int, num_strata: int, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One row of every stratum.

    Args:
        num_rows: N.
        num_strata: m <= N.
        key: seed, round, epoch and step; the draw depends on nothing else.

    Returns:
        (m,) int64, rising; (m,) int64, the number of rows that each of them stands for.
    """
    bounds = strata_bounds(num_rows, num_strata)
    sizes = np.diff(bounds)
    generator = np.random.default_rng([*key, 0x64726177])
    return bounds[:-1] + (generator.random(num_strata) * sizes).astype(np.int64), sizes
