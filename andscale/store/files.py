"""Single files: hashes, writes that cannot be seen half done, places that can be written."""

import json
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from andscale.errors import UsageError

# a mapped page counts as memory of the process: a window at a time keeps a large file from counting twice
_WINDOW_BYTES = 64 << 20
MAX_RECORD_BYTES = 64 << 20
"""No record (manifest, dataset.json, run.json, config) is larger: a data set of 100 million images has 3 MB."""


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let an OSError of the block name ``path`` when it names no file: a full disk is noticed by ``write``, which
    does not know whose bytes it writes.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def hash_file(path: Path) -> str:
    """BLAKE3 of a file's bytes, as 64 hexadecimal digits; all cores, memory-mapped a window at a time."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, _WINDOW_BYTES):
            length = min(_WINDOW_BYTES, size - offset)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=offset) as window:
                hasher.update(window)
    digest: str = hasher.hexdigest()
    return digest


def hash_bytes(data: bytes) -> str:
    """BLAKE3 of bytes, as 64 hexadecimal digits."""
    from blake3 import blake3

    digest: str = blake3(data).hexdigest()
    return digest


def read_record_bytes(path: Path) -> bytes:
    """The bytes of a record that others may have written.

    Raises:
        FileNotFoundError: none there. ValueError: a pipe, a device, or more than any record has.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a plain file")
    if status.st_size > MAX_RECORD_BYTES:
        raise ValueError(f"more than {MAX_RECORD_BYTES} bytes")
    return path.read_bytes()


def parse_json(data: bytes | str) -> Any:
    """JSON that others may have written; ValueError for everything that is none, endless nesting too."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that it is absent, the old one, or the new one whole, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
    try:
        with errors_name(path):
            temporary.write_bytes(data)
            fsync_path(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raise UsageError when nothing can be written below ``folder``; the nearest existing parent is tried."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"{existing} is not a folder: choose another place")
    probe = existing / f".andscale-probe-{secrets.token_hex(8)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write in {existing} ({error.strerror}): choose another folder or mend its permissions"
        ) from None


def num_usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def as_place(text: str) -> Path | str:
    """Where a data set lies: a folder, or a URL as it stands (``Path`` would take a slash from it)."""
    return text if "://" in text else Path(text)
