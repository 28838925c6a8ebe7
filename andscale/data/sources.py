"""Raw data sets -> (encoded image, label): one function each.

Sources whose images lie in arrays (IDX, CIFAR, SVHN, digits) encode PNG, which loses nothing; sources of image files
hand out the files' bytes unchanged.
"""

import json
import os
from pathlib import Path

import numpy as np

from andscale.data.downloads import fetch_fashion_mnist, fetch_from_torchvision, find_idx_file
from andscale.data.raw import ArraySplit, FileSplit, RawDataset, RawSplit
from andscale.errors import RunError, UsageError

__all__ = [
    "SOURCES",
    "ArraySplit",
    "FileSplit",
    "RawDataset",
    "RawSplit",
    "fetch_fashion_mnist",
    "open_source",
]

SOURCES = ("fashion-mnist", "digits", "cifar10", "cifar100", "svhn", "imagenet", "cub200", "dogs", "image-folder")
DOWNLOADS_VARIABLE = "ANDSCALE_DOWNLOADS"
_FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple(str(digit) for digit in range(10))
_NUM_DIGITS_VAL = 360


def open_source(name: str, folder: Path | None) -> RawDataset:
    """Open the raw data set ``name``, from ``folder`` or, where there is none, from where it can be downloaded.

    Downloads go to ``data/raw/NAME`` below the working directory, or to ``$ANDSCALE_DOWNLOADS/NAME``.

    Raises:
        UsageError: no such source, a folder that does not hold it, an extra that is not installed.
        RunError: damaged files, a download that failed.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name the one that holds {name}")
    match name:
        case "fashion-mnist":
            return _open_fashion_mnist(folder)
        case "digits":
            return _open_digits()
        case "cifar10" | "cifar100":
            return _open_cifar(name, folder)
        case "svhn":
            return _open_svhn(folder)
        case "imagenet" | "cub200" | "dogs" | "image-folder":
            return _open_files(name, folder)
        case _:
            raise UsageError(f"no source {name!r}: choose one of {', '.join(SOURCES)}")


def _open_files(name: str, folder: Path | None) -> RawDataset:
    """A source of image files, which are never downloaded."""
    from andscale.data.fine_grained import open_cub200, open_dogs
    from andscale.data.image_folder import open_image_folder
    from andscale.data.imagenet import open_imagenet

    openers = {"imagenet": open_imagenet, "cub200": open_cub200, "dogs": open_dogs, "image-folder": open_image_folder}
    return openers[name](folder)


def _downloads(name: str) -> Path:
    return Path(os.environ.get(DOWNLOADS_VARIABLE) or "data/raw") / name


def _open_fashion_mnist(folder: Path | None) -> RawDataset:
    from andscale.data.array_formats import read_idx

    place, words = fetch_fashion_mnist(folder, _downloads("fashion-mnist"))
    splits: dict[str, ArraySplit] = {}
    for split, prefix in (("train", "train"), ("val", "t10k")):
        images_path = find_idx_file(place, f"{prefix}-images-idx3-ubyte")
        labels_path = find_idx_file(place, f"{prefix}-labels-idx1-ubyte")
        assert images_path is not None and labels_path is not None
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise RunError(f"{labels_path} has {len(labels)} labels, {images_path} has {len(images)} images")
        splits[split] = _array_split(f"{prefix}-images-idx3-ubyte", images, labels)
    # a folder that the user names may hold a part of it; what was fetched must be the whole
    is_given = folder is not None and place.is_relative_to(folder)
    counts = (len(splits["train"]), len(splits["val"]))
    if not is_given and counts != (60_000, 10_000):
        raise RunError(f"{place} has {counts[0]} and {counts[1]} images, Fashion-MNIST has 60000 and 10000: remove it")
    if folder is not None and not is_given:
        words += f", as {folder} does not hold the four IDX files"
    return _array_dataset("fashion-mnist", _FASHION_MNIST_CLASSES, splits, f"{words} ({place})")


def _open_digits() -> RawDataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "digits needs scikit-learn: install andscale with its extra, pip install 'andscale[sources]'"
        ) from None
    content = load_digits()
    # 0..16 -> 0..240, exactly
    images, labels = (content.images * 15).astype(np.uint8), content.target
    whole = _array_split("digits", images, labels)
    order, cut = np.arange(len(whole)), len(whole) - _NUM_DIGITS_VAL
    splits = {"train": whole.take(order[:cut]), "val": whole.take(order[cut:])}
    return _array_dataset("digits", _DIGITS, splits, "scikit-learn's digits")


def _open_cifar(name: str, folder: Path | None) -> RawDataset:
    from andscale.data.array_formats import CifarFiles

    place = folder or fetch_from_torchvision(name, _downloads(name))
    if name == "cifar10":
        files = CifarFiles(place, "cifar-10-batches-py", "cifar-10-python.tar.gz")
        batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]}
        label_key, classes = "labels", files.read_classes("label_names")
    else:
        files = CifarFiles(place, "cifar-100-python", "cifar-100-python.tar.gz")
        batches = {"train": ["train"], "val": ["test"]}
        label_key, classes = "fine_labels", files.read_classes("fine_label_names")
    splits = {
        split: _join([_array_split(f"{files.base}/{b}", *files.read_images(b, label_key)) for b in names])
        for split, names in batches.items()
    }
    obtained_from = str(place) if folder else f"torchvision's mirrors ({place})"
    return _array_dataset(name, classes, splits, obtained_from, files.originals)


def _open_svhn(folder: Path | None) -> RawDataset:
    from andscale.data.array_formats import read_svhn

    place = folder or fetch_from_torchvision("svhn", _downloads("svhn"))
    splits, originals = {}, (place / "train_32x32.mat", place / "test_32x32.mat")
    for split, path in zip(("train", "val"), originals, strict=True):
        if not path.is_file():
            raise UsageError(f"{place} does not hold {path.name}: name the folder with SVHN's .mat files, or none")
        splits[split] = _array_split(path.name, *read_svhn(path))
    obtained_from = str(place) if folder else f"torchvision's mirrors ({place})"
    return _array_dataset("svhn", _DIGITS, splits, obtained_from, originals)


def _array_split(name: str, images: np.ndarray, labels: np.ndarray) -> ArraySplit:
    numbers = np.arange(len(images))
    return ArraySplit(images, labels.astype(np.int32), np.full(len(images), name), numbers)


def _join(splits: list[ArraySplit]) -> ArraySplit:
    images, labels = [s.images for s in splits], [s.labels for s in splits]
    names, numbers = [s.names for s in splits], [s.numbers for s in splits]
    return ArraySplit(*(np.concatenate(parts) for parts in (images, labels, names, numbers)))


def _array_dataset(
    name: str,
    classes: tuple[str, ...],
    splits: dict[str, ArraySplit],
    obtained_from: str,
    originals: tuple[Path, ...] = (),
) -> RawDataset:
    """Check the labels and hash names, pixels and labels into the identity."""
    from blake3 import blake3

    shapes = {split: samples.images.shape for split, samples in splits.items()}
    hasher = blake3(json.dumps([name, classes, shapes]).encode())
    for split, samples in splits.items():
        outside = np.flatnonzero((samples.labels < 0) | (samples.labels >= len(classes)))
        if len(outside):
            at = int(outside[0])
            raise RunError(
                f"{samples.describe(at)} of {obtained_from} has label {samples.labels[at]}, "
                f"but {name} has the classes 0..{len(classes) - 1} ({split})"
            )
        hasher.update(np.ascontiguousarray(samples.images).tobytes())
        hasher.update(samples.labels.tobytes())
    return RawDataset(name, classes, dict(splits), obtained_from, hasher.hexdigest(), originals)
