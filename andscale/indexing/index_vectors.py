"""The vectors that an index holds, by sample id."""

from typing import Any

import numpy as np

from andscale.indexing.faiss_index import import_faiss, index_kind


def prepare_vectors(index: Any) -> None:
    """Let ``vector_of`` find vectors in inverted lists: a table of 8 bytes a sample, made once."""
    lists = _lists_of(index)
    if lists is not None:
        lists.make_direct_map()


def vector_of(index: Any, sample_id: int) -> np.ndarray:
    """(D,) float32, the vector of one sample; of ``ivf_pq`` as 8 bits a dimension remember it.

    Args:
        index: after ``prepare_vectors``.
        sample_id: within 0..N-1.
    """
    faiss = import_faiss()
    held = faiss.downcast_index(index.refine_index) if index_kind(index) == "ivf_pq" else index
    found: np.ndarray = held.reconstruct(sample_id)
    return found


def _lists_of(index: Any) -> Any:
    return index if index_kind(index) == "ivf_flat" else None
