"""The transforms of one image as compiled loops: decoded pixels in, the network's input out, no copy between.

What ``augment.py`` does to a batch with tensor operations on a device, done image by image on the CPU: a core's caches
hold what an image needs, and each image gives the same bits whatever batch, thread or rank it is in. The compiled
functions release the interpreter's lock.
"""

from typing import Any

import numba
import numpy as np

_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _FOUR, _SIX = np.float32(0), np.float32(1), np.float32(4), np.float32(6)
_INTENSITIES = np.float32(255)
# sums are taken in vectors, in an order that depends on their length alone; multiplications and additions may fuse
_FAST = {"reassoc", "contract", "nsz"}


@numba.njit(nogil=True, cache=True)
def _taps(span: Any, size_in: Any, flip: Any, first: Any, count: Any, weights: Any) -> None:
    """Triangle weights of each output over the input: ``weights`` (S, taps) from input ``first`` (S,) on.

    A crop may begin and end within a pixel; pixels wholly outside it weigh nothing. ``span`` is its start and length,
    ``count`` (S,) how many inputs an output has.
    """
    start, length = span
    size_out = len(first)
    scale = length / size_out
    support = max(scale, 1.0)
    low, high = max(int(np.floor(start + 1e-6)), 0), min(int(np.ceil(start + length - 1e-6)), size_in)
    for o in range(size_out):
        row = size_out - 1 - o if flip else o
        centre = start + (o + 0.5) * scale - 0.5
        begin = min(max(int(np.ceil(centre - support)), low), high - 1)
        end = max(min(int(np.floor(centre + support)) + 1, high), begin + 1)
        total = 0.0
        for i in range(begin, end):
            weight = max(1 - abs(i - centre) / support, 0.0)
            weights[row, i - begin] = weight
            total += weight
        if total <= 0:  # the crop is a sliver between two pixels
            weights[row, 0] = total = 1.0
        for i in range(begin, end):
            weights[row, i - begin] /= total
        first[row], count[row] = begin, end - begin


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _resize(pixels: Any, box: Any, flip: Any, planes: Any) -> None:
    """Crop ``box`` (top, left, height, width; float64) of (H, W, 3) uint8, resized into (3, S, S) float32, 0..1."""
    size = planes.shape[1]
    height, width = pixels.shape[0], pixels.shape[1]
    firsts, counts = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    rows = np.empty((size, int(2 * max(box[2] / size, 1.0)) + 3), np.float32)
    columns = np.empty((size, int(2 * max(box[3] / size, 1.0)) + 3), np.float32)
    _taps((box[0], box[2]), height, False, firsts[0], counts[0], rows)
    _taps((box[1], box[3]), width, flip, firsts[1], counts[1], columns)
    left, right = firsts[1].min(), (firsts[1] + counts[1]).max()
    line = np.empty((right - left) * 3, np.float32)
    for y in range(size):
        line[:] = _ZERO
        for tap in range(counts[0, y]):
            weight = rows[y, tap] / _INTENSITIES
            source = pixels[firsts[0, y] + tap, left:right].reshape(-1)
            for i in range(len(line)):
                line[i] += weight * np.float32(source[i])
        for x in range(size):
            at = (firsts[1, x] - left) * 3
            red, green, blue = _ZERO, _ZERO, _ZERO
            for tap in range(counts[1, x]):
                weight = columns[x, tap]
                red += weight * line[at]
                green += weight * line[at + 1]
                blue += weight * line[at + 2]
                at += 3
            planes[0, y, x], planes[1, y, x], planes[2, y, x] = red, green, blue


@numba.njit(nogil=True, cache=True)
def _unit(value: Any) -> Any:
    value = value if value > _ZERO else _ZERO
    return value if value < _ONE else _ONE


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _brightness(planes: Any, factor: Any) -> None:
    values = planes.reshape(-1)
    for i in range(len(values)):
        values[i] = _unit(values[i] * factor)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _contrast(planes: Any, factor: Any) -> None:
    size = planes.shape[2]
    total = np.float64(0)
    for row in range(planes.shape[1]):
        red, green, blue = planes[0, row], planes[1, row], planes[2, row]
        line = _ZERO
        for i in range(size):
            line += _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]
        total += np.float64(line)
    shift = np.float32(total / (planes.shape[1] * planes.shape[2])) * (_ONE - factor)
    values = planes.reshape(-1)
    for i in range(len(values)):
        values[i] = _unit(values[i] * factor + shift)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _saturation(planes: Any, factor: Any) -> None:
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for i in range(len(red)):
        gray = (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]) * (_ONE - factor)
        red[i] = _unit(red[i] * factor + gray)
        green[i] = _unit(green[i] * factor + gray)
        blue[i] = _unit(blue[i] * factor + gray)


@numba.njit(nogil=True, cache=True)
def _channel(value: Any, chroma: Any, k: Any) -> Any:
    """f(k) = v - c max(0, min(k mod 6, 4 - k mod 6, 1))."""
    k -= _SIX * np.floor(k * np.float32(1 / 6))
    other = _FOUR - k
    return value - chroma * _unit(k if k < other else other)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _hue(planes: Any, turns: Any) -> None:
    """Rotate the hue in HSV space; without a branch, so that it is done in vectors."""
    reds, greens, blues = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    shift = _SIX * turns
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        most = red if red > green else green
        value = most if most > blue else blue
        least = red if red < green else green
        chroma = value - (least if least < blue else blue)
        inverse = _ONE / (chroma if chroma > _ZERO else _ONE)
        by_green = np.float32(2) + (blue - red) * inverse
        by_blue = _FOUR + (red - green) * inverse
        sector = by_green if value == green else by_blue
        sector = (green - blue) * inverse if value == red else sector
        hue = sector + shift
        reds[i] = _channel(value, chroma, hue + np.float32(5))
        greens[i] = _channel(value, chroma, hue + np.float32(3))
        blues[i] = _channel(value, chroma, hue + _ONE)


@numba.njit(nogil=True, cache=True)
def _colour(planes: Any, jitter: Any, order: Any, is_gray: Any) -> None:
    for which in order:
        factor = jitter[which]
        if which == 3 and factor != _ZERO:
            _hue(planes, factor)
        elif which == 2 and factor != _ONE:
            _saturation(planes, factor)
        elif which == 1 and factor != _ONE:
            _contrast(planes, factor)
        elif which == 0 and factor != _ONE:
            _brightness(planes, factor)
    if is_gray:
        _saturation(planes, _ZERO)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _interleave(planes: Any, scales: Any, shifts: Any, out: Any) -> None:
    red, green, blue = planes
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x, 0] = red[y, x] * scales[0] + shifts[0]
            out[y, x, 1] = green[y, x] * scales[1] + shifts[1]
            out[y, x, 2] = blue[y, x] * scales[2] + shifts[2]


@numba.njit(nogil=True, cache=True)
def transform(pixels: Any, box: Any, flip: Any, colours: Any, channels: Any, out: Any) -> None:
    """One image: crop, antialiased resize, flip, colour jitter, a scale and a shift for each channel.

    Args:
        pixels: (H, W, 3) uint8.
        box: (4,) float64, top, left, height, width, pixels of the image as it is given.
        flip: whether left and right change places.
        colours: (4,) float32 factors of brightness, contrast and saturation, hue shift in turns; (n,) int64 which of
            them are applied, in order; whether the luma stands in all channels in the end.
        channels: (2, 3) float32, scales and shifts of red, green, blue in 0..1.
        out: (S, S, 3) float32 or uint8, overwritten; uint8 takes whole parts.
    """
    planes = np.empty((3, out.shape[0], out.shape[1]), np.float32)
    _resize(pixels, box, flip, planes)
    _colour(planes, colours[0], colours[1], colours[2])
    _interleave(planes, channels[0], channels[1], out)


@numba.njit(nogil=True, cache=True)
def transform_held(held: Any, ids: Any, crops: Any, colours: Any, channels: Any, out: Any) -> None:
    """``transform`` of images held in memory.

    Args:
        held: (N, H, W, 3) uint8.
        ids: (B,) int64, rows of ``held``.
        crops: (B, 4) float64 boxes and (B,) bool flips.
        colours: (B, 4) float32, (B, n) int64 and (B,) bool.
        channels: as there.
        out: (B, S, S, 3) float32, overwritten.
    """
    boxes, flips = crops
    jitter, orders, is_gray = colours
    for row in range(len(ids)):
        colours_of_row = (jitter[row], orders[row], is_gray[row])
        transform(held[ids[row]], boxes[row], flips[row], colours_of_row, channels, out[row])
