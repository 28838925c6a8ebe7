"""Purity of the features' neighbourhoods: how often the nearest training samples have a sample's label."""

import numpy as np
import torch

from andscale.distributed import all_reduce_sum
from andscale.errors import UsageError
from andscale.evaluation.knn import nearest
from andscale.metrics import Progress

_BLOCK_QUERIES = 4096
_REPORTED_K = (1, 10, 100)


def reported_k(most: int) -> list[int]:
    """The K at which purity is measured: 1, 10 and 100 up to ``most``, and ``most``."""
    return sorted({k for k in _REPORTED_K if k < most} | {most})


def neighbour_purity(train: np.ndarray, audit_labels: np.ndarray, rows: range, most: int) -> dict[str, float]:
    """Share of the K nearest other samples that have the sample's label, its mean over all samples of all ranks.

    Args:
        train: (N, D) float32, unit length, the same on every rank.
        audit_labels: (N,) int32, no -1 in it.
        rows: the samples that this rank asks for.
        most: the largest K, less than N.

    Returns:
        K as text -> purity in [0, 1].

    Raises:
        UsageError: K >= N.
    """
    if most >= len(train):
        raise UsageError(f"evaluation.purity_neighbours = {most}, but there are {len(train)} samples: choose fewer")
    ks = reported_k(most)
    agreeing = torch.zeros(len(ks), dtype=torch.int64)
    with Progress("purity", len(rows), "samples", enabled=rows.start == 0) as progress:
        for start in range(rows.start, rows.stop, _BLOCK_QUERIES):
            ids = np.arange(start, min(start + _BLOCK_QUERIES, rows.stop))
            _, found = nearest(train, train[ids], most + 1)
            agrees = audit_labels[without_itself(found, ids)] == audit_labels[ids, None]
            agreeing += torch.tensor([int(agrees[:, :k].sum()) for k in ks])
            progress.advance(len(ids))
    all_reduce_sum(agreeing)
    return {str(k): count / (k * len(train)) for k, count in zip(ks, agreeing.tolist(), strict=True)}


def without_itself(found: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Leave each sample out of its own list by id; where duplicates pushed it out of the list, leave out the last.

    Args:
        found: (b, K + 1) int64, nearest first.
        ids: (b,) int64, whose lists they are.

    Returns:
        (b, K) int64.
    """
    is_itself = found == ids[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True
    others: np.ndarray = found[~is_itself].reshape(len(found), -1)
    return others
