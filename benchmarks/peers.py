"""Ours and what it is measured against: one plain function each.

All have one signature: ``(features, k, tau) -> (ids, entropies)``, with features (N, D) float32 of unit length, ids
(N, k) int64 of the k most similar other samples, nearest first, and entropies (N,) in nats, or None from those that
find neighbours only. All use ``num_threads()`` threads.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.device_peers import TILE, bare_gemm, original_algorithm, torch_topk

Answer = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Peer:
    """Something to measure.

    Attributes:
        function: ``(features, k, tau) -> (ids, entropies)``.
        title: how tables call it.
        gives: what it computes, for tables.
    """

    function: Callable[[np.ndarray, int, float], Answer]
    title: str
    gives: str


def num_threads() -> int:
    """Threads that every peer uses: OMP_NUM_THREADS, or one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or cores)


def all_peers() -> dict[str, Peer]:
    """Every peer under a short name."""
    both, ids_only = "neighbours, H", "neighbours"
    return {
        "ours": Peer(andscale_discover, "andscale", both),
        "original": Peer(original, "original algorithm", both),
        "faiss": Peer(faiss_flat, "FAISS IndexFlatIP", ids_only),
        "torch": Peer(torch_matmul, "torch matmul + topk", ids_only),
        "sklearn": Peer(sklearn_brute, "scikit-learn brute", ids_only),
        "pynndescent": Peer(pynndescent_graph, "pynndescent", "neighbours, approximate"),
        "usearch": Peer(usearch_hnsw, "usearch HNSW", "neighbours, approximate"),
        "gemm": Peer(gemm, "bare GEMM, torch.mm", "nothing: the products"),
        "gemm in numpy": Peer(gemm_in_numpy, "bare GEMM, numpy", "nothing: the products"),
    }


def andscale_discover(features: np.ndarray, k: int, tau: float) -> Answer:
    """Ours: exact neighbours and entropies in one sweep over half of the pairs; checks features, settles ties."""
    from andscale.indexing.exact import Request, discover

    found = discover(features, Request(k, tau, num_threads=num_threads()))
    return found.neighbour_ids, found.entropies


def original(features: np.ndarray, k: int, tau: float) -> Answer:
    """The paper's algorithm: neighbours and entropies, exact but for float32 rounding; see ``original_algorithm``."""
    ids, entropies = original_algorithm(_tensor(features), k, tau)
    return ids.numpy(), entropies.numpy()


def torch_matmul(features: np.ndarray, k: int, tau: float) -> Answer:
    """Row blocks of one torch matmul and one top-k each: exact neighbours, no entropies."""
    return torch_topk(_tensor(features), k).numpy(), None


def gemm(features: np.ndarray, k: int, tau: float) -> Answer:
    """All N x N inner products into a reused buffer, looked at by nobody: no neighbours, no entropies."""
    bare_gemm(_tensor(features))
    return None, None


def gemm_in_numpy(features: np.ndarray, k: int, tau: float) -> Answer:
    """The same in numpy, whose BLAS is another than torch's and may suit the processor better: nothing else."""
    from threadpoolctl import threadpool_limits

    buffer = np.empty(TILE * TILE, np.float32)
    blocks = [features[start : start + TILE] for start in range(0, len(features), TILE)]
    with threadpool_limits(num_threads()):
        for rows in blocks:
            for columns in blocks:
                out = buffer[: len(rows) * len(columns)].reshape(len(rows), len(columns))
                np.matmul(rows, columns.T, out=out)
    return None, None


def faiss_flat(features: np.ndarray, k: int, tau: float) -> Answer:
    """FAISS's exact inner-product search of all samples among all: neighbours, no entropies."""
    import faiss

    faiss.omp_set_num_threads(num_threads())
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    return without_self(index.search(features, k + 1)[1], k), None


def sklearn_brute(features: np.ndarray, k: int, tau: float) -> Answer:
    """scikit-learn's exact search: neighbours, no entropies; Euclidean, the same order for unit vectors and faster."""
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(num_threads()):
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features)
        # without an argument a sample is not its own neighbour
        return search.kneighbors(return_distance=False), None


def pynndescent_graph(features: np.ndarray, k: int, tau: float) -> Answer:
    """Approximate neighbours by nearest-neighbour descent, the package's settings (30 a sample); no entropies."""
    from pynndescent import NNDescent

    width = max(30, k + 1)
    graph = NNDescent(features, metric="dot", n_neighbors=width, n_jobs=num_threads(), random_state=0)
    return without_self(graph.neighbor_graph[0], k), None


def usearch_hnsw(features: np.ndarray, k: int, tau: float) -> Answer:
    """Approximate neighbours from an HNSW graph, built and then searched, the package's settings; no entropies."""
    from usearch.index import Index

    index = Index(ndim=features.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(features)), features, threads=num_threads())
    found = index.search(features, k + 1, threads=num_threads())
    return without_self(found.keys.astype(np.int64), k), None


def without_self(ids: np.ndarray, k: int) -> np.ndarray:
    """The first k of each row's ids, (N, k) int64, leaving out the row's own id wherever it stands."""
    is_self = ids == np.arange(len(ids))[:, None]
    order = np.argsort(is_self, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1).astype(np.int64)


def _tensor(features: np.ndarray) -> Any:
    import torch

    torch.set_num_threads(num_threads())
    return torch.from_numpy(features)
