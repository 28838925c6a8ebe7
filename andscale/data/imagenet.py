"""ImageNet (ILSVRC 2012) as the challenge published it: image folders or the tars themselves, labels from the devkit.

Class numbers are places in the sorted list of the devkit's 1,000 WordNet ids, as torchvision and image folders have
them; the devkit's own ILSVRC2012_ID is another order.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from andscale.data.array_formats import load_mat
from andscale.data.file_listing import Listing, files_dataset, list_classes, list_files
from andscale.data.raw import RawDataset, safe_text
from andscale.data.tar_archives import Member, list_members, open_archive
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.spelling import spelt

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_TRAIN_NAME = re.compile(r"train/(n\d{8})/\1_\d+\.JPEG")
_VAL_NAME = re.compile(r"val/ILSVRC2012_val_(\d{8})\.JPEG")
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_WNID = re.compile(r"n\d{8}")
_NAME = attrgetter("name")


@dataclass(frozen=True)
class _Devkit:
    """What the devkit says.

    Attributes:
        path: its archive or folder.
        numbers: class number by WordNet id.
        classes: names by class number.
        truth: (V,) int32, class numbers of the validation images 1, 2, ...
    """

    path: Path
    numbers: dict[str, int]
    classes: tuple[str, ...]
    truth: np.ndarray


def open_imagenet(folder: Path | None) -> RawDataset:
    """ImageNet in ``folder``: each split from its tar or, where that is not there, from ``train/`` or ``val/`` directly
    in it or in ``ILSVRC/Data/CLS-LOC``.

    Raises:
        UsageError: no folder, a piece that is missing, files of another layout.
        RunError: damaged or hostile archives, a devkit that does not fit.
    """
    if folder is None:
        raise UsageError(
            f"imagenet needs a folder: one with {TRAIN_TAR} and {VAL_TAR}, or with train/nNNNNNNNN/*.JPEG and "
            f"val/*.JPEG, and with {DEVKIT}.tar.gz"
        )
    folder = folder.absolute()
    below = [folder / "ILSVRC" / "Data" / "CLS-LOC", folder / "Data" / "CLS-LOC"]
    root = next((place for place in below if place.is_dir()), folder)
    _refuse_class_folders(folder, root)
    devkit = _read_devkit(folder)
    train = _list_train(folder, root)
    val = _list_val(folder, root)
    parts = {
        "train": (train, _train_labels(train, devkit)),
        "val": (val, _val_labels(val, devkit)),
    }
    originals = tuple(path for path in (devkit.path, train.place, val.place) if path.is_file())
    return files_dataset("imagenet", devkit.classes, parts, safe_text(str(folder)), originals)


def _list_train(folder: Path, root: Path) -> Listing:
    archive = folder / TRAIN_TAR
    if archive.is_file():
        return Listing.of_archive(archive, _train_members(archive))
    if not (root / "train").is_dir():
        raise UsageError(f"{folder} holds neither {TRAIN_TAR} nor {root / 'train'}/")
    return Listing.of_classes(root, "train", list_classes(root / "train"))


def _train_members(archive: Path) -> Iterator[Member]:
    """The images of all classes: archives within the archive, whose bytes lie in one piece too."""
    outer = sorted(list_members(archive, str(archive)), key=_NAME)
    for member in outer:
        if not _CLASS_TAR.fullmatch(member.name):
            raise RunError(f"{archive} holds {safe_text(member.name)!r}: archives named nNNNNNNNN.tar were expected")
    with Progress("index", len(outer), "classes") as progress:
        for member in outer:
            inner = list_members(archive, f"{archive}:{member.name}", member)
            prefix = f"train/{member.name.removesuffix('.tar')}/"
            yield from (replace(image, name=prefix + image.name) for image in sorted(inner, key=_NAME))
            progress.advance()


def _refuse_class_folders(folder: Path, root: Path) -> None:
    """Raise UsageError where ``val/`` is sorted into class folders, as many keep it: that needs another source."""
    val = root / "val"
    folders = list_files(val)[1] if val.is_dir() and not (folder / VAL_TAR).is_file() else []
    if folders:
        raise UsageError(
            f"{val} holds class folders ({safe_text(folders[0])!r}), and imagenet reads val/*.JPEG as published: "
            f"prepare this layout with {spelt('prepare')} image-folder {safe_text(str(root))} OUT"
        )


def _list_val(folder: Path, root: Path) -> Listing:
    archive = folder / VAL_TAR
    if archive.is_file():
        members = sorted(list_members(archive, str(archive)), key=_NAME)
        return Listing.of_archive(archive, (replace(member, name=f"val/{member.name}") for member in members))
    if not (root / "val").is_dir():
        raise UsageError(f"{folder} holds neither {VAL_TAR} nor {root / 'val'}/")
    files, _ = list_files(root / "val")
    return Listing.of_folder(root, [(f"val/{name}", size) for name, size in files])


def _train_labels(listing: Listing, devkit: _Devkit) -> np.ndarray:
    """(N,) int32, from the names of the class folders."""
    labels = np.empty(len(listing.names), np.int32)
    for position, name in enumerate(listing.names):
        match = _TRAIN_NAME.fullmatch(name)
        if match is None:
            raise RunError(
                f"{listing.place} holds {safe_text(name)!r}: names like train/n01440764/n01440764_10026.JPEG were "
                "expected"
            )
        number = devkit.numbers.get(match[1])
        if number is None:
            raise RunError(f"{listing.place} has the class {match[1]}, which {devkit.path} does not have")
        labels[position] = number
    return labels


def _val_labels(listing: Listing, devkit: _Devkit) -> np.ndarray:
    """(N,) int32, from the ground truth by the number in each name."""
    labels = np.empty(len(listing.names), np.int32)
    for position, name in enumerate(listing.names):
        match = _VAL_NAME.fullmatch(name)
        if match is None:
            raise RunError(
                f"{listing.place} holds {safe_text(name)!r}: names like val/ILSVRC2012_val_00000001.JPEG were expected"
            )
        number = int(match[1])
        if not 1 <= number <= len(devkit.truth):
            raise RunError(f"{name} of {listing.place} has no label: {devkit.path} has {len(devkit.truth)}")
        labels[position] = devkit.truth[number - 1]
    return labels


def _read_devkit(folder: Path) -> _Devkit:
    path = next((p for p in (folder / f"{DEVKIT}.tar.gz", folder / DEVKIT) if p.exists()), None)
    if path is None:
        raise UsageError(f"{folder} holds neither {DEVKIT}.tar.gz nor {DEVKIT}/, which has the labels of val/*.JPEG")
    contents = _read_from(path, "data/meta.mat", _TRUTH)
    ids, numbers, classes = _read_synsets(f"{path}:data/meta.mat", contents[0])
    try:
        truth = np.array([numbers[ids[int(line)]] for line in contents[1].split()], np.int32)
    except (ValueError, KeyError) as error:
        raise RunError(f"{path}:{_TRUTH} is damaged: {error} is no ILSVRC2012_ID of a class") from None
    return _Devkit(path, numbers, classes, truth)


def _read_from(path: Path, *names: str) -> list[bytes]:
    """Files of the devkit, in its archive or its folder."""
    try:
        if path.is_dir():
            return [(path / name).read_bytes() for name in names]
        archive = open_archive(path)
        listing = Listing.of_archive(archive, list_members(archive, str(path)))
        return [listing.read(f"{DEVKIT}/{name}") for name in names]
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} is missing") from None
    except KeyError as error:
        raise RunError(f"{path} does not hold {error}") from None


def _read_synsets(where: str, data: bytes) -> tuple[dict[int, str], dict[str, int], tuple[str, ...]]:
    """WordNet id by ILSVRC2012_ID, class number by WordNet id, names by class number, of synsets without children."""
    (synsets,) = load_mat("imagenet", where, io.BytesIO(data), "synsets")
    try:
        leaves = [s for s in synsets.flat if s["num_children"].item() == 0]
        words = {str(s["WNID"].item()): str(s["words"].item()) for s in leaves}
        ids = {int(s["ILSVRC2012_ID"].item()): str(s["WNID"].item()) for s in leaves}
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError):
        raise RunError(f"{where} is not ImageNet's meta.mat: its synsets lack fields") from None
    if not leaves or not len(ids) == len(words) == len(leaves) or not all(map(_WNID.fullmatch, words)):
        raise RunError(f"{where} is damaged: ids of its synsets are missing, repeated or malformed")
    ordered = sorted(words)
    numbers = {wnid: number for number, wnid in enumerate(ordered)}
    return ids, numbers, tuple(f"{wnid} {words[wnid]}" for wnid in ordered)
