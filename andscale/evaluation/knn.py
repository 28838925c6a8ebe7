"""Weighted k-nearest-neighbour classification of features."""

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.faiss_index import to_gpu
from andscale.indexing.index_building import build_index
from andscale.indexing.index_search import search


def weighted_knn_predict(
    train: np.ndarray, train_labels: np.ndarray, queries: np.ndarray, num_neighbours: int, temperature: float
) -> np.ndarray:
    """Classify by the votes of the K most similar training samples, each weighing exp(s / temperature).

        class(x) = argmax_c sum_{j in K nearest, label_j = c} exp(s_j / temperature)

    Equal votes go to the smaller class number.

    Args:
        train: (N, D) float32, unit length.
        train_labels: (N,) int32, no -1 in it.
        queries: (M, D) float32, unit length.
        num_neighbours: K; all N vote where N < K.
        temperature: > 0 (0.07 as published).

    Returns:
        (M,) int32.
    """
    if (train_labels < 0).any():
        raise UsageError("training samples without a label cannot vote")
    index = build_index(np.ascontiguousarray(train, dtype=np.float32), "flat")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    similarities, ids = search(index, queries, min(num_neighbours, len(train)), to_gpu(index))
    # exp((s - 1) / t) votes as exp(s / t) does and cannot overflow
    weights = np.exp((similarities.astype(np.float64) - 1) / temperature)
    num_classes = int(train_labels.max()) + 1
    votes = np.zeros((len(queries), num_classes))
    rows = np.repeat(np.arange(len(queries)), ids.shape[1])
    np.add.at(votes, (rows, train_labels[ids].reshape(-1)), weights.reshape(-1))
    predicted: np.ndarray = votes.argmax(axis=1).astype(np.int32)
    return predicted
