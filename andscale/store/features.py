"""Memory features as sharded Parquet: sample_id int64, feature fixed_size_list<float32>[D]."""

from pathlib import Path

import numpy as np

from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.parquet import check_ids, column_to_numpy, open_table, write_table

KIND = "memory"
_BATCH_ROWS = 65_536
_UNIT_TOLERANCE = 1e-3
_IDS_SHOWN = 5


def shard_name(rank: int, world_size: int) -> str:
    """The file that one rank writes."""
    return f"features-{rank:05d}-of-{world_size:05d}.parquet"


def write_features(path: Path, sample_ids: np.ndarray, features: np.ndarray) -> None:
    """Write one shard.

    Args:
        path: file to write.
        sample_ids: (n,) int64.
        features: (n, D) float32, unit length.

    Raises:
        RunError: a NaN, an infinity or a row that has no unit length; its ids are named.
    """
    check_features(path, sample_ids, features)
    columns: dict[str, np.ndarray] = {
        "sample_id": sample_ids.astype(np.int64),
        "feature": features.astype(np.float32, copy=False),
    }
    write_table(path, columns, KIND)


def read_features(folder: Path, kind: str = KIND) -> tuple[np.ndarray, artifacts.Manifest]:
    """Verify an artefact of features and read it, ordered by id.

    Args:
        folder: the artefact's folder.
        kind: what its manifest must say it is.

    Returns:
        (N, D) float32, row i = sample i; and the manifest.

    Raises:
        RunError: damaged files, ids that are not 0..N-1 once each, features that are not finite and unit length.
    """
    manifest = artifacts.verify(folder, kind)
    paths = [folder / f.name for f in manifest.files if f.name.endswith(".parquet")]
    features = gather_by_id(paths, manifest.num_rows)
    check_features(folder, np.arange(len(features)), features)
    return features, manifest


def gather_by_id(paths: list[Path], num_samples: int) -> np.ndarray:
    """Read feature shards into one (N, D) float32 array by id; holds the features once and one row group."""
    features: np.ndarray | None = None
    seen = []
    for path in paths:
        file = open_table(path, ("sample_id", "feature"), KIND)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["sample_id", "feature"]):
            ids = column_to_numpy(path, "sample_id", batch.column(0))
            rows = column_to_numpy(path, "feature", batch.column(1))
            if features is None:
                features = np.empty((num_samples, rows.shape[1]), np.float32)
            if len(ids) and (ids.min() < 0 or ids.max() >= num_samples):
                raise RunError(f"{path} has sample ids outside 0..{num_samples - 1}")
            if rows.shape[1] != features.shape[1]:
                raise RunError(f"{path} has features of length {rows.shape[1]}, not {features.shape[1]}")
            features[ids] = rows
            seen.append(ids)
    if features is None:
        raise RunError(f"no features in {paths[0].parent if paths else 'an empty list of files'}")
    check_ids(paths[0].parent, np.concatenate(seen), num_samples)
    return features


def check_features(where: object, sample_ids: np.ndarray, features: np.ndarray) -> None:
    """Raise RunError unless every row is finite and of unit length; the ids of the first bad rows are named.

    Args:
        where: what to name in the error.
        sample_ids: (n,) int64.
        features: (n, D) float32.
    """
    # einsum sums in float32 without an (n, D) temporary; a NaN or an infinity in a row shows in its length
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    bad = ~(np.abs(norms - 1) <= _UNIT_TOLERANCE)
    if not bad.any():
        return
    ids = sample_ids[bad]
    shown = ", ".join(str(i) for i in ids[:_IDS_SHOWN]) + (", ..." if len(ids) > _IDS_SHOWN else "")
    bad_norms = norms[bad]
    if not np.isfinite(bad_norms).all():
        what = "NaN or infinity"
    elif (bad_norms == 0).any():
        what = "zero length"
    else:
        what = f"length {bad_norms[0]:.4g} instead of 1"
    raise RunError(f"{where}: features of {len(ids)} samples have {what} (sample ids {shown})")
