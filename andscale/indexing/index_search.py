"""Ask a FAISS index of any of our kinds: canonical order, no missing answers; and what its settings are.

``effort`` is the one setting that trades recall for speed at search time: nprobe of inverted lists, efSearch of graphs.
"""

from typing import Any

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.faiss_index import import_faiss, index_kind

_MARGIN = 8
"""Candidates beyond K: short runs of ties that reach over the K-th place still go by smaller id."""

_GPU_NEIGHBOURS = 512
"""FAISS's GPU kernels keep 2,048 candidates at most, and ivf_pq takes four for a neighbour."""

_GRAPH_EFFORT = (16, 1024)


def index_settings(index: Any) -> dict[str, Any]:
    """How the index was built and how hard it searches, JSON values, for its manifest."""
    faiss = import_faiss()
    match index_kind(index):
        case "ivf_flat":
            return {"nlist": int(index.nlist), "nprobe": int(index.nprobe)}
        case "ivf_pq":
            codes = faiss.downcast_index(index.base_index)
            return {
                "nlist": int(codes.nlist),
                "nprobe": int(codes.nprobe),
                "pq_bytes": int(codes.code_size),
                "refine": f"{index.k_factor:.0f}x sq8",
            }
        case "hnsw" | "cagra":
            graph = index.hnsw
            return {
                "M": int(graph.nb_neighbors(0)) // 2,
                "efConstruction": int(graph.efConstruction),
                "efSearch": int(graph.efSearch),
            }
        case _:
            return {}


def effort_range(index: Any) -> tuple[int, int]:
    """The least and the most effort that make sense: 1 to all lists, or the graph's range."""
    lists = _inverted_lists(index)
    return _GRAPH_EFFORT if lists is None else (1, int(lists.nlist))


def set_effort(index: Any, effort: int) -> None:
    """Make an effort the index's own; it is saved with it."""
    lists = _inverted_lists(index)
    if lists is None:
        index.hnsw.efSearch = effort
    else:
        lists.nprobe = effort


def effort_parameters(index: Any, effort: int) -> Any:
    """FAISS's search parameters for one search with this effort."""
    faiss = import_faiss()
    match index_kind(index):
        case "ivf_flat":
            return faiss.SearchParametersIVF(nprobe=effort)
        case "ivf_pq":
            inner = faiss.SearchParametersIVF(nprobe=effort)
            return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
        case _:
            return faiss.SearchParametersHNSW(efSearch=effort)


def search_thoroughly(index: Any, queries: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Search all lists, or all vectors of a graph: slow, (Q, K) float32 and (Q, K) int64 without a -1."""
    if _inverted_lists(index) is not None:
        _, most = effort_range(index)
        found: tuple[np.ndarray, np.ndarray] = index.search(
            queries, num_neighbours, params=effort_parameters(index, most)
        )
        return found
    found = import_faiss().downcast_index(index.storage).search(queries, num_neighbours)
    return found


def search(index: Any, queries: np.ndarray, num_neighbours: int, gpu_copy: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The K most similar samples of every query, in canonical order: larger similarity first, then smaller id.

    Where inverted lists hold too little or a graph does not lead on, these queries are searched with more effort
    until they have K answers.

    Args:
        index: from ``build_index`` or ``open_index``.
        queries: (Q, D) float32, unit length if the similarities are to be cosines.
        num_neighbours: K, at most N. A sample that is asked for itself is its own first neighbour.
        gpu_copy: ``to_gpu(index)``, to be searched in the index's place; the index still finds what the copy lacks.

    Returns:
        (Q, K) float32, the similarities: exact up to float32 but for ``ivf_pq``, which knows 8 bits a dimension.
        (Q, K) int64, sample ids.

    Raises:
        UsageError: queries of another type, shape or dimension, or not finite; K out of range.
    """
    _check_queries(index, queries, num_neighbours)
    count = min(num_neighbours + _MARGIN, int(index.ntotal))
    searched = index if gpu_copy is None or count > _GPU_NEIGHBOURS else gpu_copy
    similarities, ids = searched.search(queries, count)
    short = np.flatnonzero(ids[:, num_neighbours - 1] < 0)  # FAISS puts what it did not find last
    if len(short):
        similarities[short], ids[short] = _search_wider(index, queries[short], num_neighbours, count)
    similarities[ids < 0] = -np.inf
    order = np.lexsort((ids, -similarities), axis=1)[:, :num_neighbours]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(ids, order, 1)


def _search_wider(index: Any, queries: np.ndarray, num_neighbours: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Search with four times the effort until every query has K of ``count`` answers, at the end thoroughly."""
    lists = _inverted_lists(index)
    if lists is not None:
        effort = 4 * int(lists.nprobe)
        while effort < lists.nlist:
            similarities, ids = index.search(queries, count, params=effort_parameters(index, effort))
            if (ids[:, num_neighbours - 1] >= 0).all():
                return similarities, ids
            effort *= 4
    return search_thoroughly(index, queries, count)


def _inverted_lists(index: Any) -> Any:
    """The ``IndexIVF`` in an index, None in a graph."""
    faiss = import_faiss()
    match index_kind(index):
        case "ivf_flat":
            return index
        case "ivf_pq":
            return faiss.downcast_index(index.base_index)
        case _:
            return None


def _check_queries(index: Any, queries: np.ndarray, num_neighbours: int) -> None:
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != index.d:
        raise UsageError(
            f"queries must be float32 of shape (Q, {index.d}), these are {queries.dtype} of shape {queries.shape}"
        )
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise UsageError(f"query {int(np.argmin(finite))} has values that are not finite")
    if not 1 <= num_neighbours <= index.ntotal:
        raise UsageError(f"k = {num_neighbours} neighbours: the index holds {index.ntotal}, so 1 to {index.ntotal}")
