"""What the data sets of the paper were published with: counts, and hashes of their files.

A folder that a user names may hold a part of a data set, so a difference is no error there; it is named and recorded.
Sources: the data sets' own pages for the counts; torchvision.datasets (0.29) for CIFAR, SVHN and ImageNet's devkit;
the loaders of several public projects, which agree, for CUB-200-2011, Stanford Dogs and the sizes of ImageNet's tars.
"""

import hashlib
import sys
from dataclasses import dataclass, field

import numpy as np

from andscale.data.raw import RawDataset
from andscale.errors import RunError


@dataclass(frozen=True)
class Published:
    """A data set as published.

    Attributes:
        train, val: images.
        num_classes: class numbers are below it.
        md5: hexadecimal digits by file name.
        sizes: bytes by file name, of files that would take many minutes to hash.
    """

    train: int
    val: int
    num_classes: int
    md5: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


PUBLISHED = {
    "fashion-mnist": Published(60_000, 10_000, 10),
    "cifar10": Published(50_000, 10_000, 10, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}),
    "cifar100": Published(50_000, 10_000, 100, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}),
    "svhn": Published(
        73_257,
        26_032,
        10,
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "imagenet": Published(
        1_281_167,
        50_000,
        1000,
        {"ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf"},
        {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160},
    ),
    "cub200": Published(5_994, 5_794, 200, {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}),
    "dogs": Published(
        12_000,
        8_580,
        120,
        {"images.tar": "1bb1f2a596ae7057f99d7d75860002ef", "lists.tar": "edbb9f16854ec66506b5f09b583e0656"},
    ),
}


def check_published(raw: RawDataset, *, was_downloaded: bool) -> list[str] | None:
    """Name the differences from what was published, a line each on standard error; returns them as ``differences``.

    Raises:
        RunError: a download differs.
    """
    found = differences(raw)
    if found and was_downloaded:
        raise RunError(f"{raw.obtained_from}: not {raw.name} as published ({'; '.join(found)}): remove that download")
    for text in found or ():
        print(f"warning: this is not {raw.name} as published: {text}", file=sys.stderr, flush=True)
    return found


def differences(raw: RawDataset) -> list[str] | None:
    """How ``raw`` differs from what was published, a sentence each; None for sources of which nothing was published."""
    published = PUBLISHED.get(raw.name)
    if published is None:
        return None
    found = []
    for split, count in (("train", published.train), ("val", published.val)):
        if len(raw.splits[split]) != count:
            found.append(f"{split} has {len(raw.splits[split]):,} images, published are {count:,}")
    if len(raw.classes) != published.num_classes:
        found.append(f"it has {len(raw.classes):,} classes, published are {published.num_classes:,}")
    counts = np.bincount(raw.splits["train"].labels, minlength=len(raw.classes))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        others = f" and of {len(empty) - 1} more classes" if len(empty) > 1 else ""
        found.append(f"train has no image of {raw.classes[empty[0]]}{others}")
    for path in raw.originals:
        expected_size, expected_md5 = published.sizes.get(path.name), published.md5.get(path.name)
        if expected_size is not None and path.stat().st_size != expected_size:
            found.append(f"{path.name} has {path.stat().st_size:,} bytes, published are {expected_size:,}")
        elif expected_md5 is not None:
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if md5 != expected_md5:
                found.append(f"{path.name} has the MD5 {md5}, published is {expected_md5}")
    return found
