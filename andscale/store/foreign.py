"""Features that others made: a Parquet file or folder with a list column, or ``.npy``."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError, UsageError
from andscale.store.files import hash_bytes, hash_file
from andscale.store.parquet import check_ids, column_to_numpy, open_table, read_batches

_MAX_SHOWN = 200


def read_foreign_features(path: Path, column: str | None = None) -> tuple[np.ndarray, str]:
    """Read features of any origin.

    Args:
        path: ``.npy`` of (N, D) numbers; a Parquet file with a list or fixed-size-list column; or a folder of such
            files, taken in the order of their names. With a ``sample_id`` column rows are put in its order (it must
            hold 0..N-1); without one a row's number is its id.
        column: the list column; needed only when there are several.

    Returns:
        (N, D) float32 as stored, not normalised; and a digest of the files.

    Raises:
        UsageError: nothing there, or not of these forms. RunError: a file is damaged.
    """
    if path.suffix == ".npy":
        return _read_npy(path), hash_file(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"no features at {path}: give a .npy or .parquet file, or a folder of .parquet files")
    ids, parts = [], []
    for file in files:
        table = open_table(file, ())
        name = column or _list_column(file, table)
        has_ids = "sample_id" in table.schema_arrow.names
        wanted = [name, *(["sample_id"] if has_ids else [])]
        for batch in read_batches(file, open_table(file, (name,)), wanted):
            parts.append(column_to_numpy(file, name, batch.column(name)))
            if has_ids:
                ids.append(column_to_numpy(file, "sample_id", batch.column("sample_id")))
    if len({part.shape[1:] for part in parts}) != 1 or parts[0].ndim != 2 or not parts[0].shape[1]:
        raise UsageError(f"{path}: the column is not one list of D numbers a row, D the same everywhere")
    features = np.concatenate(parts).astype(np.float32, copy=False)
    if ids:
        features = _by_id(path, features, np.concatenate(ids))
    return features, hash_bytes("".join(hash_file(file) for file in files).encode())


def to_unit_length(features: np.ndarray, where: object) -> np.ndarray:
    """Scale rows to unit length, so that inner products are cosines.

    Args:
        features: (N, D) float32.
        where: what to name in errors.

    Returns:
        (N, D) float32.

    Raises:
        RunError: NaN, infinite or zero rows; the first of their ids are named.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    for what, bad in (("NaN or infinity", ~np.isfinite(lengths)), ("zero length", lengths == 0)):
        if bad.any():
            ids = ", ".join(map(str, np.flatnonzero(bad)[:5]))
            raise RunError(f"{where}: {bad.sum()} features have {what} (sample ids {ids}): remove or mend them")
    unit: np.ndarray = features / lengths[:, None].astype(np.float32)
    return unit


def _read_npy(path: Path) -> np.ndarray:
    try:
        _check_npy_size(path)
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"no features at {path}") from None
    except Exception as error:  # numpy evaluates a header of others, which raises nearly anything
        raise RunError(f"{path} cannot be read as .npy: {' '.join(str(error).split())[:_MAX_SHOWN]}") from None
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise UsageError(f"{path} holds {values.dtype} of shape {values.shape}; (N, D) real numbers are needed")
    single: np.ndarray = values.astype(np.float32, copy=False)
    return single


def _check_npy_size(path: Path) -> None:
    """Raise ValueError unless a header's shape is what the file has bytes for, before memory is taken for it."""
    if not path.is_file() and path.exists():
        raise ValueError("not a plain file")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        expected = math.prod(shape) * dtype.itemsize
        left = path.stat().st_size - file.tell()
    if dtype.hasobject or left != expected:
        raise ValueError(f"{left} bytes follow a header of {dtype} {shape}")


def _list_column(path: Path, table: Any) -> str:
    """The only list column of a file."""
    import pyarrow as pa

    names = [
        field.name
        for field in table.schema_arrow
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    if len(names) != 1:
        found = f"list columns {', '.join(names)}: name one with --column" if names else "no list column"
        raise UsageError(f"{path} has {found}")
    return str(names[0])


def _by_id(path: Path, features: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if len(ids) != len(features):
        raise UsageError(f"{path}: some files have a sample_id column and some have none")
    check_ids(path, ids, len(features))
    ordered = np.empty_like(features)
    ordered[ids] = features
    return ordered
