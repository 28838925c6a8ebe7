"""Reads one feature file into its rows of an array, hashing what passes.

Pages that our own writer made are recognised byte for byte and read from the file straight into their place, and the
hash of the whole file is taken on the way: the bytes that were verified are the bytes that are used. Any other Parquet
file is left to pyarrow.
"""

import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError
from andscale.store.artifacts import FileRecord, check_size, verify_file
from andscale.store.feature_pages import as_bytes, levels, parse_page_header, rows_per_page
from andscale.store.feature_rows import FeatureRows
from andscale.store.parquet import column_to_numpy, read_batches

_HEADER_BYTES = 64
_PASSED_BYTES = 1 << 20
_PENDING_PIECES = 8
_DTYPES: dict[str, np.dtype[Any]] = {"float": np.dtype(np.float32), "halffloat": np.dtype(np.float16)}


class NotOurPages(Exception):
    """The file is not laid out as our writer does it, or it is damaged."""


def read_file(path: Path, record: FileRecord | None, table: Any, rows: FeatureRows) -> int:
    """Read one file's share of the wanted rows.

    Args:
        path: the file.
        record: size and hash to check; None when they are not to be checked: then page checksums are.
        table: the file as ``open_table`` gives it.
        rows: where to put them.

    Returns:
        How many wanted rows the file has, repeated ones counted again.

    Raises:
        RunError: the file is damaged, or has ids outside 0..N-1.
    """
    groups = _wanted_groups(table, rows.wanted)
    try:
        return _read_pages(path, record, table, rows, groups)
    except (NotOurPages, RunError):
        if record is not None:
            verify_file(path, record.bytes, record.blake3)
    return _read_with_arrow(path, table, rows, groups)


def _read_with_arrow(path: Path, table: Any, rows: FeatureRows, groups: set[int]) -> int:
    """``read_file`` for any Parquet file, page checksums checked where there are some."""
    num_wanted = 0
    for batch in read_batches(path, table, ["sample_id", "feature"], sorted(groups)):
        ids = column_to_numpy(path, "sample_id", batch.column("sample_id"))
        values = column_to_numpy(path, "feature", batch.column("feature"))
        if ids.dtype != np.int64:
            raise RunError(f"{path}: sample ids are {ids.dtype}, not int64")
        rows.check_ids(path, ids)
        if values.shape[1:] != (rows.dim,):
            raise RunError(f"{path} has features of shape {values.shape[1:]}, not ({rows.dim},)")
        num_wanted += rows.put(ids, values)
    return num_wanted


def _wanted_groups(table: Any, wanted: range) -> set[int]:
    """The row groups that may hold wanted ids, by their statistics; those without statistics are among them."""
    groups = set()
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        statistics: Any = next((c.statistics for c in chunks if c.path_in_schema == "sample_id"), None)
        known = statistics is not None and statistics.has_min_max
        if not known or (statistics.min < wanted.stop and statistics.max >= wanted.start):
            groups.add(number)
    return groups


def _read_pages(path: Path, record: FileRecord | None, table: Any, rows: FeatureRows, groups: set[int]) -> int:
    """``read_file`` for a file of our writer; raises NotOurPages for others and for damaged ones."""
    schema, metadata, num_wanted = table.schema_arrow, table.metadata, 0
    dtype = _DTYPES.get(str(getattr(schema.field("feature").type, "value_type", None)))
    if dtype is None or schema.names != ["sample_id", "feature"]:
        raise NotOurPages
    if record is not None:
        check_size(path, record.bytes)
    with _PassingFile(path, hashed=record is not None) as file:
        for number in range(metadata.num_row_groups):
            if number not in groups:
                continue
            group = metadata.row_group(number)
            ids = np.empty(group.num_rows, np.int64)
            file.pass_to(group.column(0).data_page_offset)
            for start, stop in _page_bounds(group.num_rows, ids.itemsize):
                file.read_page(ids[start:stop])
            rows.check_ids(path, ids)
            file.pass_to(group.column(1).data_page_offset)
            for start, stop in _page_bounds(group.num_rows, rows.dim * dtype.itemsize):
                num_wanted += _read_page(file, ids[start:stop], dtype, rows)
        if record is not None and file.digest() != record.blake3:
            raise NotOurPages
    return num_wanted


def _read_page(file: "_PassingFile", ids: np.ndarray, dtype: np.dtype[Any], rows: FeatureRows) -> int:
    """Read the features of ``ids``, (n,) int64, into their places; returns how many were wanted."""
    places = rows.places(ids) if dtype == np.float32 else None
    if places is not None:
        file.read_page(rows.features[places])
        rows.note(places)
        return len(ids)
    values = np.empty((len(ids), rows.dim), dtype)
    file.read_page(values)
    return rows.put(ids, values)


def _page_bounds(num_rows: int, row_bytes: int) -> list[tuple[int, int]]:
    step = rows_per_page(row_bytes)
    return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


class _PassingFile:
    """A file that is read from its start to its end, and hashed by a second thread as it passes."""

    def __init__(self, path: Path, *, hashed: bool):
        from blake3 import blake3

        self.hasher = blake3() if hashed else None
        self.pending: deque[Future[None]] = deque()
        self.thread = ThreadPoolExecutor(1)
        self.descriptor = os.open(path, os.O_RDONLY)
        self.position = 0

    def __enter__(self) -> "_PassingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown()
        os.close(self.descriptor)

    def read_page(self, values: np.ndarray) -> None:
        """Read the page that stands here into ``values``, (n,) int64 or (n, D) float32 or float16.

        Raises:
            NotOurPages: it is not a page that our writer would have made of as many numbers.
        """
        before = levels(*values.shape) if values.ndim == 2 else b""
        start = os.pread(self.descriptor, _HEADER_BYTES, self.position)
        parsed = parse_page_header(start, values.size, len(before) + values.nbytes)
        if parsed is None:
            raise NotOurPages
        length, crc = parsed
        head, numbers = bytearray(length + len(before)), as_bytes(values)
        self._read([head, numbers])
        if not head.startswith(start[:length]) or not head.endswith(before):
            raise NotOurPages
        if self.hasher is None and zlib.crc32(numbers, zlib.crc32(before)) != crc:
            raise NotOurPages

    def pass_to(self, position: int) -> None:
        """Go on at ``position``; where the file is hashed, what lies between is read."""
        if position < self.position:
            raise NotOurPages
        while self.hasher is not None and self.position < position:
            self._read([bytearray(min(_PASSED_BYTES, position - self.position))])
        self.position = position

    def digest(self) -> str:
        """BLAKE3 of the whole file, the rest of which is read now."""
        assert self.hasher is not None
        self.pass_to(os.fstat(self.descriptor).st_size)
        while self.pending:
            self.pending.popleft().result()
        digest: str = self.hasher.hexdigest()
        return digest

    def _read(self, pieces: list[bytearray | memoryview]) -> None:
        expected = sum(len(piece) for piece in pieces)
        if os.preadv(self.descriptor, pieces, self.position) != expected:
            raise NotOurPages
        self.position += expected
        if self.hasher is not None:
            # bounds what is held for the hasher only: scratch pages, and the levels
            if len(self.pending) >= _PENDING_PIECES:
                self.pending.popleft().result()
            self.pending.append(self.thread.submit(self._hash, pieces))

    def _hash(self, pieces: list[bytearray | memoryview]) -> None:
        assert self.hasher is not None
        for piece in pieces:
            self.hasher.update(piece)
