"""What each part of a rebuild job takes: the same functions as the job, with a clock between them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from andscale.config import IndexConfig
from andscale.indexing.exact import Request, discover
from andscale.indexing.faiss_index import INDEX_NAME, choose_kind, num_gpus, save
from andscale.indexing.float64_check import Claims, check_against_float64, check_rows
from andscale.indexing.index_building import build_index
from andscale.indexing.ring import Ring
from andscale.indexing.selection import select_anchors
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.features import read_features, shard_name, write_features
from andscale.store.neighbourhoods import FILE_NAME, NeighbourhoodTable, write_table_file


def measure_parts(features: np.ndarray, folder: Path, tau: float) -> dict[str, float]:
    """Seconds of each part of a rebuild job on this machine, once each, in their order.

    Args:
        features: (N, D) float32, unit length: the memory.
        folder: empty; the memory, the table and the index are written there.
        tau: temperature.

    Returns:
        Seconds by part, and of all.
    """
    memory = _write_memory(features, folder / "memory")
    parts: dict[str, float] = {}
    with _clock(parts, "read and verify the memory"):
        features, _ = read_features(memory)
    ring = Ring(len(features))
    with _clock(parts, "discover, first call"):
        found = discover(features, Request(1, tau))
    settings = IndexConfig()
    with _clock(parts, f"check {settings.check_rows} rows in float64"):
        claims = Claims(0, found.neighbour_ids, found.similarities, found.entropies, "float16" in found.engine)
        check_against_float64(features, claims, tau, check_rows(len(features), settings.check_rows, 0), ring)
    with _clock(parts, "select anchors"):
        is_anchor = select_anchors(found.entropies, 1, 4)
    with _clock(parts, "write the table"):
        table = NeighbourhoodTable(found.neighbour_ids, found.similarities, found.entropies, is_anchor)
        write_table_file(folder / FILE_NAME, table)
    kind = choose_kind(*features.shape, psutil.virtual_memory().available, num_gpus())
    with _clock(parts, f"build the index ({kind})"):
        index = build_index(features, kind)
    with _clock(parts, "write the index"):
        save(index, folder / INDEX_NAME)
    return parts | {"all": sum(parts.values())}


def _write_memory(features: np.ndarray, folder: Path) -> Path:
    name = shard_name(0, 1)
    with artifacts.publish(folder, kind=MEMORY_KIND, provenance=artifacts.Provenance("bench")) as draft:
        write_features(draft.path(name), np.arange(len(features)), features)
        draft.add(name, rows=len(features))
    return folder


@contextmanager
def _clock(parts: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    parts[name] = time.perf_counter() - started
