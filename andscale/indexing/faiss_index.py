"""The FAISS index that a round keeps: its kinds, which one to choose, its copy on GPUs, its file.

All kinds answer with inner products and with sample ids, which are row numbers. ``flat`` is exact; the others trade
recall for speed or memory.
"""

from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError, UsageError
from andscale.indexing.index_check import check_header
from andscale.store import artifacts
from andscale.store.rehearsal import rehearse

INDEX_NAME = "index.faiss"
KIND = "index"
HNSW_M = 32
"""Links a vector in a graph, twice as many on its lowest level."""

_GIB = 1024**3
_TABLE_BYTES = 4 * _GIB
_GPU_PQ_CODES = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96}
"""Bytes a code that FAISS's GPU kernels know."""


def import_faiss() -> Any:
    """The faiss module; UsageError saying what to install when there is none."""
    try:
        import faiss
    except ImportError as error:
        which = "install andscale[cpu], andscale[gpu] or andscale[cuvs]"
        raise UsageError(f"FAISS cannot be imported ({error}): {which}") from None
    return faiss


def num_gpus() -> int:
    """GPUs that FAISS sees; 0 for the build without them."""
    faiss = import_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def kinds_here() -> tuple[str, ...]:
    """The kinds that can be built on this machine: ``cagra`` needs a GPU and a FAISS with cuVS."""
    faiss = import_faiss()
    has_cagra = hasattr(faiss, "GpuIndexCagra") and "CUVS" in faiss.get_compile_options() and num_gpus() > 0
    return ("flat", "ivf_flat", "ivf_pq", "hnsw", *(("cagra",) if has_cagra else ()))


def choose_kind(num_samples: int, dim: int, memory_bytes: int, num_gpus: int) -> str:
    """The kind for N vectors of D float32 numbers.

    1. ``flat`` while a scan is cheap, because nothing is more right: 4 N D up to 1 GiB (30 ms a query on two cores;
       ImageNet's 1.28 M x 128, 0.6 GiB, take 20 ms), or up to 8 GiB a GPU, whose memory is tens of times as fast.
    2. Beyond, the fastest that fits: ``hnsw`` on CPUs (at 200,000 x 128 and recall@1 0.99, seven times as many
       queries a second as ``ivf_flat``), ``ivf_flat`` where there are GPUs, which train, fill and search it, and
       where the links of ``hnsw``, 8 M = 256 bytes a vector, do not fit.
    3. ``ivf_pq`` where the vectors themselves do not fit: D/4 + D + 8 bytes a vector.

    An index fits when it takes up to half of the memory: the features and the search need the rest. ``cagra`` is
    never chosen, only asked for: it needs a FAISS with cuVS, and its graph is searched on the CPU as ``hnsw`` is.

    Args:
        num_samples: N.
        dim: D.
        memory_bytes: main memory of the machine.
        num_gpus: that FAISS sees.
    """
    vectors = 4 * num_samples * dim
    room = memory_bytes // 2
    cheap_scan = 8 * _GIB * num_gpus if num_gpus else _GIB
    if vectors <= min(cheap_scan, room):
        return "flat"
    if not num_gpus and vectors + 8 * HNSW_M * num_samples <= room:
        return "hnsw"
    return "ivf_flat" if vectors + 8 * num_samples <= room else "ivf_pq"


def build_flat(features: np.ndarray) -> Any:
    """An exact inner-product index over features whose ids are their row numbers.

    Args:
        features: (N, D) float32.

    Returns:
        A ``faiss.IndexIDMap2`` around an ``IndexFlatIP``, on the CPU.
    """
    faiss = import_faiss()
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(features.shape[1]))
    index.add_with_ids(np.ascontiguousarray(features, dtype=np.float32), np.arange(len(features), dtype=np.int64))
    return index


def index_kind(index: Any) -> str:
    """``flat``, ``ivf_flat``, ``ivf_pq``, ``hnsw`` or ``cagra``.

    Raises:
        RunError: an index that andscale does not build.
    """
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    match type(index).__name__:
        case "IndexIDMap2" if isinstance(faiss.downcast_index(index.index), faiss.IndexFlat):
            return "flat"
        case "IndexIVFFlat":
            return "ivf_flat"
        case "IndexRefine" if isinstance(faiss.downcast_index(index.base_index), faiss.IndexIVFPQ):
            return "ivf_pq"
        case "IndexHNSWFlat":
            return "hnsw"
        case "IndexHNSWCagra":
            return "cagra"
        case name:
            raise RunError(f"an index of FAISS's type {name} is none of ours")


def to_gpu(index: Any) -> Any:
    """The index over all GPUs, its rows spread over them; the index itself where FAISS sees no GPU.

    Ids are row numbers, so a ``flat`` copy does without the map of ids. Of ``ivf_pq`` the codes go, and the 8-bit
    vectors stay on the CPU. Graphs, and codes of a length that the GPU kernels lack, stay on the CPU altogether.
    """
    faiss = import_faiss()
    match index_kind(index):
        case "flat":
            return spread(faiss.downcast_index(index.index))
        case "ivf_flat":
            return spread(index)
        case "ivf_pq":
            codes = faiss.downcast_index(index.base_index)
            if not num_gpus() or codes.pq.M not in _GPU_PQ_CODES or codes.pq.nbits != 8:
                return index
            copy = faiss.IndexRefine(spread(codes, half_tables=True), index.refine_index)
            copy.k_factor = index.k_factor
            return copy
        case _:
            return index


def spread(index: Any, *, half_tables: bool = False) -> Any:
    """Sharded over all GPUs; the index itself where there are none."""
    if not num_gpus():
        return index
    faiss = import_faiss()
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    # lookup tables of float32 exceed a block's shared memory from 48 codes on
    options.useFloat16 = half_tables
    return faiss.index_cpu_to_all_gpus(index, options)


def save(index: Any, path: Path) -> None:
    """Write the index with its ids and its search settings; RunError when the disk does not take it."""
    try:
        import_faiss().write_index(index, str(path))
    except RuntimeError as error:
        raise RunError(f"{path} cannot be written: {str(error).rpartition('failed: ')[2]}") from None


def open_index(folder: Path) -> tuple[Any, artifacts.Manifest]:
    """Verify an ``index`` artefact and map it into memory: pages are read when a search touches them.

    Vectors, lists, codes and links of every kind are mapped (``IO_FLAG_MMAP_IFC``; the older ``IO_FLAG_MMAP`` maps
    inverted lists only, and starts threads for every query of them). Centroids' tables and the hash table of ids of
    ``flat`` are read.

    Args:
        folder: ``rounds/NN/index``.

    Returns:
        The index, on the CPU, and its manifest.

    Raises:
        RunError: no manifest, another kind of artefact, a file missing, truncated or altered, not the index that
            the manifest describes, or one that a child process could not read and search.
    """
    manifest = artifacts.verify(folder, KIND)
    if [f.name for f in manifest.files] != [INDEX_NAME]:
        raise RunError(f"{folder} does not hold one {INDEX_NAME}")
    path, recorded = (
        folder / INDEX_NAME,
        (manifest.figures.get("index_kind"), manifest.figures.get("dim"), manifest.num_rows),
    )
    check_header(path, recorded)
    rehearse("andscale.indexing.index_check:try_index", path)
    try:
        index = read_mapped(path)
        found = (index_kind(index), int(index.d), int(index.ntotal))
    except (RuntimeError, MemoryError) as error:  # what C++ throws
        raise RunError(f"{path} cannot be read as an index: {str(error).splitlines()[0]}") from None
    if found != recorded:
        raise RunError(
            f"{path} holds {found[0]}, D = {found[1]}, N = {found[2]}; its manifest says {recorded[0]}, "
            f"D = {recorded[1]}, N = {recorded[2]}"
        )
    return index, manifest


def read_mapped(path: Path) -> Any:
    """Map an index file that was looked at; vectors that claim more than the file are refused by FAISS itself."""
    faiss = import_faiss()
    if hasattr(faiss, "set_deserialization_vector_byte_limit"):  # 1.14 and later
        # beyond the file: the tables that FAISS makes of ivf_pq, which it counts too
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size + _TABLE_BYTES)
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
