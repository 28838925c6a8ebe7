"""Encoded or held images to the network's input on the CPU, through the compiled loops of ``pixel_kernels``."""

import numpy as np

from andscale.data.augment import PIXEL_MEAN, PIXEL_STD, AugmentationDraw
from andscale.data.images import decode_rgb

NETWORK_INPUT = np.array(
    [[1 / s for s in PIXEL_STD], [-m / s for m, s in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]], np.float32
)
"""Scales and shifts (2, 3) that give zero mean and unit variance by ImageNet's statistics."""
WHOLE_INTENSITIES = np.array([[255] * 3, [0.5] * 3], np.float32)
"""Scales and shifts (2, 3) whose whole parts are intensities 0..255, rounded."""

Colours = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(B, 4) float32 jitters, (B, n) int64 their order, (B,) bool grayscale: see ``pixel_kernels.transform``."""


def colours_of(draw: AugmentationDraw | None, batch_size: int) -> Colours:
    """What is done to the colours of a batch; nothing without a draw."""
    if draw is None:
        return np.zeros((batch_size, 4), np.float32), np.zeros((batch_size, 0), np.int64), np.zeros(batch_size, bool)
    return draw.jitter, draw.orders, draw.grayscale


def reduction_for(box: np.ndarray, image_size: int) -> int:
    """The largest of 1, 2, 4, 8 at which a crop still has the pixels of the output, so that no detail is lost.

    libjpeg's other scales (3/8, 5/8, 3/4, 7/8) take longer than decoding whole: they have no vector code.

    Args:
        box: (4,) top, left, height, width.
        image_size: S.
    """
    fits = min(int(box[2]), int(box[3])) // image_size
    return 8 if fits >= 8 else 4 if fits >= 4 else 2 if fits >= 2 else 1


def decode_and_transform(
    data: bytes, size: tuple[int, int], crop: tuple[np.ndarray, bool], colours: Colours, out: np.ndarray
) -> None:
    """Decode one image, a JPEG scaled to its crop, and transform it.

    Args:
        data: the encoded image.
        size: (height, width), its header's.
        crop: (4,) top, left, height, width in pixels of the whole image; whether left and right change places.
        colours: one row of each array.
        out: (S, S, 3), overwritten: float32 normalised, or uint8 intensities.
    """
    from andscale.data.pixel_kernels import transform

    box, flip = crop
    reduction = reduction_for(box, out.shape[0])
    pixels = decode_rgb(data, reduction)
    if pixels.shape[:2] == size:
        reduction = 1
    # a pixel of a reduced image is a square of whole ones, whether or not these squares fill its size
    channels = NETWORK_INPUT if out.dtype == np.float32 else WHOLE_INTENSITIES
    transform(pixels, box / reduction, flip, colours, channels, out)


def transform_held(
    held: np.ndarray, sample_ids: np.ndarray, crops: tuple[np.ndarray, np.ndarray], colours: Colours, image_size: int
) -> np.ndarray:
    """Transform images that are held decoded.

    Args:
        held: (N, H, W, 3) uint8.
        sample_ids: (B,) int64.
        crops: (B, 4) boxes and (B,) bool flips.
        colours: of the batch.
        image_size: S.

    Returns:
        (B, S, S, 3) float32, normalised.
    """
    from andscale.data import pixel_kernels

    out = np.empty((len(sample_ids), image_size, image_size, 3), np.float32)
    boxes = (crops[0].astype(np.float64), crops[1])
    pixel_kernels.transform_held(held, sample_ids, boxes, colours, NETWORK_INPUT, out)
    return out
