"""Tiny raw data sets in their original layouts."""

import functools
import gzip
import importlib.util
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray, *, compressed: bool = False) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def fashion_mnist(folder: Path, num_train: int = 12, num_val: int = 5, *, compressed: bool = False) -> dict:
    """Four IDX files; returns prefix -> (images, labels)."""
    rng = np.random.default_rng(num_train)
    content = {}
    for prefix, count in (("train", num_train), ("t10k", num_val)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images, compressed=compressed)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, compressed=compressed)
        content[prefix] = images, labels
    return content


def numpy_as_python_2(array: np.ndarray) -> bytes:
    """A uint8 array as protocol 2 of Python 2 spells it in CIFAR's files: strings of bytes."""
    raw = array.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", n) for n in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR("
        b"K\x01(" + shape + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )


def cifar_batch(images: np.ndarray, labels: list[int], label_key: str) -> bytes:
    """A batch file as Python 2 wrote it; images (N, 32, 32, 3)."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    numbers = b"(l" + b"".join(b"K" + bytes([label]) + b"a" for label in labels)
    key = label_key.encode()
    return (
        b"\x80\x02(dU\x04data"
        + numpy_as_python_2(planes)
        + b"sU"
        + bytes([len(key)])
        + key
        + numbers.replace(b"(l", b"]")
        + b"s."
    )


def cifar(folder: Path, name: str = "cifar10", per_batch: int = 3) -> dict:
    """The folder of CIFAR's python version; returns split -> (images, labels)."""
    rng = np.random.default_rng(7)
    base, meta, key, label_key, train, val = {
        "cifar10": (
            "cifar-10-batches-py", "batches.meta", "label_names", "labels",
            [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"],
        ),
        "cifar100": ("cifar-100-python", "meta", "fine_label_names", "fine_labels", ["train"], ["test"]),
    }[name]  # fmt: skip
    (folder / base).mkdir(parents=True)
    num_classes = 10 if name == "cifar10" else 100
    names = [f"class {i}" for i in range(num_classes)]
    (folder / base / meta).write_bytes(pickle.dumps({key: names}, protocol=2))
    content = {}
    for split, files in (("train", train), ("val", val)):
        images = rng.integers(0, 256, (per_batch * len(files), 32, 32, 3), dtype=np.uint8)
        labels = [int(x) for x in rng.integers(0, num_classes, len(images))]
        for i, file in enumerate(files):
            cut = slice(i * per_batch, (i + 1) * per_batch)
            (folder / base / file).write_bytes(cifar_batch(images[cut], labels[cut], label_key))
        content[split] = images, labels
    return content


def svhn(folder: Path, num_train: int = 6, num_val: int = 4) -> dict:
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    content = {}
    for split, name, count in (("train", "train", num_train), ("val", "test", num_val)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count) % 10 + 10  # starts with 10, which means 0
        labels = np.where(labels > 10, labels - 10, labels)
        content_of_file = {"X": images.transpose(1, 2, 3, 0), "y": labels.reshape(-1, 1).astype(np.uint8)}
        savemat(folder / f"{name}_32x32.mat", content_of_file)
        content[split] = images, np.where(labels == 10, 0, labels)
    return content


def encoded(mode: str = "RGB", file_format: str = "PNG", size: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    """A random image; ``size`` is (width, height)."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


EVERY_KIND = {
    "a.jpg": encoded("RGB", "JPEG"),
    "gray.jpeg": encoded("L", "JPEG"),
    "cmyk.JPEG": encoded("CMYK", "JPEG"),
    "b.png": encoded("RGB", "PNG"),
    "gray.png": encoded("L", "PNG"),
    "rgba.png": encoded("RGBA", "PNG"),
    "palette.png": encoded("P", "PNG"),
    "deep.png": encoded("I;16", "PNG"),
    "c.webp": encoded("RGB", "WEBP"),
    "d.bmp": encoded("RGB", "BMP"),
    "misnamed.jpg": encoded("RGB", "PNG", seed=1),
}


def image_folder(folder: Path, num_train: int = 9, num_val: int = 3) -> dict[str, bytes]:
    """ImageNet's layout with the classes ``ant`` and ``bee``; returns relative path -> bytes."""
    kinds = list(EVERY_KIND.items())
    content = {}
    for split, count in (("train", num_train), ("val", num_val)):
        for i in range(count):
            name, data = kinds[i % len(kinds)]
            content[f"{split}/{('ant', 'bee')[i % 2]}/{i:03d}{name}"] = data
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return content


WNIDS = ("n02105855", "n01440764", "n03355925", "n01443537", "n04067472", "n02123045", "n07714571", "n03028079")


@functools.cache
def _photographs() -> list[np.ndarray]:
    """China and flower of scikit-learn, whose import would take seconds."""
    (place,) = importlib.util.find_spec("sklearn").submodule_search_locations
    return [np.asarray(Image.open(Path(place) / "datasets" / "images" / f"{n}.jpg")) for n in ("china", "flower")]


def photograph(kind: int, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """A crop of one of scikit-learn's photographs whose colour and stripes tell its ``kind``; 120 to 300 pixels."""
    width, height = size or (int(n) for n in rng.integers(120, 301, 2))
    whole = _photographs()[int(rng.integers(2))]
    top, left = (int(rng.integers(0, limit - n + 1)) for limit, n in zip(whole.shape, (height, width), strict=False))
    crop = whole[top : top + height, left : left + width].astype(np.float32)
    angle, tint = 2.4 * kind, 127 * (1 + np.cos(2.1 * kind + np.array([0.0, 2.1, 4.2])))
    y, x = np.mgrid[:height, :width]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / (9 + 4 * (kind % 3)))
    return Image.fromarray((0.45 * crop + 0.3 * tint + 30 * (1 + stripes[..., None])).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 85} | options))
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar of regular files, as GNU tar writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = len(data), 1_338_000_000, "olga"
            tar.addfile(member, io.BytesIO(data))
    return path


def _imagenet_content(num_classes: int, train_per_class: int, val_per_class: int) -> tuple[dict, dict, list[int]]:
    """Train images by ``WNID/NAME``, validation images by name in their order, the class of each of these.

    As in the original, one training image is a PNG under the name of a JPEG, and one is CMYK.
    """
    rng = np.random.default_rng(num_classes)
    wnids = sorted(WNIDS[:num_classes])
    train = {
        f"{wnid}/{wnid}_{10 * i + 7}.JPEG": jpeg(photograph(kind, rng))
        for kind, wnid in enumerate(wnids)
        for i in range(train_per_class)
    }
    names = sorted(train)
    buffer = io.BytesIO()
    photograph(0, rng).save(buffer, "PNG")
    train[names[0]] = buffer.getvalue()
    train[names[-1]] = jpeg(photograph(num_classes - 1, rng).convert("CMYK"))
    truth = [int(kind) for kind in rng.permutation(np.repeat(np.arange(num_classes), val_per_class))]
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(photograph(kind, rng)) for i, kind in enumerate(truth, 1)}
    return train, val, truth


def imagenet_devkit(num_classes: int, truth: list[int]) -> dict[str, bytes]:
    """The devkit's files. Class number c (the place among the sorted WordNet ids) has ILSVRC2012_ID (c + 1) % C + 1,
    so that whoever takes one for the other, in either direction, is wrong; inner nodes of the hierarchy come last.
    """
    from scipy.io import savemat

    ids = [(c + 1) % num_classes + 1 for c in range(num_classes)]
    rows = [
        (ids[c], wnid, f"word {c}, other word", "a gloss", 0, np.empty((0, 0)), 0, 1300)
        for c, wnid in enumerate(sorted(WNIDS[:num_classes]))
    ]
    rows.append((num_classes + 1, "n00001740", "entity", "a gloss", num_classes, np.array([ids]), 1, 0))
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.empty((len(rows), 1), [(field, object) for field in fields])
    for row, values in zip(synsets, sorted(rows, key=lambda r: r[0]), strict=True):
        for field, value in zip(fields, values, strict=True):
            row[0][field] = value
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    lines = "".join(f"{ids[kind]}\n" for kind in truth)
    return {
        "readme.txt": b"ILSVRC2012",
        "data/meta.mat": buffer.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
    }


def write_imagenet_tars(folder: Path, num_classes: int = 4, train_per_class: int = 8, val_per_class: int = 3) -> dict:
    """The three archives of the challenge, tiny; returns split -> [(bytes, class number)] in the order of the ids."""
    train, val, truth = _imagenet_content(num_classes, train_per_class, val_per_class)
    wnids = sorted(WNIDS[:num_classes])
    classes = {}
    for wnid in WNIDS[:num_classes]:  # not sorted, as in the original
        members = {path.partition("/")[2]: data for path, data in train.items() if path.startswith(wnid)}
        inner = write_tar(folder / "inner.tar", dict(sorted(members.items(), reverse=True)))
        classes[f"{wnid}.tar"] = inner.read_bytes()
        inner.unlink()
    write_tar(folder / "ILSVRC2012_img_train.tar", classes)
    write_tar(folder / "ILSVRC2012_img_val.tar", dict(sorted(val.items(), reverse=True)))
    devkit = {f"ILSVRC2012_devkit_t12/{n}": data for n, data in imagenet_devkit(num_classes, truth).items()}
    write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit, "w:gz")
    return {
        "train": [(data, wnids.index(path[:9])) for path, data in sorted(train.items())],
        "val": list(zip(val.values(), truth, strict=True)),
    }


def write_imagenet_folders(
    folder: Path,
    num_classes: int = 4,
    train_per_class: int = 8,
    val_per_class: int = 3,
    below: str = "ILSVRC/Data/CLS-LOC",
) -> None:
    """The same images as folders, as on Kaggle by default, and the devkit unpacked."""
    train, val, truth = _imagenet_content(num_classes, train_per_class, val_per_class)
    files = {f"{below}/train/{path}": data for path, data in train.items()}
    files |= {f"{below}/val/{name}": data for name, data in val.items()}
    files |= {f"ILSVRC2012_devkit_t12/{name}": data for name, data in imagenet_devkit(num_classes, truth).items()}
    write_files(folder, files)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def cub200_files() -> dict[str, bytes]:
    """CUB-200-2011 with 3 birds: path below CUB_200_2011/ -> bytes. Numbers of images do not follow their splits."""
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    images = [f"{name}/{name[4:]}_{i:04d}_{60 + i}.jpg" for name in names for i in range(4)]
    files = {f"images/{path}": encoded("RGB", "JPEG", seed=n) for n, path in enumerate(images)}
    is_train = [n % 3 != 1 for n in range(len(images))]
    tables = {
        "images.txt": images,
        "image_class_labels.txt": [path[:3].lstrip("0") for path in images],
        "train_test_split.txt": [str(int(flag)) for flag in is_train],
        "classes.txt": names,
        "bounding_boxes.txt": ["0.0 0.0 20.0 16.0"] * len(images),
    }
    for name, texts in tables.items():
        files[name] = "".join(f"{number} {text}\n" for number, text in enumerate(texts, 1)).encode()
    files["README"] = b"CUB"
    return files


def write_cub200(folder: Path, *, archive: bool) -> None:
    files = {f"CUB_200_2011/{path}": data for path, data in cub200_files().items()}
    if archive:
        write_tar(folder / "CUB_200_2011.tgz", files | {"attributes.txt": b"1 has_bill_shape"}, "w:gz")
    else:
        write_files(folder, files)


DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")


def dogs_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Stanford Dogs with 2 breeds: images by path in images.tar, lists by name in lists.tar."""
    from scipy.io import savemat

    paths = [f"{name}/{name[:9]}_{10 * i + 3}.jpg" for name in DOGS for i in range(5)]
    images = {f"Images/{path}": encoded("RGB", "JPEG", seed=n) for n, path in enumerate(paths)}
    lists = {}
    chosen = {"train": [6, 0, 2, 9], "test": [1, 3, 5, 4]}  # not sorted; two images are in no list
    for split, places in {**chosen, "file": range(len(paths))}.items():
        cells = np.empty((len(places), 1), object)
        cells[:, 0] = [paths[n] for n in places]
        labels = np.array([[1.0 + DOGS.index(paths[n].partition("/")[0])] for n in places])
        buffer = io.BytesIO()
        savemat(buffer, {"file_list": cells, "annotation_list": cells, "labels": labels})
        lists[f"{split}_list.mat"] = buffer.getvalue()
    return images, lists


def write_dogs(folder: Path, *, archive: bool) -> None:
    images, lists = dogs_files()
    if archive:
        write_tar(folder / "images.tar", images)
        write_tar(folder / "lists.tar", lists)
    else:
        write_files(folder, images | lists)
