"""Tiny raw data sets in their original layouts."""

import gzip
import io
import pickle
import struct
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
