"""Small images inside the page, read by catalogue offset; what cannot be decoded has a reason instead."""

import base64
import io
from dataclasses import dataclass

from andscale.audit.audit_text import shown
from andscale.audit.subject import Subject
from andscale.data.images import image_size, open_rgb
from andscale.data.samples import Shards
from andscale.errors import RunError

SIDE = 96
"""Longest side, pixels."""
_LOSSLESS_SIDE = 48
_QUALITY = 78
_REASON_LENGTH = 90


@dataclass(frozen=True)
class Thumbnail:
    """``uri`` (``data:image/webp;base64,...``) of an image, or the ``reason`` why it cannot be shown."""

    uri: str
    reason: str
    is_small: bool


class Thumbnails:
    """Thumbnails by sample id, each made once.

    Attributes:
        missing: why there are none at all; empty where images can be read.
    """

    def __init__(self, subject: Subject):
        self.missing = missing_images(subject)
        self._shards = None if self.missing or subject.catalogue is None else Shards(subject.catalogue)
        self._made: dict[int, Thumbnail] = {}

    def __call__(self, sample_id: int) -> Thumbnail | None:
        """None where there are no images at all."""
        if self._shards is None:
            return None
        if sample_id not in self._made:
            try:
                self._made[sample_id] = make_thumbnail(self._shards.take(sample_id))
            except (RunError, OSError) as error:
                self._made[sample_id] = Thumbnail("", shown(str(error), _REASON_LENGTH), False)
        return self._made[sample_id]


def missing_images(subject: Subject) -> str:
    """One sentence that says why no image can be shown, or nothing."""
    if subject.catalogue is None or subject.dataset is None:
        return "Only features are known of these samples, no images: they are shown by their ids."
    if subject.dataset.url:
        return "The images lie on a server and are not shown: samples are shown by their ids and keys."
    return ""


def make_thumbnail(data: bytes) -> Thumbnail:
    """A WebP of at most ``SIDE`` pixels a side; small images keep their pixels.

    Raises:
        RunError: the image cannot be decoded.
    """
    shortest = min(image_size(data))
    # a JPEG is decoded at a fraction of its size, with two pixels or more for one of the thumbnail
    reduction = next((r for r in (8, 4, 2) if shortest // r >= 2 * SIDE), 1)
    image = open_rgb(data, reduction)
    longest = max(image.size)
    if longest > SIDE:
        image = image.resize([max(1, round(side * SIDE / longest)) for side in image.size])
    out = io.BytesIO()
    image.save(out, "WEBP", quality=_QUALITY, lossless=longest <= _LOSSLESS_SIDE)
    uri = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return Thumbnail(uri, "", longest <= _LOSSLESS_SIDE)
