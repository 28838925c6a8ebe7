"""Small pictures of samples."""

import io

from andscale.data.images import open_rgb, read_header
from andscale.errors import RunError
from andscale.service.problems import ProblemError
from andscale.service.snapshot import Snapshot

MEDIA_TYPE = "image/webp"


def thumbnail(snapshot: Snapshot, sample_id: int, size: int) -> bytes:
    """A sample's image as WebP, its longer side ``size`` pixels; small images are enlarged without smoothing."""
    if snapshot.shards is None:
        raise ProblemError(404, f"sample {sample_id} has no image on this machine")
    from PIL import Image

    try:
        data = snapshot.shards.take(sample_id)
        header = read_header(data)
        longest = max(header.width, header.height)
        reduction = max((r for r in (1, 2, 4, 8) if longest // r >= size), default=1)
        image = open_rgb(data, reduction)
    except RunError as error:
        raise ProblemError(404, f"sample {sample_id}: {error}") from None
    scale = size / max(image.size)
    filters = Image.Resampling.BOX if scale >= 1 else Image.Resampling.LANCZOS
    drawn = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), filters)
    out = io.BytesIO()
    drawn.save(out, "WEBP", quality=85, lossless=scale >= 1)
    return out.getvalue()
