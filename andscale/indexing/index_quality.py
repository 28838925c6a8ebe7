"""What an index is worth: its recall against the exact answer, its speed, its size."""

import time
from typing import Any

import numpy as np

from andscale.indexing.faiss_index import import_faiss, index_kind
from andscale.indexing.index_search import index_settings, search

_TILE_BYTES = 128 * 1024**2
"""Of a block of float32 similarities; two are held while one replaces the other."""

_MARGIN = 8
"""Candidates beyond k that are scored again in float64: room for float32's rounding."""

_TIMED_SECONDS = 0.5
_SINGLE_QUERIES = 50


def measure_index(index: Any, features: np.ndarray, rows: np.ndarray, num_bytes: int | None = None) -> dict[str, Any]:
    """Search some samples' neighbours and compare with the exact answer over all samples.

    recall@k is the share of the k neighbours returned that are as similar, in float64 and up to the rounding of
    float32, as the exact k-th; the sample itself is left out by id. Where N <= 10, recall@10 is recall@(N - 1).

    Args:
        index: on the CPU, over ``features``.
        features: (N, D) float32, N >= 2.
        rows: (n,) int64, the samples that ask.
        num_bytes: size of the saved index; counted by writing it nowhere when not given.

    Returns:
        JSON values for the manifest: ``index_kind``, ``dim``, ``settings``, ``recall_at_1``, ``recall_at_10``,
        ``measured_rows``, ``queries_per_second`` (all rows as one batch), ``query_ms`` (one by one, median) and
        ``bytes``.
    """
    num_neighbours = min(10, len(features) - 1)
    assert num_neighbours >= 1 and len(rows) >= 1
    queries = features[rows]
    _, ids = search(index, queries, num_neighbours + 1)
    found = _similarities_of_others(features, rows, ids, num_neighbours)
    exact = exact_similarities(features, rows, num_neighbours)
    rounding = 2.0**-22 * features.shape[1] ** 0.5
    return {
        "index_kind": index_kind(index),
        "dim": int(index.d),
        "settings": index_settings(index),
        "recall_at_1": round(float((found[:, 0] >= exact[:, 0] - rounding).mean()), 4),
        "recall_at_10": round(float((found >= exact[:, -1:] - rounding).mean()), 4),
        "measured_rows": len(rows),
        "queries_per_second": round(_batch_rate(index, queries, num_neighbours)),
        "query_ms": round(1000 * _single_seconds(index, queries, num_neighbours), 3),
        "bytes": serialised_bytes(index) if num_bytes is None else num_bytes,
    }


def describe(figures: dict[str, Any]) -> str:
    """The figures of ``measure_index`` as a table of two lines."""
    settings = ", ".join(f"{name} {value}" for name, value in figures["settings"].items())
    columns = (
        ("index", figures["index_kind"]),
        ("recall@1", f"{figures['recall_at_1']:.4f}"),
        ("recall@10", f"{figures['recall_at_10']:.4f}"),
        ("queries/s", f"{figures['queries_per_second']:,}"),
        ("ms/query", f"{figures['query_ms']:.3f}"),
        ("MB", f"{figures['bytes'] / 1e6:,.1f}"),
        ("rows", f"{figures['measured_rows']:,}"),
        ("settings", settings or "exact"),
    )
    widths = [max(map(len, column)) for column in columns]
    lines = ("  ".join(c[i].rjust(w) for c, w in zip(columns[:-1], widths, strict=False)) for i in (0, 1))
    return "\n".join(f"{line}  {columns[-1][i]}" for i, line in enumerate(lines))


def exact_similarities(features: np.ndarray, rows: np.ndarray, num_neighbours: int) -> np.ndarray:
    """The similarities of the K nearest other samples, best first, from blocks of all similarities.

    Float32 products propose K + 8 samples, which are scored again in float64. Shares nothing with FAISS.

    Args:
        features: (N, D) float32.
        rows: (n,) int64.
        num_neighbours: K < N.

    Returns:
        (n, K) float64.
    """
    import torch

    queries = features[rows]
    count = min(num_neighbours + _MARGIN, len(features) - 1)
    best = torch.empty((len(rows), 0))
    ids = torch.empty((len(rows), 0), dtype=torch.int64)
    size = max(1, _TILE_BYTES // (4 * len(rows)))
    for start in range(0, len(features), size):
        scores = queries @ features[start : start + size].T  # (n, size)
        own = np.flatnonzero((rows >= start) & (rows < start + size))
        scores[own, rows[own] - start] = -np.inf
        block = torch.from_numpy(scores).topk(min(count, scores.shape[1]), dim=1)
        best, kept = torch.cat([best, block.values], 1).topk(min(count, best.shape[1] + block.values.shape[1]), dim=1)
        ids = torch.cat([ids, block.indices + start], 1).gather(1, kept)
    return -np.sort(-_score(features, rows, ids.numpy()), axis=1)[:, :num_neighbours]


def serialised_bytes(index: Any) -> int:
    """Bytes of the index as a file, without making one."""
    faiss = import_faiss()
    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda data: sizes.append(len(data))))
    return sum(sizes)


def _similarities_of_others(features: np.ndarray, rows: np.ndarray, ids: np.ndarray, num_neighbours: int) -> np.ndarray:
    """(n, K) float64, what the K nearest returned really score; the sample itself is left out by id."""
    is_other = ids != rows[:, None]
    first = np.argsort(~is_other, axis=1, kind="stable")[:, :num_neighbours]
    return _score(features, rows, np.take_along_axis(ids, first, 1))


def _score(features: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(n, c) float64 similarities of rows (n,) with samples (n, c); a row at a time: c vectors in float64."""
    scores = np.empty(ids.shape)
    for i, (row, others) in enumerate(zip(rows, ids, strict=True)):
        scores[i] = features[others].astype(np.float64) @ features[row].astype(np.float64)
    return scores


def _batch_rate(index: Any, queries: np.ndarray, num_neighbours: int) -> float:
    """Queries per second; batches are repeated for half a second."""
    answered, started, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < _TIMED_SECONDS:
        search(index, queries, num_neighbours)
        answered += len(queries)
        elapsed = time.perf_counter() - started
    return answered / elapsed


def _single_seconds(index: Any, queries: np.ndarray, num_neighbours: int) -> float:
    """Median seconds of one query asked alone."""
    times = []
    for i in range(min(_SINGLE_QUERIES, len(queries))):
        started = time.perf_counter()
        search(index, queries[i : i + 1], num_neighbours)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
