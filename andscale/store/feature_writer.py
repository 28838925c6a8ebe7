"""Writes feature files: pages are encoded by a pool of threads while the file is written."""

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from andscale.store.feature_pages import MAGIC, Chunk, RowGroup, as_bytes, footer, levels, page_header, rows_per_page
from andscale.store.feature_rows import check_features, lengths_off
from andscale.store.files import num_usable_cores
from andscale.store.parquet import ROW_GROUP_ROWS

_T = TypeVar("_T")


class NotUnitLength(Exception):
    """A row that is not finite and of unit length."""


def write_feature_file(
    path: Path, sample_ids: np.ndarray, features: np.ndarray, dtype: np.dtype[Any], kind: str
) -> None:
    """Write features as one Parquet file, straight from their array.

    Args:
        path: file to write.
        sample_ids: (n,) int64.
        features: (n, D) numbers.
        dtype: of the features in the file, float32 or float16.
        kind: stored in the file's metadata as ``andscale.kind``.

    Raises:
        RunError: a NaN, an infinity or a row that has no unit length; its ids are named, and no file is left.
    """
    try:
        _write(path, sample_ids, features, dtype, kind)
    except NotUnitLength:
        path.unlink()
        check_features(path, sample_ids, features)
        raise


def _write(path: Path, sample_ids: np.ndarray, features: np.ndarray, dtype: np.dtype[Any], kind: str) -> None:
    starts = range(0, len(sample_ids), ROW_GROUP_ROWS)
    slices = [slice(start, start + ROW_GROUP_ROWS) for start in starts]
    columns = [c for rows in slices for c in ((sample_ids[rows], sample_ids.dtype), (features[rows], dtype))]
    chunks: list[Chunk] = []
    with path.open("wb") as file, ThreadPoolExecutor(num_usable_cores()) as pool:
        file.write(MAGIC)
        for jobs in _ahead(_submit_pages(pool, values, stored) for values, stored in columns):
            offset = file.tell()
            for job in jobs:
                head, numbers = job.result()
                file.write(head)
                file.write(numbers)
            chunks.append(Chunk(offset, file.tell() - offset))
        groups = [
            RowGroup(len(ids), (int(ids.min()), int(ids.max())), *chunks[2 * i : 2 * i + 2])
            for i, ids in enumerate(sample_ids[rows] for rows in slices)
        ]
        file.write(footer(groups, features.shape[1], dtype, kind))


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """``items``, two taken before the first is given: the next row group is encoded while one is written."""
    taken = deque(islice(items, 2))
    while taken:
        taken.extend(islice(items, 1))
        yield taken.popleft()


def _submit_pages(
    pool: ThreadPoolExecutor, values: np.ndarray, dtype: np.dtype[Any]
) -> list[Future[tuple[bytes, memoryview]]]:
    """Have one column of a row group encoded: (n,) or (n, D) numbers, stored as ``dtype``."""
    step = rows_per_page(values[0].size * dtype.itemsize)
    return [pool.submit(_encode, values[start : start + step], dtype) for start in range(0, len(values), step)]


def _encode(values: np.ndarray, dtype: np.dtype[Any]) -> tuple[bytes, memoryview]:
    """What stands before a page's numbers, and the numbers: where they are, if they need no conversion.

    Features are checked here, where they are brought into the cache for the checksum anyway.
    """
    if values.ndim == 2 and lengths_off(values)[1].any():
        raise NotUnitLength
    before = levels(*values.shape) if values.ndim == 2 else b""
    numbers = as_bytes(np.ascontiguousarray(values, dtype))
    crc = zlib.crc32(numbers, zlib.crc32(before))
    return page_header(values.size, len(before) + len(numbers), crc) + before, numbers
