"""Training and evaluation transforms.

All randomness of a batch is drawn at once from (seed, round, epoch, step) for the *global* batch, and every rank takes
its slice: the same sample sees the same crop and colours on one rank or on a hundred, before and after a restart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from andscale.config_data import AugmentConfig
from andscale.data.device_feed import to_device

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, in units of full intensity."""

_CROP_ATTEMPTS = 10
_MAX_LOG_RATIO = float(np.log(4 / 3))
_EVALUATION_CROP = 224 / 256
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentationDraw:
    """Random numbers of one batch; every array has B rows.

    Attributes:
        areas: (B, 10) float64, crop areas to try, as fractions of the image's.
        ratios: (B, 10) float64, width / height to try.
        positions: (B, 2) float64 in [0, 1), where the crop lies (vertical, horizontal).
        flips: (B,) bool.
        jitter: (B, 4) float32: factors of brightness, contrast, saturation; hue shift in turns.
        grayscale: (B,) bool.
        orders: (B, 4) int64, the order of the four jitters; the same in every row, one a step.
    """

    areas: np.ndarray
    ratios: np.ndarray
    positions: np.ndarray
    flips: np.ndarray
    jitter: np.ndarray
    grayscale: np.ndarray
    orders: np.ndarray

    def __getitem__(self, rows: slice) -> "AugmentationDraw":
        return AugmentationDraw(*(getattr(self, f.name)[rows] for f in fields(self)))


def draw_augmentation(config: AugmentConfig, batch_size: int, key: tuple[int, ...]) -> AugmentationDraw:
    """Draw one batch's random numbers.

    Args:
        config: strengths and probabilities.
        batch_size: B, of the global batch.
        key: (seed, round, epoch, step).
    """
    rng = np.random.default_rng([*key, 0x617567])
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue], np.float32)
    jitter = rng.uniform(-1, 1, (batch_size, 4)).astype(np.float32) * strengths
    jitter[:, :3] += 1
    return AugmentationDraw(
        areas=rng.uniform(config.min_crop_scale, 1, (batch_size, _CROP_ATTEMPTS)),
        ratios=np.exp(rng.uniform(-_MAX_LOG_RATIO, _MAX_LOG_RATIO, (batch_size, _CROP_ATTEMPTS))),
        positions=rng.random((batch_size, 2)),
        flips=rng.random(batch_size) < config.flip_probability,
        jitter=jitter,
        grayscale=rng.random(batch_size) < config.grayscale_probability,
        orders=np.tile(rng.permutation(4), (batch_size, 1)),
    )


def training_boxes(draw: AugmentationDraw, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Random-resized crops with torchvision's rule: the first of ten tries that fits, else the central crop.

    Args:
        draw: B rows.
        heights: (B,) int64, pixels.
        widths: (B,) int64, pixels.

    Returns:
        (B, 4) int64: top, left, height, width, pixels.
    """
    area = (heights * widths)[:, None] * draw.areas
    crop_w = np.round(np.sqrt(area * draw.ratios)).astype(np.int64)
    crop_h = np.round(np.sqrt(area / draw.ratios)).astype(np.int64)
    fits = (crop_w > 0) & (crop_h > 0) & (crop_w <= widths[:, None]) & (crop_h <= heights[:, None])
    first = np.argmax(fits, axis=1)[:, None]
    crop_h = np.take_along_axis(crop_h, first, 1)[:, 0]
    crop_w = np.take_along_axis(crop_w, first, 1)[:, 0]
    top = (draw.positions[:, 0] * (heights - crop_h + 1)).astype(np.int64)
    left = (draw.positions[:, 1] * (widths - crop_w + 1)).astype(np.int64)
    boxes = np.stack([top, left, crop_h, crop_w], axis=1)
    return np.where(fits.any(axis=1)[:, None], boxes, _central_boxes(heights, widths))


def evaluation_boxes(heights: np.ndarray, widths: np.ndarray, image_size: int) -> np.ndarray:
    """The central square: all of the short side, or 224/256 of it where the image is larger than the input.

    Returns:
        (B, 4) int64: top, left, height, width, pixels.
    """
    short = np.minimum(heights, widths)
    side = np.where(short > image_size, np.maximum(np.round(short * _EVALUATION_CROP), 1), short).astype(np.int64)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)


def crop_and_resize(images: Tensor, boxes: np.ndarray, flips: np.ndarray, image_size: int) -> Tensor:
    """Crop, resize (bilinear, antialiased, as Pillow does) and flip a batch: two batched matrix products.

        out = A_y image A_x^T, with triangle weights in the rows of A_y and A_x

    Args:
        images: (B, 3, H, W) uint8.
        boxes: (B, 4) int64: top, left, height, width.
        flips: (B,) bool.
        image_size: S.

    Returns:
        (B, 3, S, S) float32 in [0, 1], on the images' device.
    """
    values = images.to(torch.float32) / 255
    box = to_device(boxes, images.device)
    rows = _resize_weights(box[:, 0], box[:, 2], images.shape[2], image_size)
    columns = _resize_weights(box[:, 1], box[:, 3], images.shape[3], image_size)
    flip = to_device(flips, images.device)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ values @ columns.transpose(1, 2)[:, None]


def jitter_colours(images: Tensor, draw: AugmentationDraw) -> Tensor:
    """Brightness, contrast, saturation and hue in the step's order, then grayscale.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        draw: B rows.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    factors = to_device(draw.jitter, images.device)[:, :, None, None, None]
    neutral = (1.0, 1.0, 1.0, 0.0)
    steps: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
    for which in draw.orders[0] if len(draw.orders) else ():
        if (draw.jitter[:, which] != neutral[which]).any():
            images = steps[which](images, factors[:, which])
    if draw.grayscale.any():
        gray = to_device(draw.grayscale, images.device)
        images = torch.where(gray[:, None, None, None], _luma(images), images)
    return images


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> zero mean and unit variance by ImageNet's statistics."""
    mean = _channels(PIXEL_MEAN, images)
    std = _channels(PIXEL_STD, images)
    return (images - mean) / std


def _central_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest central crop whose ratio is within 3/4..4/3."""
    crop_w = np.minimum(widths, np.round(heights * 4 / 3).astype(np.int64))
    crop_h = np.minimum(heights, np.round(widths * 4 / 3).astype(np.int64))
    return np.stack([(heights - crop_h) // 2, (widths - crop_w) // 2, crop_h, crop_w], axis=1)


def _resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """(B, size_out, size_in): row o holds the triangle weights of output pixel o over the input pixels."""
    scale = length.to(torch.float32) / size_out  # (B,)
    support = scale.clamp(min=1)
    outputs = torch.arange(size_out, device=start.device) + 0.5
    inputs = torch.arange(size_in, device=start.device)
    centres = start[:, None] + outputs * scale[:, None] - 0.5  # (B, out)
    distance = (inputs - centres[:, :, None]).abs() / support[:, None, None]
    inside = (inputs >= start[:, None]) & (inputs < (start + length)[:, None])  # (B, in)
    weights = (1 - distance).clamp(min=0) * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def _channels(values: Sequence[float], images: Tensor) -> Tensor:
    """(3, 1, 1): a number for each channel, as the images have them."""
    return to_device(np.array(values, np.float32), images.device).to(images.dtype)[:, None, None]


def _luma(images: Tensor) -> Tensor:
    return (images * _channels(_LUMA, images)).sum(dim=1, keepdim=True)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(2, 3), keepdim=True)
    return (images * factor + mean * (1 - factor)).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor + _luma(images) * (1 - factor)).clamp(0, 1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue in HSV space; ``shift`` (B, 1, 1, 1) in turns."""
    value, _ = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, 1)
    red, green, blue = images.unbind(1)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sector / 6 + shift[:, 0]
    # f(n) = v - c max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, for n = 5, 3, 1: HSV back to RGB
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
