"""Weighted k-nearest-neighbour classification of features, at several K from one search."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from andscale.errors import UsageError
from andscale.evaluation.ranking import top_classes
from andscale.indexing.candidates import DenseSearch, add_candidates, search_all, undecided_rows
from andscale.indexing.faiss_index import import_faiss, num_gpus
from andscale.indexing.partials import Partials
from andscale.metrics import Progress

_BLOCK_QUERIES = 4096
_BLOCK_VOTES = 2**23
"""Votes, queries times classes, that are held at once: 64 MiB."""

_GPU_NEIGHBOURS = 2048
_GPU_VECTOR_BYTES = 4 * 1024**3


def weighted_knn(
    train: np.ndarray, train_labels: np.ndarray, queries: np.ndarray, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    """Classify by the votes of the K most similar training samples, each weighing exp(s / temperature).

        votes_c(x) = sum_{j in K nearest, label_j = c} exp(s_j / temperature)

    Equal votes go to the smaller class number. A class without a vote is not proposed, so that with K = 1 the five
    best classes are one.

    Args:
        train: (N, D) float32, unit length.
        train_labels: (N,) int32, no -1 in it.
        queries: (M, D) float32, unit length.
        ks: every K to vote with; all N vote where N < K.
        temperature: > 0 (0.07 as published).

    Returns:
        K -> (M, 5) int32, the classes with the most votes, most first; -1 where fewer have any.
    """
    if (train_labels < 0).any():
        raise UsageError("training samples without a label cannot vote")
    num_classes = int(train_labels.max()) + 1
    most = min(max(ks), len(train))
    found: dict[int, list[np.ndarray]] = {k: [np.empty((0, 5), np.int32)] for k in sorted(ks)}
    block = max(1, min(_BLOCK_QUERIES, _BLOCK_VOTES // num_classes))
    for start in range(0, len(queries), block):
        similarities, ids = nearest(train, queries[start : start + block], most)
        for k, votes in _votes(similarities, train_labels[ids], num_classes, (sorted(ks), temperature)):
            found[k].append(top_classes(np.where(votes > 0, votes, -np.inf)))
    return {k: np.concatenate(parts) for k, parts in found.items()}


def nearest(train: np.ndarray, queries: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The K most similar training samples of every query: larger similarity first, then smaller id.

    FAISS proposes K and a margin; these are scored again in float64, one pair like the other wherever it is scored,
    and rows in which float32 may have left out one of the K (long runs of ties) are searched whole. So the answer does
    not depend on how queries were shared out, on threads or on the device.

    Args:
        train: (N, D) float32, unit length.
        queries: (M, D) float32, unit length.
        num_neighbours: K, at most N.

    Returns:
        (M, K) float32 similarities; (M, K) int64 row numbers of ``train``.
    """
    num_samples, dim = train.shape
    num_threads = torch.get_num_threads()
    count = min(num_neighbours + num_neighbours // 4 + 8, num_samples)
    train, queries = np.ascontiguousarray(train, np.float32), np.ascontiguousarray(queries, np.float32)
    scores, ids = _search(queries, train, count)
    partials = Partials.empty(len(queries), num_neighbours)
    if count < num_samples:
        partials.cuts[:] = scores[:, -1]
    add_candidates(partials, queries, train, 0, ids, num_threads)
    rows = undecided_rows(partials, dim)
    if len(rows):
        again = Partials.empty(len(rows), num_neighbours)
        with Progress("kNN, rows that float32 leaves open", len(rows) * num_samples, "pairs") as progress:
            # no query is a training sample, so none is left out; the temperature is of sums that nobody reads
            search = DenseSearch(1.0, num_threads, progress)
            search_all(queries[rows], np.full(len(rows), -1), train, 0, again, search)
        partials.scores[rows], partials.ids[rows] = again.scores, again.ids
    return partials.scores, partials.ids


def _search(queries: np.ndarray, train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's flat search, on this rank's GPU where it has one: (M, count) float32 and int64."""
    faiss = import_faiss()
    if torch.cuda.is_available() and num_gpus() and count <= _GPU_NEIGHBOURS:
        found: tuple[np.ndarray, np.ndarray] = faiss.knn_gpu(
            _gpu_resources(),
            queries,
            train,
            count,
            metric=faiss.METRIC_INNER_PRODUCT,
            device=torch.cuda.current_device(),
            vectorsMemoryLimit=_GPU_VECTOR_BYTES,
        )
        return found
    faiss.omp_set_num_threads(torch.get_num_threads())  # this rank's share of the cores
    found = faiss.knn(queries, train, count, metric=faiss.METRIC_INNER_PRODUCT)
    return found


@cache
def _gpu_resources() -> Any:
    """FAISS's working memory on this rank's GPU, taken once and not for every block of queries."""
    torch.cuda.empty_cache()  # what torch keeps for itself is not there for FAISS
    return import_faiss().StandardGpuResources()


def _votes(
    similarities: np.ndarray, labels: np.ndarray, num_classes: int, how: tuple[Sequence[int], float]
) -> Iterator[tuple[int, np.ndarray]]:
    """(K, votes (M, C) float64) for every K of ``how``, ascending; ``how`` is the list of K and the temperature."""
    ks, temperature = how
    # exp((s - s_1) / t) votes as exp(s / t) does, cannot overflow, and the nearest always has a vote
    values = similarities.astype(np.float64)
    weights = np.exp((values - values[:, :1]) / temperature)
    places = np.arange(len(labels))[:, None] * num_classes + labels
    votes, before = np.zeros(len(labels) * num_classes), 0
    for k in ks:
        new = slice(before, k)
        votes += np.bincount(places[:, new].ravel(), weights[:, new].ravel(), len(votes))
        before = k
        yield k, votes.reshape(-1, num_classes)
