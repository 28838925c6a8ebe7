"""Lists of image files, in a folder or in a tar archive, and the data set that they make."""

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from andscale.data.raw import FileSplit, RawDataset, RawSplit, TarSplit, safe_text
from andscale.data.tar_archives import Member
from andscale.errors import UsageError

Files = list[tuple[str, int]]
"""(name, size in bytes), sorted by name."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Files of one folder or one tar archive.

    Attributes:
        place: the folder or the archive.
        names: (N,) paths below the folder, or what archives call them.
        lengths: (N,) int64, bytes.
        offsets: (N,) int64, of the first byte in the archive; None: in a folder.
    """

    place: Path
    names: Sequence[str]
    lengths: np.ndarray
    offsets: np.ndarray | None = None

    @classmethod
    def of_folder(cls, folder: Path, files: Files) -> "Listing":
        """``files`` directly in ``folder``, or with paths below it."""
        return cls(folder, [name for name, _ in files], np.array([size for _, size in files], np.int64))

    @classmethod
    def of_classes(cls, folder: Path, below: str, content: dict[str, Files]) -> "Listing":
        """The files of ``list_classes(folder / below)``, sorted by class and name."""
        files = [(f"{below}/{name}/{file}", size) for name in sorted(content) for file, size in content[name]]
        return cls.of_folder(folder, files)

    @classmethod
    def of_archive(cls, archive: Path, members: Iterable[Member]) -> "Listing":
        """Members of an archive, in their order."""
        names, places = [], array("q")
        for member in members:
            names.append(member.name)
            places.extend((member.offset, member.length))
        table = np.array(places, np.int64).reshape(-1, 2)
        return cls(archive, names, table[:, 1].copy(), table[:, 0].copy())

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position by name."""
        return {name: position for position, name in enumerate(self.names)}

    def take(self, positions: np.ndarray) -> "Listing":
        """The files ``positions`` ((M,) int64) alone, in that order."""
        offsets = None if self.offsets is None else self.offsets[positions]
        return Listing(self.place, [self.names[i] for i in positions], self.lengths[positions], offsets)

    def split(self, labels: np.ndarray) -> RawSplit:
        """The files as a split; ``labels`` (N,) int32."""
        if self.offsets is None:
            return FileSplit(self.place, self.names, labels)
        return TarSplit(self.place, self.names, self.offsets, self.lengths, labels)

    def read(self, name: str) -> bytes:
        """One file's bytes; KeyError when it is not listed."""
        return self.take(np.array([self.positions[name]])).split(np.array([-1], np.int32)).read(0)


def files_dataset(
    name: str,
    classes: tuple[str, ...],
    parts: dict[str, tuple[Listing, np.ndarray]],
    obtained_from: str,
    originals: tuple[Path, ...] = (),
) -> RawDataset:
    """The data set of listed files; ``parts``: split -> (files, their labels (N,) int32)."""
    from blake3 import blake3

    hasher = blake3("\0".join([name, *classes]).encode())
    for listing, labels in parts.values():
        for path, size, label in zip(listing.names, listing.lengths.tolist(), labels.tolist(), strict=True):
            hasher.update(b"\0%b\0%d\0%d" % (os.fsencode(path), size, label))
    splits = {split: listing.split(labels) for split, (listing, labels) in parts.items()}
    return RawDataset(name, classes, splits, obtained_from, hasher.hexdigest(), originals)


def list_classes(folder: Path) -> dict[str, Files]:
    """The files of each class folder."""
    strays, names = list_files(folder)
    if strays:
        raise UsageError(
            f"{folder} holds the file {safe_text(strays[0][0])!r} beside its class folders: move it into its class "
            "folder, or away"
        )
    if not names:
        raise UsageError(f"{folder} holds no class folders")
    content = {}
    for name in names:
        content[name], below = list_files(folder / name)
        if below:
            raise UsageError(
                f"{safe_text(str(folder / name))} holds the folder {safe_text(below[0])!r}: images must lie "
                "directly in their class folder"
            )
    return content


def list_files(folder: Path) -> tuple[Files, list[str]]:
    """Files and folders in ``folder``, each sorted by name."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append((entry.name, entry.stat().st_size))
                else:
                    raise UsageError(
                        f"{safe_text(entry.path)!r} is neither a file nor a folder (a broken link?): remove it"
                    )
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(files), sorted(folders)
