"""Parquet for other people's tools: strings, lists and structs, compressed; not a table that andscale reads."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from andscale.store.files import errors_name, fsync_path


def write_plain_table(path: Path, columns: Mapping[str, Any], lists_in_struct: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a table whose file is absent, or whole.

    Args:
        path: must not exist.
        columns: name -> (N,) numbers, or N strings with None for what is unknown.
        lists_in_struct: name of a struct column -> name of its field -> (N, K) numbers, a list a row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name, fields in lists_in_struct.items():
        lists = [_lists(values) for values in fields.values()]
        arrays[name] = pa.StructArray.from_arrays(lists, names=list(fields))
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
    try:
        with errors_name(path):
            pq.write_table(pa.table(arrays), temporary, compression="zstd")
            fsync_path(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lists(values: np.ndarray) -> Any:
    import pyarrow as pa

    count, width = values.shape
    offsets = pa.array(np.arange(0, (count + 1) * width, width, dtype=np.int64))
    return pa.LargeListArray.from_arrays(offsets, pa.array(values.ravel()))
