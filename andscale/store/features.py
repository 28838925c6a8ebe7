"""Memory features as sharded Parquet: sample_id int64, feature fixed_size_list<float32 or float16>[D]."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.feature_reader import read_file
from andscale.store.feature_rows import FeatureRows, check_features
from andscale.store.feature_writer import write_feature_file
from andscale.store.files import num_usable_cores
from andscale.store.parquet import check_ids, column_to_numpy, open_table, read_batches

KIND = "memory"
_MAX_DIM = 1 << 20


def shard_name(rank: int, world_size: int) -> str:
    """The file that one rank writes."""
    return f"features-{rank:05d}-of-{world_size:05d}.parquet"


def write_features(
    path: Path, sample_ids: np.ndarray, features: np.ndarray, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write one shard.

    Args:
        path: file to write.
        sample_ids: (n,) int64.
        features: (n, D) float32, unit length.
        dtype: of the numbers in the file. float16 takes half the space and rounds to 11 bits; readers scale the
            rows to unit length again, in float32.

    Raises:
        RunError: a NaN, an infinity or a row that has no unit length; its ids are named, and no file is left.
    """
    write_feature_file(path, sample_ids.astype(np.int64, copy=False), features, np.dtype(dtype), KIND)


def read_features(
    folder: Path, kind: str = KIND, rows: range | None = None, share: tuple[int, int] = (0, 1)
) -> tuple[np.ndarray, artifacts.Manifest]:
    """Verify an artefact of features and read it, or some rows of it, ordered by id.

    Args:
        folder: the artefact's folder.
        kind: what its manifest must say it is.
        rows: the sample ids to read, consecutive, within 0..N-1; None reads all N. Row groups whose statistics say
            that they have none of them are not decoded.
        share: (r, R) where R processes share the checking of hashes: this one checks the files whose place in the
            manifest is r modulo R, whether it reads rows of them or not. Of the others it checks sizes and the
            checksums of the pages that it reads. (0, 1) checks every file.

    Returns:
        (len(rows), D) float32, row j = sample rows[j], unit length; and the manifest. With R > 1 the artefact is
        verified only when every process has returned.

    Raises:
        RunError: damaged files; ids that are not 0..N-1 once each, as far as they were read: each id of ``rows`` is
            there once; features that are not finite and unit length.
        ValueError: ``rows`` has another step than 1, or lies outside 0..N-1.
    """
    manifest = artifacts.load_manifest(folder, kind)
    wanted = range(manifest.num_rows) if rows is None else rows
    if wanted.step != 1 or (len(wanted) and (wanted.start < 0 or wanted.stop > manifest.num_rows)):
        raise ValueError(f"rows = {wanted} of {manifest.num_rows} samples")
    files: list[tuple[Path, artifacts.FileRecord | None]] = []
    for number, record in enumerate(manifest.files):
        path = folder / record.name
        artifacts.check_size(path, record.bytes)
        mine = number % share[1] == share[0]
        if record.name.endswith(".parquet"):
            files.append((path, record if mine else None))
        elif mine:
            artifacts.verify_file(path, record.bytes, record.blake3)
    return _gather(folder, files, wanted, manifest.num_rows), manifest


def gather_by_id(paths: list[Path], num_samples: int, rows: range | None = None) -> np.ndarray:
    """Read feature shards into one (N, D) float32 array by id; checks page checksums, ids and lengths, not hashes.

    ``rows``: as in ``read_features``; the array is (len(rows), D) then.
    """
    where = paths[0].parent if paths else Path("an empty list of files")
    return _gather(where, [(path, None) for path in paths], range(num_samples) if rows is None else rows, num_samples)


def _gather(
    where: Path, files: list[tuple[Path, artifacts.FileRecord | None]], wanted: range, num_samples: int
) -> np.ndarray:
    """Read ``wanted`` rows from files; those with a record are verified."""
    tables = [_open(path, record) for path, record in files]
    dims = [(path, _dimension(path, table)) for (path, _), table in zip(files, tables, strict=True)]
    known = [(path, dim) for path, dim in dims if dim is not None]
    if not known:
        raise RunError(f"no features in {where}")
    dim = known[0][1]
    for path, other in known:
        if other != dim:
            raise RunError(f"{path} has features of length {other}, not {dim}")
    num_rows = sum(table.metadata.num_rows for table in tables)
    if num_rows != num_samples:
        raise RunError(f"{where} has {num_rows} rows, {num_samples} were expected")
    rows = FeatureRows(wanted, dim, num_samples)
    with ThreadPoolExecutor(num_usable_cores()) as pool:
        jobs = [pool.submit(read_file, *file, table, rows) for file, table in zip(files, tables, strict=True)]
        num_found = sum(job.result() for job in jobs)
    if num_found != len(wanted) or not rows.found.all():
        _name_wrong_ids(where, [path for path, _ in files], wanted)
    if not rows.all_unit:
        check_features(where, np.arange(wanted.start, wanted.stop), rows.features)
    return rows.features


def _open(path: Path, record: artifacts.FileRecord | None) -> Any:
    """Open a file; of one that is to be verified a damage is called by that name."""
    try:
        table = open_table(path, ("sample_id", "feature"), KIND)
        if str(table.schema_arrow.field("sample_id").type) != "int64":
            raise RunError(f"{path}: column 'sample_id' is not of int64")
        return table
    except RunError:
        if record is not None:
            artifacts.verify_file(path, record.bytes, record.blake3)
        raise


def _dimension(path: Path, table: Any) -> int | None:
    """D of a file's features; None for a file without rows."""
    if table.metadata.num_rows == 0:
        return None
    kind = table.schema_arrow.field("feature").type
    if hasattr(kind, "list_size"):
        dim = int(kind.list_size)
    else:
        values = column_to_numpy(path, "feature", next(read_batches(path, table, ["feature"])).column(0))
        dim = values.shape[1] if values.ndim == 2 else 0
    if not 0 < dim <= _MAX_DIM:
        raise RunError(f"{path}: column 'feature' is not of lists of 1 to {_MAX_DIM} numbers")
    return dim


def _name_wrong_ids(where: Path, paths: list[Path], wanted: range) -> None:
    """Raise RunError with an id of ``wanted`` that is not in the files exactly once."""
    found = [np.empty(0, np.int64)]
    for path in paths:
        for batch in read_batches(path, open_table(path, ("sample_id",), KIND), ["sample_id"]):
            ids = column_to_numpy(path, "sample_id", batch.column(0))
            found.append(ids[(ids >= wanted.start) & (ids < wanted.stop)])
    check_ids(where, np.concatenate(found), len(wanted), wanted.start)
    raise RunError(f"{where} changed while it was read")
