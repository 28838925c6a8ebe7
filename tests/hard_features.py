"""Unit vectors that are not completely random but still challenging to index."""

import numpy as np


def clustered_rows(rng, n, d, latent=16):
    """(n, d) float32: sqrt(n) clusters of unequal sizes and spreads in a latent space, bent into d dimensions."""
    clusters = max(2, int(n**0.5))
    weights = np.arange(1, clusters + 1) ** -0.5
    which = rng.choice(clusters, n, p=weights / weights.sum())
    centres = rng.standard_normal((clusters, latent), dtype=np.float32)
    spreads = rng.uniform(0.2, 0.8, clusters).astype(np.float32)[which, None]
    points = centres[which] + spreads * rng.standard_normal((n, latent), dtype=np.float32)
    rows = np.sin(points @ rng.standard_normal((latent, d), dtype=np.float32) * np.float32(2 / latent**0.5))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
