"""FAISS: build an exact index, copy it to the GPUs where there are any, save it with the samples' ids."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import UsageError

INDEX_NAME = "index.faiss"
KIND = "index"


def import_faiss() -> Any:
    """The faiss module; UsageError saying what to install when there is none."""
    try:
        import faiss
    except ImportError as error:
        raise UsageError(f"FAISS cannot be imported ({error}): install andscale[cpu] or andscale[gpu]") from None
    return faiss


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


def to_gpu(index: Any) -> Any:
    """The index over all GPUs, its rows spread over them; the index itself where FAISS sees no GPU.

    Ids are row numbers, so the copy does without the map of ids.
    """
    faiss = import_faiss()
    if not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0:
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    print(f"searching on {faiss.get_num_gpus()} GPUs", file=sys.stderr)
    return faiss.index_cpu_to_all_gpus(faiss.downcast_index(index.index), options)


def save(index: Any, path: Path) -> None:
    """Write the index with its ids."""
    import_faiss().write_index(index, str(path))
