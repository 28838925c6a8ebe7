"""CUB-200-2011 and Stanford Dogs, from their published archives or unpacked, with their own lists of train and test.

Paths in the lists are only looked up among the images that are there, so none leads outside.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from andscale.data.array_formats import load_mat
from andscale.data.file_listing import Listing, files_dataset, list_classes
from andscale.data.raw import RawDataset, safe_text
from andscale.data.tar_archives import list_members, open_archive
from andscale.errors import RunError, UsageError

_CUB = "CUB_200_2011"
_CUB_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
_MAX_DIGITS = 18
_DOGS_LISTS = {"train": "train_list.mat", "val": "test_list.mat"}

_Labelled = list[tuple[str, int]]
"""(path of an image, class number), in the order of the lists."""


def open_cub200(folder: Path | None) -> RawDataset:
    """CUB-200-2011: its folder or ``CUB_200_2011.tgz`` in ``folder``, or ``folder`` itself; ``val`` is its test split.

    Raises:
        UsageError: no folder, or one that does not hold it.
        RunError: lists or images are missing, damaged or at odds.
    """
    if folder is None:
        raise UsageError(f"cub200 needs a folder: one with {_CUB}.tgz, or with images.txt and images/")
    folder = folder.absolute()
    archive = folder / f"{_CUB}.tgz"
    root = next((place for place in (folder / _CUB, folder) if (place / "images.txt").is_file()), None)
    if root is not None:
        listing = Listing.of_classes(root, "images", list_classes(root / "images"))
        lists = _read_lists(root, _CUB_LISTS, lambda name: (root / name).read_bytes())
    elif archive.is_file():
        listing = _list_archive(archive, f"{_CUB}/")
        lists = _read_lists(archive, _CUB_LISTS, listing.read)
    else:
        raise UsageError(f"{folder} holds neither {archive.name} nor images.txt")
    where = root or archive
    labelled, classes = _read_cub_lists(where, lists)
    parts = {split: _choose(listing, where, rows) for split, rows in labelled.items()}
    return files_dataset("cub200", classes, parts, safe_text(str(where)), () if root else (archive,))


def open_dogs(folder: Path | None) -> RawDataset:
    """Stanford Dogs: ``Images/`` or ``images.tar``, and the lists as they are, in ``lists/`` or in ``lists.tar``;
    ``val`` is its test split.

    Raises:
        UsageError: no folder, or one that does not hold it.
        RunError: lists or images are missing, damaged or at odds.
    """
    if folder is None:
        raise UsageError("dogs needs a folder: one with images.tar and lists.tar, or with Images/ and train_list.mat")
    folder = folder.absolute()
    images, lists_archive = folder / "images.tar", folder / "lists.tar"
    originals = tuple(path for path in (images, lists_archive) if path.is_file())
    if images.is_file():
        listing = _list_archive(images)
    elif (folder / "Images").is_dir():
        listing = Listing.of_classes(folder, "Images", list_classes(folder / "Images"))
    else:
        raise UsageError(f"{folder} holds neither images.tar nor Images/")
    names = tuple(_DOGS_LISTS.values())
    root = next((place for place in (folder, folder / "lists") if (place / names[0]).is_file()), None)
    if root is not None:
        lists = _read_lists(root, names, lambda name: (root / name).read_bytes())
    elif lists_archive.is_file():
        lists = _read_lists(lists_archive, names, _list_archive(lists_archive).read)
    else:
        raise UsageError(f"{folder} holds neither lists.tar nor {names[0]}")
    where = root or lists_archive
    labelled = {split: _read_dogs_list(f"{where}:{name}", lists[name]) for split, name in _DOGS_LISTS.items()}
    classes = _dogs_classes(where, [row for rows in labelled.values() for row in rows])
    parts = {
        split: _choose(listing, where, [(f"Images/{path}", label) for path, label in rows])
        for split, rows in labelled.items()
    }
    return files_dataset("dogs", classes, parts, safe_text(str(folder)), originals)


def _list_archive(archive: Path, prefix: str = "") -> Listing:
    """The files of an archive, gzipped or not, whose names begin with ``prefix``, without it."""
    plain = open_archive(archive)
    members = (m for m in list_members(plain, str(archive)) if m.name.startswith(prefix))
    return Listing.of_archive(plain, (replace(m, name=m.name.removeprefix(prefix)) for m in members))


def _read_lists(where: Path, names: Iterable[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    lists = {}
    for name in names:
        try:
            lists[name] = read(name)
        except (KeyError, FileNotFoundError):
            raise RunError(f"{where} does not hold {name}") from None
    return lists


def _choose(listing: Listing, where: Path, rows: _Labelled) -> tuple[Listing, np.ndarray]:
    """The listed images in the order of ``rows``, and their labels (N,) int32."""
    missing = [path for path, _ in rows if path not in listing.positions]
    if missing:
        raise RunError(
            f"{listing.place} lacks {len(missing)} of the {len(rows)} images that a list of {where} names: "
            f"{safe_text(missing[0])!r} is the first"
        )
    positions = np.array([listing.positions[path] for path, _ in rows], np.int64)
    if len(np.unique(positions)) < len(rows):
        raise RunError(f"{where} is damaged: a list names an image twice")
    return listing.take(positions), np.array([label for _, label in rows], np.int32)


def _read_cub_lists(where: Path, lists: dict[str, bytes]) -> tuple[dict[str, _Labelled], tuple[str, ...]]:
    """Split -> labelled paths, and names by class number; the lists join by their image numbers."""
    tables = {name: _read_table(f"{where}:{name}", data) for name, data in lists.items()}
    paths, labels, splits, names = (tables[name] for name in _CUB_LISTS)
    for name in _CUB_LISTS[1:3]:
        at_odds = sorted(paths.keys() ^ tables[name].keys())
        if at_odds:
            raise RunError(f"{where}: images.txt and {name} are at odds about image {at_odds[0]}")
    if sorted(names) != list(range(1, len(names) + 1)):
        raise RunError(f"{where}: classes.txt does not number its classes 1, 2, ...")
    labelled: dict[str, _Labelled] = {"train": [], "val": []}
    for image in sorted(paths):
        if splits[image] not in ("0", "1"):
            raise RunError(f"{where}: train_test_split.txt says {splits[image]!r} of image {image}, not 0 or 1")
        label = labels[image]
        if not label.isdecimal() or len(label) > _MAX_DIGITS or int(label) not in names:
            raise RunError(f"{where}: image_class_labels.txt gives image {image} the class {labels[image]!r}")
        row = f"images/{paths[image]}", int(labels[image]) - 1
        labelled["train" if splits[image] == "1" else "val"].append(row)
    return labelled, tuple(safe_text(names[number]) for number in sorted(names))


def _read_table(where: str, data: bytes) -> dict[int, str]:
    """Lines of a number and a text."""
    table: dict[int, str] = {}
    for line_number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        number, _, text = line.strip().partition(" ")
        if not number.isdecimal() or len(number) > _MAX_DIGITS or not text or int(number) in table:
            raise RunError(f"{where} is damaged: line {line_number} is not a new number and a text")
        table[int(number)] = text
    return table


def _read_dogs_list(where: str, data: bytes) -> _Labelled:
    paths, labels = load_mat("dogs", where, io.BytesIO(data), "file_list", "labels")
    try:
        rows = [(str(path.item()), int(label) - 1) for path, label in zip(paths.flat, labels.flat, strict=True)]
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise RunError(f"{where} is damaged: file_list and labels are not N texts and N numbers") from None
    return rows


def _dogs_classes(where: Path, rows: _Labelled) -> tuple[str, ...]:
    """Names by class number: the folders of the images; the lists hold no names."""
    folders: dict[int, str] = {}
    for path, label in rows:
        name = folders.setdefault(label, path.partition("/")[0])
        if not path.startswith(f"{name}/"):
            raise RunError(f"{where} is damaged: class {label + 1} is both {name!r} and the folder of {path!r}")
    if sorted(folders) != list(range(len(folders))) or len(set(folders.values())) < len(folders):
        raise RunError(f"{where} is damaged: its labels are not 1, 2, ... with a folder each")
    return tuple(safe_text(folders[number]) for number in range(len(folders)))
