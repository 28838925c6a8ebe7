"""Prepared data sets on HTTP servers and object stores: whole shards, streamed through fsspec into a local cache.

A shard is taken when it has the bytes and the BLAKE3 of its record, whatever the server says; its file in the cache
is named by that hash and appears by one rename, so all ranks of a node, and all runs, share it. Removing a file from
the cache never hurts a reader: an open file lives on until it is closed.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from andscale.errors import RunError, UsageError
from andscale.store.files import hash_bytes, hash_file

PROTOCOLS = ("http", "https", "s3", "gs", "az", "abfs")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# neither a chain of file systems ("::"), nor a name and password, nor a query that a shard's name could not follow
_PLAIN_URL = re.compile(r"([a-z0-9]+)://[A-Za-z0-9.\-_:]+(/[A-Za-z0-9.\-_~%+/]*)?")
_ATTEMPTS = 4
_PAUSE_S = 1.0
"""Before the second attempt; doubled before each further one."""
_PIECE_BYTES = 1 << 22
_MOVES_SHARDS, _MOVES_RECORDS = "set data.cache_dir", "set TMPDIR"
"""What puts them elsewhere: records are fetched by a data set's URL alone, before and without any config."""
_SILENCE_S = 60
"""A server that sends nothing for so long has failed."""


def check_url(url: str) -> str:
    """The URL of a data set without a slash at its end.

    Raises:
        UsageError: not a plain URL of a protocol that is known to read and nothing else.
    """
    match = _PLAIN_URL.fullmatch(url)
    if match is None or "::" in url or ".." in url or match.group(1) not in PROTOCOLS:
        raise UsageError(
            f"data.dataset = {url!r} is not a plain URL of a data set: {', '.join(p + '://' for p in PROTOCOLS)}, "
            "without user, password, query or chained '::'"
        )
    return url.rstrip("/")


def cache_folder(folder: str | None) -> Path:
    """The node-local folder for shards, made if need be: ``folder``, or one of this user's in the temporary folder.

    Raises:
        UsageError: it cannot be used, or somebody else could put files there.
    """
    return _folder_of_this_user(Path(folder) if folder else _temporary_folder(), "shards", _MOVES_SHARDS)


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"andscale-shards-{os.getuid()}"


def _folder_of_this_user(place: Path, kept: str, remedy: str) -> Path:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
    except OSError as error:
        raise UsageError(
            f"{kept} cannot be kept in {place} ({error.strerror}): {remedy} to a folder that can"
        ) from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UsageError(f"{place} is not this user's alone to write: {remedy} to a folder that is")
    return place


class ShardCache:
    """Shards of one data set in a node-local folder that processes share.

    Args:
        url: of the data set.
        folder: where they are kept.
        max_bytes: the oldest are removed above it, as soon as another has come.
    """

    def __init__(self, url: str, folder: Path, max_bytes: int):
        self.url, self.folder, self.max_bytes = url, folder, max_bytes

    def open(self, name: str, num_bytes: int, blake3: str) -> int:
        """A descriptor of a verified shard, fetched unless it is there; it stays good when the file is removed.

        Raises:
            RunError: the server fails again and again, or its file is not what the record says.
        """
        path = self.folder / f"{blake3}.tar"
        while True:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                if os.fstat(descriptor).st_size == num_bytes:
                    os.utime(descriptor)  # used last: removed last
                    return descriptor
                os.close(descriptor)  # not of our writing
            with self._locked(blake3):
                for left_over in self.folder.glob(f".{path.name}.part-*"):  # of a killed process
                    left_over.unlink(missing_ok=True)
                if not path.is_file() or path.stat().st_size != num_bytes:
                    fetch(f"{self.url}/{name}", path, num_bytes, blake3, remedy=_MOVES_SHARDS)
                    self._make_room(path)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process of the node fetches a shard, the others wait; the lock goes with its holder."""
        with (self.folder / f".{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, newest: Path) -> None:
        found = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


def fetch(
    url: str, path: Path, num_bytes: int | None = None, blake3: str | None = None, *, remedy: str = _MOVES_RECORDS
) -> None:
    """Stream a file to ``path``, hashed on its way; it is there whole and verified, or not at all.

    Args:
        url: what to read.
        path: appears by a rename.
        num_bytes: the size it must have; None: any below 64 MiB.
        blake3: the hash it must have; None: any.
        remedy: what to do where ``path``'s disk fails.

    Raises:
        UsageError: a package is missing. RunError: not there, not reachable, or not the file of the record.
    """
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        temporary = path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")
        try:
            with temporary.open("wb") as file:
                _stream(url, file, num_bytes, blake3)
                os.fsync(file.fileno())
            temporary.rename(path)
            return
        except FileNotFoundError:
            raise RunError(f"{url} is not there: check data.dataset, or put the data set there again") from None
        except (UsageError, OSError, _LocalDiskError) as error:
            if isinstance(error, UsageError):
                raise
            # the little that is still in memory at the end meets a full disk as a plain OSError
            if isinstance(error, _LocalDiskError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(f"{path.parent} cannot take {url}: {error}: {remedy} to a folder with room") from None
            reason = _one_line(error)
        except Exception as error:  # the clients of servers raise nearly anything
            reason = _one_line(error)
        finally:
            temporary.unlink(missing_ok=True)
    raise RunError(f"{url} cannot be fetched ({_ATTEMPTS} attempts; the last: {reason})")


class _LocalDiskError(Exception):
    """The cache's disk failed, which no further attempt would mend."""


def _stream(url: str, file: IO[bytes], num_bytes: int | None, expected: str | None) -> None:
    from blake3 import blake3

    hasher, received = blake3(), 0
    limit = 64 << 20 if num_bytes is None else num_bytes
    with _open_remote(url) as stream:
        while piece := stream.read(_PIECE_BYTES):
            received += len(piece)
            if received > limit:
                raise OSError(f"it has more than the {limit} bytes that are allowed")
            hasher.update(piece)
            try:
                file.write(piece)
            except OSError as error:
                raise _LocalDiskError(error.strerror) from None
    if num_bytes is not None and received != num_bytes:
        raise OSError(f"it has {received} bytes, its record says {num_bytes}")
    if expected is not None and hasher.hexdigest() != expected:
        raise OSError("it does not have the hash of its record: it was changed or damaged")
    file.flush()


def _open_remote(url: str) -> Any:
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        import fsspec

        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            options = {"client_kwargs": {"timeout": timeout}}
        files = fsspec.filesystem(protocol, **options)
    except ImportError:
        package = _PACKAGES.get(protocol)
        install = f"pip install {package}" if package else "pip install 'andscale[remote]'"
        raise UsageError(f"{url}: reading from {protocol}:// needs a package that is not here: {install}") from None
    # size 0: an HTTP body as it comes, instead of one request a block
    return files.open(url, "rb", **({"block_size": 0} if protocol in ("http", "https") else {}))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def fetch_record(url: str, name: str) -> tuple[Path, str]:
    """Fetch the record ``name`` of a remote data set.

    Returns:
        The folder of this machine where the record now is, for catalogues too; the URL without a slash at its end.
    """
    url = check_url(url)
    kept = _folder_of_this_user(_temporary_folder(), "records", _MOVES_RECORDS)
    folder = kept / "datasets" / hash_bytes(url.encode())[:32]
    folder.mkdir(parents=True, exist_ok=True)
    fetch(f"{url}/{name}", folder / name)
    return folder, url


def fetch_if_other(url: str, path: Path, num_bytes: int, blake3: str) -> None:
    """Fetch a small file of the data set ``url`` unless the copy at ``path`` has its record's hash."""
    if not path.is_file() or path.stat().st_size != num_bytes or hash_file(path) != blake3:
        fetch(f"{url}/{path.name}", path, num_bytes, blake3)
