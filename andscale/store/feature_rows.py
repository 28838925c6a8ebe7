"""The rows of features that a reader wants, and what it has found of them."""

from pathlib import Path

import numpy as np

from andscale.errors import RunError

_UNIT_TOLERANCE = 1e-3
_IDS_SHOWN = 5


class FeatureRows:
    """Rows of consecutive samples; files are read into it by several threads, each its own rows.

    Attributes:
        wanted: sample ids, step 1.
        features: (len(wanted), D) float32, row j = sample wanted[j].
        found: (len(wanted),) bool, whether the row has been read.
        num_samples: N; every id in the files is below it.
        all_unit: whether all rows that were read are finite and of unit length.
    """

    def __init__(self, wanted: range, dim: int, num_samples: int):
        self.wanted = wanted
        self.features = np.empty((len(wanted), dim), np.float32)
        self.found = np.zeros(len(wanted), bool)
        self.num_samples = num_samples
        self.all_unit = True

    @property
    def dim(self) -> int:
        """D."""
        return self.features.shape[1]

    def places(self, ids: np.ndarray) -> slice | None:
        """Where ``ids``, (n,) int64, belong in ``features``; None unless they are consecutive and all wanted."""
        start, stop = int(ids[0]) - self.wanted.start, int(ids[-1]) + 1 - self.wanted.start
        if start < 0 or stop > len(self.wanted) or stop - start != len(ids) or (np.diff(ids) != 1).any():
            return None
        return slice(start, stop)

    def put(self, ids: np.ndarray, values: np.ndarray) -> int:
        """Put rows in their places, those that are wanted; half precision is brought back to unit length.

        Args:
            ids: (n,) int64.
            values: (n, D) numbers.

        Returns:
            How many were wanted.
        """
        inside = (ids >= self.wanted.start) & (ids < self.wanted.stop)
        if not inside.all():
            ids, values = ids[inside], values[inside]
        if len(ids):
            where = self.places(ids)
            index = ids - self.wanted.start if where is None else where
            self.features[index] = _from_half(values) if values.dtype == np.float16 else values
            self.note(index)
        return len(ids)

    def note(self, index: slice | np.ndarray) -> None:
        """Take account of rows that have been read into ``features``."""
        self.found[index] = True
        if lengths_off(self.features[index])[1].any():
            self.all_unit = False

    def check_ids(self, path: Path, ids: np.ndarray) -> None:
        """Raise RunError when one of ``ids``, (n,) int64, is not in 0..N-1."""
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_samples):
            raise RunError(f"{path} has sample ids outside 0..{self.num_samples - 1}")


def check_features(where: object, sample_ids: np.ndarray, features: np.ndarray) -> None:
    """Raise RunError unless every row is finite and of unit length; the ids of the first bad rows are named.

    Args:
        where: what to name in the error.
        sample_ids: (n,) int64.
        features: (n, D) float32.
    """
    lengths, bad = lengths_off(features)
    if not bad.any():
        return
    ids = sample_ids[bad]
    shown = ", ".join(str(i) for i in ids[:_IDS_SHOWN]) + (", ..." if len(ids) > _IDS_SHOWN else "")
    bad_lengths = lengths[bad]
    if not np.isfinite(bad_lengths).all():
        what = "NaN or infinity"
    elif (bad_lengths == 0).any():
        what = "zero length"
    else:
        what = f"length {bad_lengths[0]:.4g} instead of 1"
    raise RunError(f"{where}: features of {len(ids)} samples have {what} (sample ids {shown})")


def lengths_off(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 lengths of the rows of ``features``, (n, D) float32; (n,) bool, whether they are not 1."""
    # vecdot makes no (n, D) temporary; a NaN or an infinity in a row shows in its length
    lengths = np.sqrt(np.vecdot(features, features))
    return lengths, ~(np.abs(lengths - 1) <= _UNIT_TOLERANCE)


def _from_half(values: np.ndarray) -> np.ndarray:
    """(n, D) float16 as float32 of unit length; rows whose length was not about 1 stay as they are."""
    features = values.astype(np.float32)
    lengths, off = lengths_off(features)
    lengths[off] = 1
    features /= lengths[:, None]
    return features
