"""Build an index of any kind, and set how hard it searches from the vectors that it holds."""

from typing import Any

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.faiss_index import HNSW_M, build_flat, import_faiss, kinds_here, spread
from andscale.indexing.index_search import effort_parameters, effort_range, search_thoroughly, set_effort
from andscale.metrics import Progress

_ADD_ROWS = 65_536
_TUNE_ROWS = 512
_TUNE_RECALL = 0.99
_SAME = 1e-6
"""Similarities that differ by less are one: the same pair scored by two kernels."""

_POINTS_PER_LIST = 64
_MIN_POINTS_PER_LIST = 39
"""FAISS's advice is 39 to 256 training points a centroid; k-means costs in proportion."""

_REFINE_FACTOR = 4
"""ivf_pq: candidates a neighbour that the product quantizer hands to the 8-bit vectors."""

_HNSW_EF_CONSTRUCTION = 100
_CAGRA_DEGREE = 64


def build_index(features: np.ndarray, kind: str, seed: int = 0) -> Any:
    """An index over the features, ids = row numbers; the same for the same seed, machine and FAISS.

    The index keeps its own copy of what it needs of the vectors; nothing else of their size is allocated. GPUs
    train the lists and assign the vectors to them where there are any; the result is on the CPU.

    Args:
        features: (N, D) float32, C-contiguous, unit length.
        kind: ``flat``, ``ivf_flat``, ``ivf_pq``, ``hnsw`` or ``cagra``.
        seed: of the training sample and of k-means.

    Raises:
        UsageError: a kind that does not exist or cannot be built here; no features.
    """
    assert features.dtype == np.float32 and features.ndim == 2 and features.flags.c_contiguous
    if not features.size:
        raise UsageError("an index of no vectors cannot be built")
    kinds = kinds_here()
    if kind not in kinds:
        raise UsageError(f"index kind {kind!r} cannot be built here: {', '.join(kinds)} can")
    match kind:
        case "flat":
            return build_flat(features)
        case "ivf_flat" | "ivf_pq":
            index = _build_ivf(features, kind, seed)
        case "hnsw":
            index = _build_hnsw(features)
        case "cagra":
            index = _build_cagra(features)
    _tune(index, features, seed)
    return index


def _build_ivf(features: np.ndarray, kind: str, seed: int) -> Any:
    """Inverted lists, about 4 sqrt(N) of them, over whole vectors or over product-quantizer codes.

    The codes of ``ivf_pq`` (D/4 bytes) find too little by themselves (recall@1 0.62 where 0.98 can be had), so they
    propose four candidates a neighbour, which vectors of 8 bits a dimension score again.
    """
    faiss = import_faiss()
    num_samples, dim = features.shape
    if kind == "ivf_pq" and num_samples < 2:
        raise UsageError("ivf_pq needs two samples at least: take flat")
    num_lists = max(1, min(int(4 * num_samples**0.5), num_samples // _MIN_POINTS_PER_LIST))
    rng = np.random.default_rng([seed, 0x697666])
    # 8 bits need 256 points to train
    count = min(num_samples, max(_POINTS_PER_LIST * num_lists, 256 * _MIN_POINTS_PER_LIST))
    sample = features[np.sort(rng.choice(num_samples, count, replace=False))]
    quantizer = faiss.IndexFlatIP(dim)
    if kind == "ivf_flat":
        lists = faiss.IndexIVFFlat(quantizer, dim, num_lists, faiss.METRIC_INNER_PRODUCT)
        clusterings = [lists.cp]
    else:
        num_codes = max(m for m in range(1, max(dim // 4, 1) + 1) if dim % m == 0)
        bits = min(8, count.bit_length() - 1)
        lists = faiss.IndexIVFPQ(quantizer, dim, num_lists, num_codes, bits, faiss.METRIC_INNER_PRODUCT)
        clusterings = [lists.cp, lists.pq.cp]
    for clustering in clusterings:
        clustering.seed = seed % 2**31
        clustering.min_points_per_centroid = 1  # small N: we know
    searched = spread(faiss.IndexFlatIP(dim))
    lists.clustering_index = searched
    lists.train(sample)
    lists.clustering_index = None
    vectors = None
    if kind == "ivf_pq":
        vectors = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        vectors.train(sample)
    _fill(lists, vectors, features)
    if vectors is None:
        return lists
    index = faiss.IndexRefine(lists, vectors)
    index.k_factor = _REFINE_FACTOR
    return index


def _fill(lists: Any, vectors: Any, features: np.ndarray) -> None:
    """Add all rows to the inverted lists, and to the 8-bit vectors where there are such.

    Finding the lists, N nlist D multiplications, is what costs; it is done on the GPUs where there are any.
    """
    faiss = import_faiss()
    assigner = spread(faiss.downcast_index(lists.quantizer))
    with Progress("index", len(features), "samples") as progress:
        for start in range(0, len(features), _ADD_ROWS):
            block = features[start : start + _ADD_ROWS]
            _, nearest_list = assigner.search(block, 1)
            lists.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(nearest_list))
            if vectors is not None:
                vectors.add(block)
            progress.advance(len(block))


def _build_hnsw(features: np.ndarray) -> Any:
    """A graph of 32 links a vector (64 on the lowest level).

    FAISS draws the levels with a seed of its own. Its graph is the same for any number of threads from 1.15.1 on;
    older ones must be built with one thread to be the same twice.
    """
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(features.shape[1], HNSW_M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
    with Progress("index", len(features), "samples") as progress:
        for start in range(0, len(features), _ADD_ROWS):
            block = features[start : start + _ADD_ROWS]
            index.add(block)
            progress.advance(len(block))
    return index


def _build_cagra(features: np.ndarray) -> Any:
    """A graph built on one GPU by cuVS, as the ``IndexHNSWCagra`` that a CPU reads and searches.

    Written from FAISS's documentation and its tests (faiss/gpu/test/test_cagra.py); only a machine with cuVS can
    run it, and none has so far.
    """
    faiss = import_faiss()
    num_samples, dim = features.shape
    if num_samples <= 2 * _CAGRA_DEGREE:
        raise UsageError(f"cagra needs more than {2 * _CAGRA_DEGREE} samples, there are {num_samples}: take flat")
    config = faiss.GpuIndexCagraConfig()
    config.graph_degree = _CAGRA_DEGREE
    config.intermediate_graph_degree = 2 * _CAGRA_DEGREE
    on_gpu = faiss.GpuIndexCagra(faiss.StandardGpuResources(), dim, faiss.METRIC_INNER_PRODUCT, config)
    on_gpu.train(features)  # adds them too
    index = faiss.IndexHNSWCagra()
    on_gpu.copyTo(index)
    return index


def _tune(index: Any, features: np.ndarray, seed: int) -> None:
    """Set the least effort, in steps of half, with which 99 % of 512 rows find a nearest other row.

    Right is what the index finds with all its lists, or what the vectors of a graph say: no effort finds more.
    Costs 512 scans of the index and, because the efforts grow geometrically, three times the last one's search.
    """
    rng = np.random.default_rng([seed, 0x74756E])
    rows = np.sort(rng.choice(len(features), min(_TUNE_ROWS, len(features)), replace=False))
    queries = features[rows]
    count = min(2, len(features))
    best = _nearest_other(search_thoroughly(index, queries, count), rows)
    least, most = effort_range(index)
    effort = least
    while effort < most:
        found = _nearest_other(index.search(queries, count, params=effort_parameters(index, effort)), rows)
        if (found >= best - _SAME).mean() >= _TUNE_RECALL:
            break
        effort += (effort + 1) // 2
    set_effort(index, min(effort, most))


def _nearest_other(found: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """(n,) float32, the similarity of the first found that is not the row itself; -inf where only that was found."""
    similarities, ids = found
    others = np.where((ids == rows[:, None]) | (ids < 0), -np.inf, similarities)
    best: np.ndarray = others.max(axis=1)
    return best
