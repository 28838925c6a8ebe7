"""Folders of image files: ImageNet's layout ``train/CLASS/*``, ``val/CLASS/*``, or one flat folder without labels."""

import os
from pathlib import Path

import numpy as np

from andscale.data.sources import FileSplit, RawDataset, safe_text
from andscale.errors import UsageError

_Files = list[tuple[str, int]]
"""(name, size in bytes), sorted by name."""


def open_image_folder(folder: Path | None) -> RawDataset:
    """List a folder of images; names that start with '.' are passed over, links are followed.

    Raises:
        UsageError: no folder, empty, an entry where none belongs, a class of ``val`` that ``train`` does not have.
    """
    if folder is None:
        raise UsageError("image-folder needs a folder: one with train/CLASS/* and val/CLASS/*, or one of images")
    folder = folder.absolute()
    if not (folder / "train").is_dir():
        return _open_flat(folder)
    train = _list_classes(folder / "train")
    val = _list_classes(folder / "val") if (folder / "val").exists() else {}
    unknown = sorted(val.keys() - train.keys())
    if unknown:
        raise UsageError(
            f"{folder / 'val'} has a class that {folder / 'train'} does not have: {safe_text(unknown[0])!r}"
        )
    classes = sorted(train)
    if not any(train.values()):
        raise UsageError(f"{folder / 'train'} holds no images")
    listed = {}
    for split, content in (("train", train), ("val", val)):
        listed[split] = [
            (f"{split}/{name}/{file}", size, number)
            for number, name in enumerate(classes)
            for file, size in content.get(name, [])
        ]
    return _dataset(folder, tuple(safe_text(name) for name in classes), listed)


def _open_flat(folder: Path) -> RawDataset:
    files, folders = _list(folder)
    if folders:
        raise UsageError(
            f"{folder} holds the folder {safe_text(folders[0])!r} and no train/: image-folder reads "
            "train/CLASS/* and val/CLASS/*, or one flat folder of images"
        )
    if not files:
        raise UsageError(f"{folder} holds no images")
    return _dataset(folder, (), {"train": [(name, size, -1) for name, size in files], "val": []})


def _dataset(folder: Path, classes: tuple[str, ...], listed: dict[str, list[tuple[str, int, int]]]) -> RawDataset:
    """``listed``: split -> (path below ``folder``, bytes, class number) of every file."""
    from blake3 import blake3

    hasher = blake3("\0".join(["image-folder", *classes]).encode())
    for entries in listed.values():
        for path, size, label in entries:
            hasher.update(b"\0%b\0%d\0%d" % (os.fsencode(path), size, label))
    splits = {
        split: FileSplit(folder, [e[0] for e in entries], np.array([e[2] for e in entries], np.int32))
        for split, entries in listed.items()
    }
    return RawDataset("image-folder", classes, dict(splits), safe_text(str(folder)), hasher.hexdigest())


def _list_classes(folder: Path) -> dict[str, _Files]:
    """The files of each class folder."""
    strays, names = _list(folder)
    if strays:
        raise UsageError(
            f"{folder} holds the file {safe_text(strays[0][0])!r} beside its class folders: move it into its class "
            "folder, or away"
        )
    if not names:
        raise UsageError(f"{folder} holds no class folders")
    content = {}
    for name in names:
        content[name], below = _list(folder / name)
        if below:
            raise UsageError(
                f"{safe_text(str(folder / name))} holds the folder {safe_text(below[0])!r}: images must lie "
                "directly in their class folder"
            )
    return content


def _list(folder: Path) -> tuple[_Files, list[str]]:
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
