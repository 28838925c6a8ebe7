"""The Parquet settings and column conversions that features and neighbourhood tables share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError

ROW_GROUP_ROWS = 65_536
SCHEMA_VERSION = b"1"
_DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
"""Beside Arrow's own exceptions, what reading a damaged file raises."""
_FREE_VALUES = 1 << 24
_VALUES_PER_BYTE = 64
_MAX_SHOWN = 200


def schema_metadata(kind: str) -> dict[bytes, bytes]:
    """What every Parquet file of ours says of itself."""
    return {b"andscale.kind": kind.encode(), b"andscale.schema_version": SCHEMA_VERSION}


def write_table(path: Path, columns: dict[str, np.ndarray], kind: str) -> None:
    """Write numpy columns as one Parquet file: no dictionary, no compression, page checksums.

    Args:
        path: file to write.
        columns: name -> (N,) or (N, width) array; two-dimensional ones become fixed-size lists. No nulls.
        kind: stored in the file's metadata as ``andscale.kind``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_to_arrow(values) for values in columns.values()]
    fields = [pa.field(name, a.type, nullable=False) for name, a in zip(columns, arrays, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema_metadata(kind)))
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=False,
        compression="NONE",
        write_page_checksum=True,
    )


def open_table(path: Path, columns: tuple[str, ...], kind: str | None = None) -> Any:
    """Open a Parquet file after looking at its schema; returns a ``pyarrow.parquet.ParquetFile``.

    Raises:
        RunError: not a Parquet file, a column missing, another kind (when ``kind`` is given), a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
        is_newer = int(metadata.get(b"andscale.schema_version", SCHEMA_VERSION)) > int(SCHEMA_VERSION)
        complaint = _implausible(file.metadata, path.stat().st_size)
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (*_DAMAGE, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read as Parquet: {_first_line(error)}") from None
    missing = [c for c in columns if c not in names]
    if missing:
        raise RunError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)[:_MAX_SHOWN]}")
    if kind is not None and metadata.get(b"andscale.kind") != kind.encode():
        raise RunError(f"{path} is not a {kind} file of andscale")
    if is_newer:
        raise RunError(f"{path} has a newer schema than this andscale reads")
    if complaint:
        raise RunError(f"{path} is refused: {complaint}")
    return file


def _implausible(metadata: Any, num_bytes: int) -> str:
    """What a footer claims that a file of so many bytes cannot hold; '' where there is nothing.

    Runs of one value take a few bytes however long they are, so a small file could ask for any memory.
    """
    limit = _FREE_VALUES + _VALUES_PER_BYTE * num_bytes
    num_rows = num_values = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        num_rows += group.num_rows
        for place in range(group.num_columns):
            chunk = group.column(place)
            num_values += max(chunk.num_values, 0)
            if not chunk.path_in_schema:  # reading a name that is no UTF-8 raises
                return "its footer has a column without a name"
            if min(chunk.num_values, group.num_rows, chunk.data_page_offset, chunk.total_compressed_size) < 0:
                return "its footer has negative sizes"
            if max(chunk.data_page_offset, chunk.total_compressed_size) > num_bytes:
                return "its footer names places beyond its end"
    if num_rows != metadata.num_rows:
        return f"its footer says {metadata.num_rows} rows, its row groups {num_rows}"
    if max(num_values, num_rows) > limit:
        return f"it claims {max(num_values, num_rows)} values in {num_bytes} bytes, a decompression bomb"
    return ""


def read_batches(path: Path, file: Any, columns: list[str], row_groups: list[int] | None = None) -> Iterator[Any]:
    """The record batches of an open file, up to a row group's rows each; raises RunError when it is damaged."""
    import pyarrow as pa

    try:
        yield from file.iter_batches(ROW_GROUP_ROWS, row_groups=row_groups, columns=columns)
    except (*_DAMAGE, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {_first_line(error)}") from None


def read_columns(path: Path, file: Any, columns: list[str]) -> Any:
    """Columns of an open file as one Arrow table of one chunk each; raises RunError when it is damaged."""
    import pyarrow as pa

    try:
        return file.read(columns=columns).combine_chunks()
    except (*_DAMAGE, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {_first_line(error)}") from None


def column_to_numpy(path: Path, name: str, chunk: Any) -> np.ndarray:
    """One Arrow column of a batch as a (n,) or (n, width) numpy array without copying where that is possible.

    Raises:
        RunError: nulls, lists of different lengths, or a type that is neither a number nor a list of numbers.
    """
    import pyarrow as pa

    if chunk.null_count:
        raise RunError(f"{path}: column {name!r} has {chunk.null_count} nulls")
    kind = chunk.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        # .flatten() respects the offsets of a sliced array, .values does not
        flat = chunk.flatten()
        width = len(flat) // max(len(chunk), 1)
        if not pa.types.is_fixed_size_list(kind):
            lengths = np.diff(np.asarray(chunk.offsets))
            if len(chunk) and (lengths != lengths[0]).any():
                raise RunError(f"{path}: the lists of column {name!r} have different lengths")
        values = column_to_numpy(path, name, flat)
        if values.ndim != 1 or len(values) != len(chunk) * width:
            raise RunError(f"{path}: column {name!r} holds lists of lists, not of numbers")
        return values.reshape(len(chunk), width)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RunError(f"{path}: column {name!r} is of type {kind}, not numbers or lists of numbers")
    numbers: np.ndarray = chunk.to_numpy(zero_copy_only=False)
    return numbers


def check_ids(where: object, ids: np.ndarray, num_samples: int, first: int = 0) -> None:
    """Raise RunError unless ``ids`` are first..first+num_samples-1, each once; names an offending id.

    Args:
        where: what to name in the error.
        ids: int64, any order.
        num_samples: how many there must be.
        first: the smallest.
    """
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise RunError(f"{where}: sample ids are {ids.dtype} with {ids.ndim} axes, not one int64 each")
    if len(ids) != num_samples:
        raise RunError(f"{where} has {len(ids)} rows, {num_samples} were expected")
    outside = ids[(ids < first) | (ids >= first + num_samples)]
    if len(outside):
        raise RunError(f"{where}: sample id {outside[0]} is not in {first}..{first + num_samples - 1}")
    counts = np.bincount(ids - first, minlength=num_samples)
    if (counts != 1).any():
        repeated = np.flatnonzero(counts > 1)
        raise RunError(f"{where}: sample id {first + repeated[0]} stands there {counts[repeated[0]]} times")


def _to_arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    item = pa.field("item", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, values.shape[1]))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
