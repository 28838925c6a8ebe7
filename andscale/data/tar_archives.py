"""Tar archives read in place: where each member's bytes lie. No path is ever made from a member's name."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from andscale.data.raw import safe_text
from andscale.data.unpacking import GZIP_MAGIC, unpack
from andscale.errors import RunError, UsageError

_MAX_HEADER_BYTES = 1 << 20
"""Of a member: names and extended headers; only these are read through tarfile."""
_MAX_NAME = 255


@dataclass(frozen=True)
class Member:
    """A file in an archive: ``length`` bytes at ``offset`` of the archive's own file."""

    name: str
    offset: int
    length: int


def open_archive(path: Path) -> Path:
    """``path`` itself or, where it is gzipped, a file that holds its content until this process ends.

    gzip cannot be read at an offset, and samples are read in another order than the archive's, by several processes.
    So the content goes into a file without a name below $TMPDIR, which other processes reach through this one: the
    disk has it back however this process ends.

    Raises:
        RunError: damaged compression, no room.
        UsageError: this system cannot open a file without a name.
    """
    with path.open("rb") as file:
        if file.read(2) != GZIP_MAGIC:
            return path
    descriptors = Path(f"/proc/{os.getpid()}/fd")
    if not descriptors.is_dir():
        raise UsageError(f"{path} is gzipped and there is no /proc here: unpack it with tar -xzf, and name its folder")
    with tempfile.TemporaryFile(prefix="andscale-") as content:
        try:
            unpack(path, content)
            content.flush()
        except OSError as error:
            raise RunError(
                f"{path} cannot be unpacked into {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder "
                "with more room"
            ) from None
        # stays open on purpose, see above
        return descriptors / str(os.dup(content.fileno()))


def list_members(archive: Path, where: str, within: Member | None = None) -> Iterator[Member]:
    """The files of a tar archive, in its order; folders and names that begin with '.' are passed over.

    Args:
        archive: an uncompressed archive.
        where: what errors call it.
        within: a member of ``archive`` that is a tar archive itself; its members' offsets are of ``archive`` too.

    Raises:
        RunError: not a whole tar archive; a link, a device, a sparse file, a path that leads outside, a name twice:
            published archives have none of these.
    """
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        window = _Window(file.fileno(), within.offset, within.length) if within else _Window(file.fileno(), 0, size)
        seen = set()
        try:
            with tarfile.TarFile(fileobj=window, mode="r") as tar:
                while (entry := tar.next()) is not None:
                    # the list that tarfile keeps would grow with the archive
                    tar.members = []  # type: ignore[attr-defined]
                    name = entry.name.removeprefix("./")
                    complaint = _complaint(entry, window.length) or ("it is there twice" if name in seen else "")
                    if complaint:
                        raise RunError(f"{where} is refused for its member {_shown(entry.name)}: {complaint}")
                    seen.add(name)
                    if entry.isfile() and not name.rpartition("/")[2].startswith("."):
                        yield Member(name, window.first + entry.offset_data, entry.size)
                _check_end(window, tar.offset)
        except RunError:
            raise
        except Exception as error:  # tarfile raises nearly anything on damaged headers
            raise RunError(f"{where} is not a whole tar archive: {str(error) or type(error).__name__}") from None


def _shown(name: str) -> str:
    text = repr(safe_text(name))
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


def _check_end(window: "_Window", offset: int) -> None:
    """An archive ends with a block of zeros; tarfile takes a damaged header and the end of the file for that, too."""
    window.seek(offset)
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut at byte {offset}")


def _complaint(entry: tarfile.TarInfo, length: int) -> str:
    """Why a member is refused; '' where it is not."""
    if entry.isdir():
        return ""
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.sparse is not None:
        return "it is not a plain file"
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        return "its path leads outside"
    if len(entry.name) > _MAX_NAME or "\0" in entry.name:
        return f"its name is longer than {_MAX_NAME} characters, or holds a zero"
    if not 0 <= entry.size <= length - entry.offset_data:
        return "the archive ends within it"
    return ""


class _Window(io.RawIOBase):
    """A range of a file as a file of its own, without a position that others could move."""

    def __init__(self, descriptor: int, first: int, length: int):
        self.descriptor, self.first, self.length, self.position = descriptor, first, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Headers alone; one that claims more is refused before memory is taken for it."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.position}")
        return super().read(size) or b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.length - self.position))
        data = os.pread(self.descriptor, wanted, self.first + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
