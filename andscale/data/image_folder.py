"""Folders of image files: ImageNet's layout ``train/CLASS/*``, ``val/CLASS/*``, or one flat folder without labels."""

from pathlib import Path

import numpy as np

from andscale.data.file_listing import Listing, files_dataset, list_classes, list_files
from andscale.data.raw import RawDataset, safe_text
from andscale.errors import UsageError


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
    train = list_classes(folder / "train")
    val = list_classes(folder / "val") if (folder / "val").exists() else {}
    unknown = sorted(val.keys() - train.keys())
    if unknown:
        raise UsageError(
            f"{folder / 'val'} has a class that {folder / 'train'} does not have: {safe_text(unknown[0])!r}"
        )
    classes = sorted(train)
    if not any(train.values()):
        raise UsageError(f"{folder / 'train'} holds no images")
    parts = {}
    for split, content in (("train", train), ("val", val)):
        listing = Listing.of_classes(folder, split, content)
        numbers = [number for number, name in enumerate(classes) for _ in content.get(name, [])]
        parts[split] = listing, np.array(numbers, np.int32)
    return files_dataset("image-folder", tuple(safe_text(name) for name in classes), parts, safe_text(str(folder)))


def _open_flat(folder: Path) -> RawDataset:
    files, folders = list_files(folder)
    if folders:
        raise UsageError(
            f"{folder} holds the folder {safe_text(folders[0])!r} and no train/: image-folder reads "
            "train/CLASS/* and val/CLASS/*, or one flat folder of images"
        )
    if not files:
        raise UsageError(f"{folder} holds no images")
    listing = Listing.of_folder(folder, files)
    parts = {
        "train": (listing, np.full(len(files), -1, np.int32)),
        "val": (Listing.of_folder(folder, []), np.empty(0, np.int32)),
    }
    return files_dataset("image-folder", (), parts, safe_text(str(folder)))
