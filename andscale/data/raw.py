"""Raw data sets as ``prepare`` sees them: splits of encoded images with labels, in arrays, files or tar archives."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from blake3 import blake3

from andscale.errors import RunError, UsageError

MAX_IMAGE_BYTES = 1 << 30
"""More is no encoded image: the largest that is decoded has 89 million pixels."""


class RawSplit(Protocol):
    """The samples of one split, in their final order; small enough to be sent to another process in parts."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32, class numbers; -1 = none."""

    @property
    def is_file_backed(self) -> bool:
        """Whether images come from files that somebody else wrote, and so may be broken."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image."""

    def describe(self, index: int) -> str:
        """Where the image comes from, as valid UTF-8."""

    def take(self, indices: np.ndarray) -> "RawSplit":
        """The samples ``indices`` ((M,) int64) alone, in that order."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Images in an array.

    Attributes:
        images: (N, H, W) or (N, H, W, 3) uint8.
        labels: (N,) int32.
        names: (N,) the file of each image, and
        numbers: (N,) int64, its place in that file.
    """

    images: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    numbers: np.ndarray
    is_file_backed = False

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        """The image as PNG: gray or RGB, no metadata."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.images[index]).save(buffer, "PNG")
        return buffer.getvalue()

    def describe(self, index: int) -> str:
        """``train-images-idx3-ubyte#123``."""
        return f"{self.names[index]}#{self.numbers[index]}"

    def take(self, indices: np.ndarray) -> "ArraySplit":
        """The samples ``indices`` alone."""
        return ArraySplit(self.images[indices], self.labels[indices], self.names[indices], self.numbers[indices])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files: ``paths`` are relative to ``root``; ``labels`` (N,) int32."""

    root: Path
    paths: Sequence[str]
    labels: np.ndarray
    is_file_backed = True

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The file's bytes, unchanged."""
        with (self.root / self.paths[index]).open("rb") as file:
            _check_length(os.fstat(file.fileno()).st_size)
            return file.read()

    def describe(self, index: int) -> str:
        """The path relative to the source folder."""
        return safe_text(self.paths[index])

    def take(self, indices: np.ndarray) -> "FileSplit":
        """The samples ``indices`` alone."""
        return FileSplit(self.root, [self.paths[i] for i in indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class TarSplit:
    """Image files in an uncompressed tar archive, read in place.

    Attributes:
        archive: its path.
        names: (N,) what ``describe`` says; never opened as paths.
        offsets: (N,) int64, of the image's first byte in the archive.
        lengths: (N,) int64, bytes.
        labels: (N,) int32.
    """

    archive: Path
    names: Sequence[str]
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    is_file_backed = True

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The member's bytes, unchanged."""
        length = int(self.lengths[index])
        _check_length(length)
        # opened each time: a descriptor would not survive the way to another process
        with self.archive.open("rb") as file:
            file.seek(self.offsets[index])
            data = file.read(length)
        if len(data) < length:
            raise RunError(f"{self.archive} ends within it")
        return data

    def describe(self, index: int) -> str:
        """The path that the image has where the archive is unpacked as usual."""
        return safe_text(self.names[index])

    def take(self, indices: np.ndarray) -> "TarSplit":
        """The samples ``indices`` alone."""
        names = [self.names[i] for i in indices]
        return TarSplit(self.archive, names, self.offsets[indices], self.lengths[indices], self.labels[indices])


@dataclass(frozen=True)
class RawDataset:
    """A raw data set, opened.

    Attributes:
        name: which source it is.
        classes: names by class number; empty when there are no labels.
        splits: ``train`` and ``val``; ``val`` may be empty.
        obtained_from: in words.
        identity: BLAKE3 over what decides the content: all pixels and labels of array-backed sources; paths and sizes
            of files, which would take hours to read on a large folder. Archives and the folders that they unpack to
            have the same one.
        originals: the published files that were read, for those whose hashes are known.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, RawSplit]
    obtained_from: str
    identity: str
    originals: tuple[Path, ...] = ()


def hold_out(raw: RawDataset, number: int) -> RawDataset:
    """A data set whose ``val`` are training images that are trained on no more, to choose settings by.

    Args:
        raw: its own ``val`` is left out.
        number: of images, evenly spaced in the order of ``train``, so that a split in the order of its classes gives
            the same share of each.

    Raises:
        UsageError: nothing would be left to train on.
    """
    train = raw.splits["train"]
    if not 0 < number < len(train):
        raise UsageError(f"{number:,} images cannot be held out of {len(train):,}: choose fewer")
    held = (2 * np.arange(number) + 1) * len(train) // (2 * number)
    splits = {"train": train.take(np.delete(np.arange(len(train)), held)), "val": train.take(held)}
    identity = blake3(f"{raw.identity} hold_out {number}".encode()).hexdigest()
    words = f"{raw.obtained_from}, {number:,} of its training images held out as val"
    return replace(raw, splits=splits, obtained_from=words, identity=identity)


def _check_length(length: int) -> None:
    if length > MAX_IMAGE_BYTES:
        raise RunError(f"it has more than {MAX_IMAGE_BYTES} bytes, which no image has")


def safe_text(name: str) -> str:
    r"""A file name as valid UTF-8: bytes that are none become ``\xff``-like escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
