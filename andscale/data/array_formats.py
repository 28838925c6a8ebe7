"""Files that hold many images as one array: IDX, CIFAR's pickles, SVHN's .mat; read into numpy, nothing executed."""

import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from andscale.data.plain_pickle import InertArray, load_plain_pickle
from andscale.data.tar_archives import list_members, open_archive
from andscale.data.unpacking import GZIP_MAGIC, unpack_bytes
from andscale.errors import RunError, UsageError
from andscale.store.rehearsal import rehearse

_IDX_UINT8 = 0x08
_CIFAR_FORM = (3, 32, 32)
_MAX_BATCH_BYTES = 1 << 30
_MAT_ROOM_BYTES = 2 << 30


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: uint8, ``num_axes`` axes.

    Raises:
        RunError: another magic number, truncated, longer than its header says, damaged compression.
    """
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    data = unpack_bytes(path) if is_packed else path.read_bytes()
    header = 4 + 4 * num_axes
    if len(data) < header or data[:4] != bytes([0, 0, _IDX_UINT8, num_axes]):
        raise RunError(f"{path} is not an IDX file of unsigned bytes with {num_axes} axes")
    sizes = struct.unpack(f">{num_axes}I", data[4:header])
    if len(data) - header != math.prod(sizes):
        raise RunError(f"{path} is damaged: {len(data) - header} bytes follow a header that says {math.prod(sizes)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """SVHN's ``*_32x32.mat``: images (N, 32, 32, 3) uint8 and labels (N,) int32, its label 10 as 0.

    Raises:
        UsageError: scipy is not installed.
        RunError: not such a file.
    """
    content = load_mat("svhn", str(path), path, "X", "y")
    images, labels = np.asarray(content[0]), np.asarray(content[1]).reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise RunError(f"{path}: X is {images.dtype} {images.shape}, uint8 (32, 32, 3, N) was expected")
    if len(labels) != images.shape[3]:
        raise RunError(f"{path} has {images.shape[3]} images and {len(labels)} labels")
    labels = labels.astype(np.int32)
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)


def load_mat(source: str, where: str, file: Path | BinaryIO, *names: str) -> list[Any]:
    """Variables of a .mat file, as scipy reads them.

    Args:
        source: the data set, for errors, and
        where: what they call the file.
        file: path or stream.
        names: of the variables.

    Raises:
        UsageError: scipy is not installed.
        RunError: not a .mat file, or without one of the variables.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError(
            f"{source} needs scipy: install andscale with its extra, pip install 'andscale[sources]'"
        ) from None
    with _file_of(file) as path:
        rehearse("andscale.data.array_formats:try_mat", path, *names, where=where, room_bytes=_MAT_ROOM_BYTES)
    try:
        content = loadmat(file, variable_names=names)
        return [content[name] for name in names]
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        raise RunError(f"{where} is not a .mat file of {source}, or it is damaged: {type(error).__name__}") from None


def try_mat(path: str, *names: str) -> None:
    """Read variables of a .mat file and drop them; for a child process, in which it may crash.

    Raises:
        RunError: it asks for more memory than its size allows. What else scipy has to say is left to ``load_mat``.
    """
    from scipy.io import loadmat

    try:
        loadmat(path, variable_names=names)
    except MemoryError:
        raise RunError("it asks for more memory than its size allows") from None
    except Exception:  # as above
        return


@contextmanager
def _file_of(file: Path | BinaryIO) -> Iterator[Path]:
    """``file`` as a path; a stream's bytes are there until the block ends."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="andscale-", suffix=".mat") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        file.seek(0)
        yield Path(copy.name)


class CifarFiles:
    """The files of CIFAR's python version: a folder, or the archive that it was published as, read in place."""

    def __init__(self, folder: Path, base: str, archive: str):
        self.base = base
        self.folder = next((p for p in (folder / base, folder) if (p / _meta_name(base)).is_file()), None)
        self.archive = folder / archive
        self.contents: dict[str, bytes] = {}
        if self.folder is None:
            if not self.archive.is_file():
                raise UsageError(f"{folder} holds neither {base}/ nor {archive}")
            self.contents = self._read_archive()

    @property
    def originals(self) -> tuple[Path, ...]:
        """The published archive, if it is what is read."""
        return (self.archive,) if self.folder is None else ()

    def read_images(self, name: str, label_key: str) -> tuple[np.ndarray, np.ndarray]:
        """One batch file: images (N, 32, 32, 3) uint8 and labels (N,) int32.

        Raises:
            RunError: missing, damaged, or a pickle that asks for more than numpy arrays.
        """
        where, content = self._load(name)
        images, labels = content.get("data"), content.get(label_key)
        if not isinstance(images, InertArray) or not isinstance(labels, list):
            raise RunError(f"{where} has no images 'data' with labels {label_key!r}")
        pixels = images.to_numpy(where)
        if pixels.ndim != 2 or pixels.shape[1] != math.prod(_CIFAR_FORM) or len(pixels) != len(labels):
            raise RunError(f"{where} has data {pixels.shape} and {len(labels)} labels, (N, 3072) and N were expected")
        if not all(type(label) is int and 0 <= label < 1000 for label in labels):
            raise RunError(f"{where} has labels that are not class numbers")
        # (N, C, H, W) planes -> (N, H, W, C)
        channels_last = np.ascontiguousarray(pixels.reshape(-1, *_CIFAR_FORM).transpose(0, 2, 3, 1))
        return channels_last, np.array(labels, np.int32)

    def read_classes(self, key: str) -> tuple[str, ...]:
        """The class names of the meta file."""
        where, content = self._load(_meta_name(self.base))
        names = content.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise RunError(f"{where} has no class names {key!r}")
        return tuple(names)

    def _load(self, name: str) -> tuple[str, dict[Any, Any]]:
        if self.folder is not None:
            where, path = str(self.folder / name), self.folder / name
            data = path.read_bytes() if path.is_file() else None
        else:
            where, data = f"{self.archive}:{self.base}/{name}", self.contents.get(name)
        if data is None:
            raise RunError(f"{where} is missing")
        return where, load_plain_pickle(where, data)

    def _read_archive(self) -> dict[str, bytes]:
        """The regular files below ``base/`` by name, held in memory: nothing is extracted to a path."""
        contents = {}
        plain = open_archive(self.archive)
        with plain.open("rb") as file:
            for member in list_members(plain, str(self.archive)):
                folder, _, name = member.name.partition("/")
                if folder == self.base and member.length <= _MAX_BATCH_BYTES:
                    file.seek(member.offset)
                    contents[name] = file.read(member.length)
        return contents


def _meta_name(base: str) -> str:
    return "batches.meta" if base == "cifar-10-batches-py" else "meta"
