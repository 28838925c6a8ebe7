"""gzip data of others: unpacked within a bound, so that a small file cannot fill a disk or a memory."""

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

from andscale.errors import RunError

GZIP_MAGIC = b"\x1f\x8b"
_COPY_BYTES = 1 << 20
_FREE_BYTES = 64 << 20
_MAX_EXPANSION = 32
"""Beyond the first 64 MiB; published archives of images unpack to about their own size, their lists to ten times."""


def unpack(path: Path, into: BinaryIO) -> None:
    """Write what the gzipped file ``path`` holds into a stream.

    Raises:
        RunError: damaged, or it unpacks to far more than archives of images do. OSError: the stream takes no more.
    """
    limit = _FREE_BYTES + _MAX_EXPANSION * path.stat().st_size
    written = 0
    with gzip.open(path) as packed:
        while True:
            try:
                piece = packed.read(_COPY_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise RunError(f"{path} is damaged: its gzip data do not unpack") from None
            if not piece:
                return
            written += len(piece)
            if written > limit:
                raise RunError(
                    f"{path} is refused: it unpacks to more than {limit} bytes, which is taken for a decompression bomb"
                )
            into.write(piece)


def unpack_bytes(path: Path) -> bytes:
    """``unpack`` into memory."""
    buffer = io.BytesIO()
    unpack(path, buffer)
    return buffer.getvalue()
