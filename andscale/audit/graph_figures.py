"""Figures of the neighbour graph that need no labels: mutual pairs, hubs, components, near-duplicates."""

import numpy as np

from andscale.store.neighbourhoods import NeighbourhoodTable

_BLOCK_VALUES = 1 << 23
"""Ids that are compared at a time: 64 MiB."""


def mutual_fraction(neighbour_ids: np.ndarray) -> float:
    """Share of the pairs (i, j), j among the neighbours of i, in which i is among the neighbours of j.

    Args:
        neighbour_ids: (N, K) int64.
    """
    count, width = neighbour_ids.shape
    block = max(1, _BLOCK_VALUES // (width * width))
    mutual = 0
    for start in range(0, count, block):
        ids = neighbour_ids[start : start + block]
        rows = np.arange(start, start + len(ids))
        # (rows, K neighbours, their K neighbours)
        mutual += int((neighbour_ids[ids] == rows[:, None, None]).any(axis=2).sum())
    return float(mutual / (count * width))


def k_occurrence(neighbour_ids: np.ndarray) -> np.ndarray:
    """How often each sample is among the K neighbours of another, (N,) int64; its mean is K."""
    counts: np.ndarray = np.bincount(neighbour_ids.ravel(), minlength=len(neighbour_ids))
    return counts


def skewness(values: np.ndarray) -> float:
    """Third standardised moment, mean((v - m)^3) / s^3; 0 for equal values. Of ``k_occurrence`` it measures hubness."""
    centred = values - values.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean() / deviation**3) if deviation else 0.0


def components(num_samples: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components of an undirected graph.

    Labels are handed on along the edges and shortened by pointer jumping, so long chains take few passes.

    Args:
        num_samples: N.
        pairs: (E, 2) int64, edges.

    Returns:
        (N,) int64, for each sample the smallest id of its component.
    """
    labels = np.arange(num_samples)
    a, b = pairs[:, 0], pairs[:, 1]
    while len(a):
        least = np.minimum(labels[a], labels[b])
        # the roots of both ends are hooked to the smaller one
        np.minimum.at(labels, labels[a], least)
        np.minimum.at(labels, labels[b], least)
        while True:
            shorter = labels[labels]
            if np.array_equal(shorter, labels):
                break
            labels = shorter
        left = labels[a] != labels[b]
        a, b = a[left], b[left]
    return labels


def neighbour_pairs(neighbour_ids: np.ndarray) -> np.ndarray:
    """(N K, 2) int64: every sample with each of its neighbours."""
    count, width = neighbour_ids.shape
    return np.stack([np.repeat(np.arange(count), width), neighbour_ids.ravel()], axis=1)


def near_duplicates(table: NeighbourhoodTable, threshold: float) -> list[np.ndarray]:
    """Groups of samples that are linked by similarities of at least ``threshold``.

    Only the K neighbours of each sample are looked at. In an exact table a group of more than K equal images is linked
    through them, as equal similarities go by id; an approximate one may miss pairs, and may split such a group.

    Returns:
        (n,) int64 ascending ids of each group of two or more, the largest group first, then by smallest id.
    """
    rows, places = np.nonzero(table.similarities >= threshold)
    pairs = np.stack([rows, table.neighbour_ids[rows, places]], axis=1)
    members, inverse = np.unique(pairs, return_inverse=True)
    roots = components(len(members), inverse.reshape(pairs.shape))
    order = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[order])) + 1
    groups = [members[part] for part in np.split(order, cuts) if len(part)]
    return sorted(groups, key=lambda group: (-len(group), int(group[0])))


def largest_hubs(occurrence: np.ndarray, num_hubs: int) -> list[tuple[int, int]]:
    """(sample id, k-occurrence) of the samples that are most often neighbours; equal ones by id."""
    order = np.argsort(-occurrence, kind="stable")[:num_hubs]
    return [(int(i), int(occurrence[i])) for i in order]
