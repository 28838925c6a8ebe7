"""CIFAR's pickles read without pickle's powers: nothing of numpy or of Python's library is called.

The unpickler is Python's own in Python: the one in C takes memory for any number that a file says it remembers.
"""

import io
import pickle
from typing import Any, ClassVar

import numpy as np

from andscale.errors import RunError

_KEYS = (str, bytes, int)


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
    except _ForbiddenError as error:
        raise RunError(f"{where} is refused: its pickle asks for {error}, which CIFAR's files never do") from None
    except Exception as error:  # an unpickler raises nearly anything on damaged bytes
        raise RunError(f"{where} is not a pickle of CIFAR, or it is damaged: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise RunError(f"{where} is not a file of CIFAR: it holds no dictionary")
    return content


class InertArray:
    """Stands for a pickled array: records its state (version, shape, dtype, Fortran order, bytes)."""

    def __init__(self, *_: object):
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self, where: str) -> np.ndarray:
        """The recorded uint8 array; RunError when it is not one."""
        try:
            _, shape, dtype, is_fortran, data = self.state
            raw = data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))
            if dtype.name not in ("u1", "uint8"):
                raise ValueError(dtype.name)
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise RunError(f"{where} is damaged: its data are not an array of unsigned bytes") from None


class _ForbiddenError(Exception):
    """A pickle names something that is not permitted; the text says what."""


class _InertType:
    """Stands for ``numpy.ndarray`` itself, the first argument of ``_reconstruct``."""


class _InertDtype:
    """Stands for ``numpy.dtype('u1')``: records its name."""

    def __init__(self, name: str, *_: object):
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and fields mean nothing for single bytes."""


class _PlainUnpickler(pickle._Unpickler):
    """Calls the stand-ins alone, and hashes nothing but texts and numbers: tuples in tuples could take for ever."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return InertArray
            case "numpy", "ndarray":
                return _InertType
            case "numpy", "dtype":
                return _InertDtype
            case "_codecs", "encode":  # how protocol 2 of Python 3 spells bytes
                return _latin1_bytes
            case _:
                raise _ForbiddenError(f"{module}.{name}")

    def load_build(self) -> None:
        if type(self.stack[-2]) not in (InertArray, _InertDtype):  # type: ignore[attr-defined]
            raise _ForbiddenError("a change of something that is no array")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def load_set(self) -> None:
        raise _ForbiddenError("a set")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_set
    dispatch[pickle.FROZENSET[0]] = load_set
    dispatch[pickle.EMPTY_SET[0]] = load_set


def _check_keys(keys: list[Any]) -> None:
    for key in keys:
        if type(key) not in _KEYS:
            raise _ForbiddenError(f"a key that is a {type(key).__name__}")


def _latin1_bytes(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("not bytes of a pickle")
    return text.encode("latin1")
