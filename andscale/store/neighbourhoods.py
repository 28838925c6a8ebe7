"""The neighbourhood table as Parquet: who is near whom, how certain, and who is an anchor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.parquet import check_ids, column_to_numpy, open_table, read_columns, write_table

KIND = "neighbourhoods"
FILE_NAME = "neighbourhoods-00000-of-00001.parquet"
_COLUMNS = ("sample_id", "neighbour_ids", "similarities", "entropy", "is_anchor")
_LISTS = ("neighbour_ids", "similarities")
_DTYPES = {"sample_id": np.int64, "neighbour_ids": np.int64, "is_anchor": np.bool_}
"""float32 otherwise."""
_STDERR_COLUMN = "entropy_stderr"


@dataclass(frozen=True)
class NeighbourhoodTable:
    """All neighbourhoods of one round; row i is sample i.

    Attributes:
        neighbour_ids: (N, K) int64, nearest first, the sample itself left out.
        similarities: (N, K) float32, inner products.
        entropies: (N,) float32, nats (eq 5).
        is_anchor: (N,) bool (eq 6).
        entropy_stderr: (N,) float32, nats, standard errors of entropies that are estimates; None where they are exact.
    """

    neighbour_ids: np.ndarray
    similarities: np.ndarray
    entropies: np.ndarray
    is_anchor: np.ndarray
    entropy_stderr: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.neighbour_ids)

    @property
    def num_neighbours(self) -> int:
        """K."""
        return int(self.neighbour_ids.shape[1])


def write_table_file(path: Path, table: NeighbourhoodTable) -> None:
    """Check promise 2 and write the table as one file; raises RunError with the offending id."""
    check_table(path, table)
    columns: dict[str, np.ndarray] = {
        "sample_id": np.arange(len(table), dtype=np.int64),
        "neighbour_ids": table.neighbour_ids.astype(np.int64, copy=False),
        "similarities": table.similarities.astype(np.float32, copy=False),
        "entropy": table.entropies.astype(np.float32, copy=False),
        "is_anchor": table.is_anchor.astype(bool, copy=False),
    }
    if table.entropy_stderr is not None:
        columns[_STDERR_COLUMN] = table.entropy_stderr.astype(np.float32, copy=False)
    write_table(path, columns, KIND)


def read_table(folder: Path) -> tuple[NeighbourhoodTable, artifacts.Manifest]:
    """Verify a neighbourhoods artefact and read it by id; raises RunError when anything is wrong with it."""
    manifest = artifacts.verify(folder, KIND)
    paths = [folder / record.name for record in manifest.files]
    names = _columns_of(paths)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in paths:
        data = read_columns(path, open_table(path, names, KIND), list(names))
        for name in names:
            columns[name] += [_checked(path, name, chunk) for chunk in data.column(name).chunks]
    if not manifest.num_rows or not all(columns.values()):
        raise RunError(f"{folder} has no neighbourhoods")
    if len({values.shape[1] for name in _LISTS for values in columns[name]}) != 1:
        raise RunError(f"{folder}: neighbours and similarities are not as many for every sample")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    ids = whole["sample_id"]
    check_ids(folder, ids, manifest.num_rows)
    order = np.argsort(ids)
    table = NeighbourhoodTable(*(whole[name][order] for name in names[1:]))
    check_table(folder, table)
    return table, manifest


def _checked(path: Path, name: str, chunk: Any) -> np.ndarray:
    """The numbers of a column; RunError when they are of another type or form than the table's."""
    values = column_to_numpy(path, name, chunk)
    if values.dtype != _DTYPES.get(name, np.float32) or values.ndim != (2 if name in _LISTS else 1):
        raise RunError(f"{path}: column {name!r} is {values.dtype} with {values.ndim} axes, which no table of ours has")
    return values


def _columns_of(paths: list[Path]) -> tuple[str, ...]:
    """The columns to read: the standard errors too where a file has them; then all must."""
    has_stderr = any(_STDERR_COLUMN in open_table(path, _COLUMNS, KIND).schema_arrow.names for path in paths)
    return (*_COLUMNS, _STDERR_COLUMN) if has_stderr else _COLUMNS


def check_table(where: object, table: NeighbourhoodTable) -> None:
    """Promise 2: no neighbour is the sample itself, repeated or out of range; every number finite."""
    num_samples = len(table)
    ids = table.neighbour_ids
    rows = np.arange(num_samples)
    ordered = np.sort(ids, axis=1)
    problems = {
        "a neighbour out of range": ((ids < 0) | (ids >= num_samples)).any(axis=1),
        "itself as a neighbour": (ids == rows[:, None]).any(axis=1),
        "a repeated neighbour": (ordered[:, 1:] == ordered[:, :-1]).any(axis=1),
        "a similarity that is not finite": ~np.isfinite(table.similarities).all(axis=1),
        "similarities that are not in falling order": (np.diff(table.similarities, axis=1) > 0).any(axis=1),
        "an entropy that is not finite": ~np.isfinite(table.entropies),
    }
    if table.entropy_stderr is not None:
        is_valid = np.isfinite(table.entropy_stderr) & (table.entropy_stderr >= 0)
        problems["a standard error of its entropy that is negative or not finite"] = ~is_valid
    for what, bad in problems.items():
        if bad.any():
            raise RunError(f"{where}: sample {np.flatnonzero(bad)[0]} has {what} ({bad.sum()} such samples)")
