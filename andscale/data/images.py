"""Encoded images to pixels; every way in which a file can be broken becomes one error with a reason.

EXIF orientation is not applied: an image is what its pixels are, as in the published experiments. Of animated files
the first frame counts.
"""

import io
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from andscale.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
_READERS = ("JPEG", "PNG", "WEBP", "BMP")
_FAST_COLOURS = ("YCbCr", "Gray", "RGB")
_MAX_PIXELS = 89_478_485
"""More is taken for a decompression bomb; the figure above which Pillow warns."""
_MAX_SCANNED_PIXELS = 1 << 32
"""Of all scans of a progressive JPEG together: some seconds; photographs have ten scans."""
_LEAST_SCAN_BYTES = 12


@dataclass(frozen=True)
class ImageHeader:
    """What an encoded image says of itself.

    Attributes:
        suffix: of its real format.
        width, height: pixels.
        is_dim: grey of 16 bits, the highest of them never set, which says that it is of fewer, as cameras' 12; only
            ``check_image``, which sees the pixels, knows it.
    """

    suffix: str
    width: int
    height: int
    is_dim: bool = False


def read_header(data: bytes) -> ImageHeader:
    """Format and size, found in the bytes and not in a file's name; pixels are not decoded.

    Raises:
        RunError: the text is the bare reason, for callers to put the file's name before it.
    """
    return _header(_open(data))


def check_image(data: bytes) -> ImageHeader:
    """Decode an image whole, at an eighth of its size where JPEG allows it, so that truncation is noticed.

    Raises:
        RunError: the text is the bare reason, for callers to put the file's name before it.
    """
    image = _open(data)
    header = _header(image)
    # the entropy coding is read to its end at every scale, only the inverse transforms are saved
    image.draft(None, (1, 1))
    _load(image)
    # black is black at every depth
    if image.mode.startswith("I") and 0 < int(np.asarray(image).max()) < 1 << 15:
        return replace(header, is_dim=True)
    return header


def open_rgb(data: bytes, reduction: int = 1) -> "Image.Image":
    """Decode an image into Pillow's mode RGB.

    Alpha is dropped, palettes are looked up, 16-bit gray keeps its upper 8 bits, CMYK (Adobe's inverted form too) is
    converted as Pillow does.

    Args:
        data: JPEG, PNG, WebP or BMP.
        reduction: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size, rounded up; other formats, and sides
            of fewer pixels, are not reduced.

    Raises:
        RunError: damaged, another format, too large.
    """
    try:
        image = _open(data)
        if 1 < reduction <= min(image.size):
            image.draft(None, (image.width // reduction, image.height // reduction))
        _load(image)
        return _to_rgb(image)
    except RunError as error:
        raise RunError(f"an image cannot be decoded: {error}") from None


def decode_rgb(data: bytes, reduction: int = 1) -> np.ndarray:
    """``open_rgb`` as an array, (H, W, 3) uint8: the same pixels and the same errors, sooner for most JPEGs.

    Both decoders are libjpeg-turbo. The faster binding takes what it decodes without a warning; everything else is
    Pillow's: other formats, CMYK, and damaged files, of which Pillow says what is wrong.
    """
    import simplejpeg

    try:
        height, width = _fast_size(data)
        if reduction > min(height, width):
            reduction = 1
        # the least size that is allowed is the one that is wanted
        least = (-(-height // reduction), -(-width // reduction))
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, min_height=least[0], min_width=least[1], min_factor=reduction, strict=True
        )
    except ValueError:
        return np.array(open_rgb(data, reduction))
    return pixels


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, pixels; only its header is read.

    Raises:
        RunError: as ``open_rgb``.
    """
    try:
        return _fast_size(data)
    except ValueError:
        pass
    try:
        header = read_header(data)
    except RunError as error:
        raise RunError(f"an image cannot be decoded: {error}") from None
    return header.height, header.width


def read_image_bytes(file_descriptor: int, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset`` of an open shard; safe to call from several threads and processes.

    Raises:
        RunError: the shard ends before, or the disk fails.
    """
    parts, position, end = [], offset, offset + length
    while position < end:
        try:
            part = os.pread(file_descriptor, end - position, position)
        except OSError as error:
            raise RunError(f"a shard cannot be read at byte {position}: {error.strerror}") from None
        if not part:
            raise RunError(
                f"a shard ends at byte {position}, but an image lies at {offset}..{end}: verify the data set"
            )
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _fast_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG that the fast decoder takes; ValueError for everything else."""
    import simplejpeg

    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    if colours not in _FAST_COLOURS or not 0 < height * width <= _MAX_PIXELS or _endless_scans(data, height * width):
        raise ValueError("not for the fast decoder")
    return int(height), int(width)


def _open(data: bytes) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise RunError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_READERS)
    except UnidentifiedImageError:
        raise RunError("not a JPEG, PNG, WebP or BMP image") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise RunError(_reason(error)) from None
    if not 0 < image.width * image.height <= _MAX_PIXELS:
        raise RunError(f"{image.width}x{image.height} pixels, allowed are 1 to {_MAX_PIXELS:,}")
    scans = _endless_scans(data, image.width * image.height)
    if scans:
        raise RunError(f"{scans} scans of {image.width}x{image.height} pixels, which is taken for a decompression bomb")
    return image


def _endless_scans(data: bytes, num_pixels: int) -> int:
    """The scans of a progressive JPEG, each over all its pixels, where they would take too long; else 0."""
    if data[:2] != b"\xff\xd8" or len(data) // _LEAST_SCAN_BYTES * num_pixels <= _MAX_SCANNED_PIXELS:
        return 0
    scans = data.count(b"\xff\xda")
    return scans if scans * num_pixels > _MAX_SCANNED_PIXELS else 0


def _load(image: "Image.Image") -> None:
    try:
        image.load()
    except Exception as error:  # as above
        raise RunError(_reason(error)) from None


def _header(image: "Image.Image") -> ImageHeader:
    return ImageHeader(_SUFFIXES[image.format or ""], image.width, image.height)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 and would turn nearly all of a 16-bit image white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """The first line of an error's text, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
