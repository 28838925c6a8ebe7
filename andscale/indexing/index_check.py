"""What is looked at before FAISS reads an index file that may be a stranger's, and what a child process tries first.

A manifest proves that a file is the one it was made for, not that its maker meant well.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError

# fourcc -> kind, bytes of the file that a vector of D numbers takes at least, as (a number, bytes a vector)
_KINDS: dict[bytes, tuple[str, int, int]] = {
    b"IxM2": ("flat", 4, 8),
    b"IwFl": ("ivf_flat", 4, 8),
    b"IxRF": ("ivf_pq", 1, 9),
    b"IHNf": ("hnsw", 4, 4),
    b"IHNc": ("cagra", 0, 4),
    b"IHc2": ("cagra", 0, 4),
}
_HEADER = struct.Struct("<4siqqqBi")
_INNER_PRODUCT = 0


def check_header(path: Path, recorded: tuple[object, object, int]) -> None:
    """Compare the first bytes of an index file with its manifest; FAISS does not see it before.

    Args:
        path: the file.
        recorded: kind, D and N by the manifest.

    Raises:
        RunError: another kind than ours, D or N other than recorded, or fewer bytes than N vectors take.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    size = path.stat().st_size
    fourcc = head[:4]
    if fourcc not in _KINDS or len(head) < _HEADER.size:
        shown = fourcc.decode("ascii", "backslashreplace")
        raise RunError(f"{path} cannot be read as an index: it begins with {shown!r}, which is none of ours")
    kind, number_bytes, vector_bytes = _KINDS[fourcc]
    _, dim, num_vectors, _, _, is_trained, metric = _HEADER.unpack(head)
    if (kind, dim, num_vectors) != recorded:
        raise RunError(
            f"{path} holds {kind}, D = {dim}, N = {num_vectors}; its manifest says {recorded[0]}, "
            f"D = {recorded[1]}, N = {recorded[2]}"
        )
    if metric != _INNER_PRODUCT or not is_trained:
        raise RunError(f"{path} is an index of another metric, or an unfinished one: none of ours")
    if dim < 1 or num_vectors < 0 or num_vectors * (number_bytes * dim + vector_bytes) > size:
        raise RunError(f"{path} has {size} bytes, too few for the {num_vectors} vectors of {dim} that it claims")


def try_index(path: str) -> None:
    """Read an index, look at every number in it that FAISS takes for a place in memory, and search it once.

    For a child process: see ``store/rehearsal.py``.

    Raises:
        RunError: ids or links outside 0..N-1. Anything: what FAISS throws.
    """
    from andscale.indexing.faiss_index import import_faiss, read_mapped

    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    index = read_mapped(Path(path))
    _check_places(faiss, index)
    if index.ntotal:
        index.search(np.full((1, index.d), index.d**-0.5, np.float32), min(2, index.ntotal))


def _check_places(faiss: Any, index: Any) -> None:
    index = faiss.downcast_index(index)
    match type(index).__name__:
        case "IndexIDMap2":
            inner = faiss.downcast_index(index.index)
            _check_ids(_values(faiss, index.id_map, np.int64), index.ntotal)
            _check_same("vectors", inner.ntotal, index.ntotal)
        case "IndexRefine":
            codes, vectors = faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
            _check_same("vectors", vectors.ntotal, index.ntotal)
            _check_same("vectors", codes.ntotal, index.ntotal)
            _check_same("dimensions", vectors.d, codes.d)
            _check_lists(faiss, codes)
        case "IndexIVFFlat":
            _check_lists(faiss, index)
        case "IndexHNSWFlat" | "IndexHNSWCagra":
            _check_graph(faiss, index)


def _check_lists(faiss: Any, index: Any) -> None:
    lists, total = index.invlists, 0
    quantizer = faiss.downcast_index(index.quantizer)
    _check_same("lists", quantizer.ntotal, index.nlist)
    _check_same("lists", lists.nlist, index.nlist)
    _check_same("dimensions", quantizer.d, index.d)
    _check_same("bytes a code", lists.code_size, index.code_size)
    for number in range(index.nlist):
        size = int(lists.list_size(number))
        total += size
        if size:
            _check_ids(faiss.rev_swig_ptr(lists.get_ids(number), size), index.ntotal)
    _check_same("vectors in its lists", total, index.ntotal)


def _check_graph(faiss: Any, index: Any) -> None:
    graph, count = index.hnsw, index.ntotal
    links = _values(faiss, graph.neighbors, np.int32)
    offsets, levels = _values(faiss, graph.offsets, np.uint64), _values(faiss, graph.levels, np.int32)
    _check_same("vectors", faiss.downcast_index(index.storage).ntotal, count)
    _check_same("levels", len(levels), count)
    _check_same("offsets", len(offsets), count + 1)
    if len(links) and (links.min() < -1 or links.max() >= count):
        raise RunError("it has links to vectors that are not there")
    if (np.diff(offsets.astype(np.int64)) < 0).any() or int(offsets[-1]) != len(links):
        raise RunError("its links do not lie where it says")
    if not -1 <= graph.entry_point < max(count, 1) or (count and graph.entry_point < 0):
        raise RunError("its graph begins at a vector that is not there")
    sums = _values(faiss, graph.cum_nneighbor_per_level, np.int32)
    if count and (levels.min() < 1 or levels.max() >= len(sums) or (np.diff(sums) < 0).any()):
        raise RunError("its graph has levels that are not there")
    if count and (np.diff(offsets.astype(np.int64)) != sums[levels]).any():
        raise RunError("its links do not lie where it says")
    if count and graph.max_level != levels[graph.entry_point] - 1:
        raise RunError("its graph begins at a level that is not there")


def _values(faiss: Any, vector: Any, dtype: type[np.generic]) -> np.ndarray:
    """A C++ vector as an array over its own memory."""
    size = int(vector.size())
    values: np.ndarray = faiss.rev_swig_ptr(vector.data(), size) if size else np.empty(0, dtype)
    return values.view(dtype)


def _check_ids(ids: np.ndarray, count: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= count):
        raise RunError(f"it has ids outside 0..{count - 1}")


def _check_same(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise RunError(f"it has {found} {what}, where {expected} belong")
