"""Files that hold many images as one array: IDX, CIFAR's pickles, SVHN's .mat; read into numpy, nothing executed."""

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from andscale.errors import RunError, UsageError

_IDX_UINT8 = 0x08
_CIFAR_FORM = (3, 32, 32)


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: uint8, ``num_axes`` axes.

    Raises:
        RunError: another magic number, truncated, longer than its header says, damaged compression.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise RunError(f"{path} is damaged: its gzip data do not unpack") from None
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
    try:
        content = loadmat(file, variable_names=names)
        return [content[name] for name in names]
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        raise RunError(f"{where} is not a .mat file of {source}, or it is damaged: {type(error).__name__}") from None


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
        if not isinstance(images, _InertArray) or not isinstance(labels, list):
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
        try:
            with tarfile.open(self.archive, "r:gz") as tar:
                for member in tar:
                    folder, _, name = member.name.partition("/")
                    stream = tar.extractfile(member) if member.isfile() and folder == self.base else None
                    if stream is not None:
                        contents[name] = stream.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error):
            raise RunError(f"{self.archive} is not a whole .tar.gz archive") from None
        return contents


def load_plain_pickle(where: str, data: bytes) -> dict[Any, Any]:
    """Unpickle a dictionary of plain values and ``uint8`` arrays; nothing of numpy or of Python's library is called.

    What a pickle of an array asks for is answered with inert stand-ins that only record; everything else is refused.

    Args:
        where: the file's name, for errors.
        data: the pickle; strings of Python 2 are read as Latin-1.

    Raises:
        RunError: it asks for anything else, or is damaged.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _ForbiddenGlobalError as error:
        raise RunError(f"{where} is refused: its pickle asks for {error}, which CIFAR's files never do") from None
    except Exception as error:  # an unpickler raises nearly anything on damaged bytes
        raise RunError(f"{where} is not a pickle of CIFAR, or it is damaged: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise RunError(f"{where} is not a file of CIFAR: it holds no dictionary")
    return content


class _ForbiddenGlobalError(Exception):
    """A pickle names something that is not permitted; the text is its dotted name."""


class _InertType:
    """Stands for ``numpy.ndarray`` itself, the first argument of ``_reconstruct``."""


class _InertDtype:
    """Stands for ``numpy.dtype('u1')``: records its name."""

    def __init__(self, name: str, *_: object):
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and fields mean nothing for single bytes."""


class _InertArray:
    """Stands for a pickled array: records its state (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, *_: object):
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self, where: str) -> np.ndarray:
        """The recorded uint8 array; RunError when it is not one."""
        try:
            _, shape, dtype, is_fortran, data = self.state
            raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
            if dtype.name not in ("u1", "uint8"):
                raise ValueError(dtype.name)
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        except (TypeError, ValueError, AttributeError):
            raise RunError(f"{where} is damaged: its data are not an array of unsigned bytes") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return _InertArray
            case "numpy", "ndarray":
                return _InertType
            case "numpy", "dtype":
                return _InertDtype
            case "_codecs", "encode":  # how protocol 2 of Python 3 spells bytes
                return _latin1_bytes
            case _:
                raise _ForbiddenGlobalError(f"{module}.{name}")


def _latin1_bytes(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("not bytes of a pickle")
    return text.encode("latin1")


def _meta_name(base: str) -> str:
    return "batches.meta" if base == "cifar-10-batches-py" else "meta"
