"""The peers that are plain torch and run wherever their features are: on the CPU and on a GPU."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ORIGINAL_BATCH = 100
"""Queries a batch of the published code."""

TILE = 2048
"""Faster than 512, 1024, 4096 and whole rows on two cores with 1 MiB of L2 each."""


def original_algorithm(features: "torch.Tensor", k: int, tau: float) -> "tuple[torch.Tensor, torch.Tensor]":
    """The original algorithm as the paper describes it, written anew: two passes over the memory in batches of 100.

        1. p_ij = softmax_j(x_i . x_j / tau), H_i = - sum_j p_ij log p_ij   (eq 5)
        2. the k largest x_i . x_j, j != i                                  (eq 1)

    The one difference: a sample is left out of its own neighbours by id, not by dropping the first column.

    Args:
        features: (N, D) float32, unit length, on any device.
        k: neighbours.
        tau: temperature.

    Returns:
        (N, k) int64 ids and (N,) float32 entropies, on that device.
    """
    # results of their own: small ones left between the large temporaries would pin 24 MB of the heap a batch
    ids, entropies = _no_ids(features, k), features.new_empty(len(features))
    batches = [slice(start, start + ORIGINAL_BATCH) for start in range(0, len(features), ORIGINAL_BATCH)]
    for batch in batches:
        p = (features[batch] @ features.T / tau).softmax(dim=1)
        entropies[batch] = -(p * p.log()).sum(dim=1)
    for batch in batches:
        scores = features[batch] @ features.T
        scores.diagonal(batch.start).fill_(-2)
        ids[batch] = scores.topk(k, dim=1).indices
    return ids, entropies


def torch_topk(features: "torch.Tensor", k: int, block_bytes: int = 64 * 1024**2) -> "torch.Tensor":
    """The k largest x_i . x_j, j != i: a matmul into a reused buffer and a top-k, block by block; no entropies.

    Args:
        features: (N, D) float32, unit length, on any device.
        k: neighbours.
        block_bytes: of similarities at a time.

    Returns:
        (N, k) int64 ids, on that device.
    """
    import torch

    num_rows = max(1, min(len(features), block_bytes // (4 * len(features))))
    buffer = features.new_empty((num_rows, len(features)))
    ids = _no_ids(features, k)
    for start in range(0, len(features), num_rows):
        rows = features[start : start + num_rows]
        scores = torch.mm(rows, features.T, out=buffer[: len(rows)])
        scores.diagonal(start).fill_(-2)
        ids[start : start + num_rows] = scores.topk(k, dim=1).indices
    return ids


def bare_gemm(features: "torch.Tensor", tile: int = TILE) -> None:
    """The floor of whoever scores all pairs: N x N x D products, tile by tile into a buffer that stays in the cache.

    Args:
        features: (N, D) float32, on any device.
        tile: rows and columns of a tile.
    """
    import torch

    buffer = features.new_empty(tile * tile)
    for rows in features.split(tile):
        for columns in features.split(tile):
            out = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=out)


def _no_ids(features: "torch.Tensor", k: int) -> "torch.Tensor":
    import torch

    return torch.empty((len(features), k), dtype=torch.int64, device=features.device)
