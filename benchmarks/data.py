"""Features to measure with: unit vectors that are not completely random but still challenging."""

import numpy as np

_ROWS_A_TURN = 10_000


def clustered_unit_vectors(num_rows: int, dim: int, seed: int = 0, latent: int = 16) -> np.ndarray:
    """Clusters of unequal size and width on a curved surface: x = g / |g|, g = sin(2 A z / sqrt(latent)).

    Uniform vectors would be too kind to exact methods (128 directions, all neighbours equally far, entropies all the
    same) and too hard for approximate ones; well separated clusters the other way round. Here z has ``latent`` = 16
    dimensions, sqrt(N) clusters of sizes ~ 1/sqrt(rank) and widths of 0.2 to 0.8 of their distance, so they overlap;
    the sine bends them into all D dimensions, so no linear projection undoes it. Rows are in random order: the first n
    of them are a fair sample of the whole.

    Args:
        num_rows: N.
        dim: D.
        seed: the same seed gives the same vectors.
        latent: dimensions in which the clusters lie.

    Returns:
        (N, D) float32, unit length.
    """
    rng = np.random.default_rng(seed)
    clusters = max(2, int(num_rows**0.5))
    weights = np.arange(1, clusters + 1) ** -0.5
    centres = rng.standard_normal((clusters, latent), dtype=np.float32)
    spreads = rng.uniform(0.2, 0.8, clusters).astype(np.float32)
    bend = rng.standard_normal((latent, dim), dtype=np.float32) * np.float32(2 / latent**0.5)
    rows = np.empty((num_rows, dim), np.float32)
    for start in range(0, num_rows, _ROWS_A_TURN):
        part = rows[start : start + _ROWS_A_TURN]
        which = rng.choice(clusters, len(part), p=weights / weights.sum())
        noise = rng.standard_normal((len(part), latent), dtype=np.float32)
        part[:] = np.sin((centres[which] + spreads[which, None] * noise) @ bend)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows
