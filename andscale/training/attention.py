"""Attention of a batch over rows of the memory, unnormalised, so that parts over different rows add up.

    total_i = sum_j exp(s_ij / tau - shift_i),   weighted_i = sum_j exp(s_ij / tau - shift_i) m_j,   s_ij = x_i . m_j

The log-sum-exp is shift_i + log total_i, the mean row weighted_i / total_i. Features and rows have unit length, so for
tau >= 0.02 no shift is needed at all: exp(50) times a billion rows is a float32, and so is exp(-50). Parts are then
plain sums, and one all-reduce merges them. Below, parts carry the largest exponent, as in online softmax.

On the CPU the work is done by torch's flash attention, which returns the log-sum-exp: as fast as two matrix products a
tile with the exponentials between them, and all of it in one parallel region, where tiles of our own have five each,
which costs several times as much as soon as another process wants a core. The rows are cut into chunks along the batch
axis where the features alone are too few for all threads. Those tiles remain for bfloat16 on CPUs, and for GPUs without
the Triton kernel.
"""

import functools
import importlib.util
import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_PLAIN_TEMPERATURE = 0.02
"""From here on exponents need no shift."""

NO_SHIFT = torch.finfo(torch.float32).min
"""Shift over no rows: finite, so that no difference of shifts is NaN."""

_TILE_SCORES = 1 << 18
"""Scores of a chunk's tile: 1 MiB."""

_MAX_TILE_ROWS = 2048
_DEVICE_CHUNKS = 64
"""Chunks where torch works on a GPU: as many matrix products side by side fill one."""


@dataclass(frozen=True)
class PartialAttention:
    """Attention of B features over some rows.

    Attributes:
        sums: (B, 1 + D) float32: total, and weighted behind it; 0 over no rows.
        shift: (B,) float32, or None where exponents need none.
    """

    sums: Tensor
    shift: Tensor | None


def needs_shift(temperature: float) -> bool:
    """Whether exp(s / tau) can leave the range of float32."""
    return temperature < LEAST_PLAIN_TEMPERATURE


def rounded(values: Tensor, score_dtype: torch.dtype) -> Tensor:
    """Float32 values as the products see them: rounded to bfloat16 if that is what scores are made of."""
    return values if score_dtype == torch.float32 else values.to(score_dtype).to(values.dtype)


@torch.no_grad()
def attend_rows(
    features: Tensor, rows: Tensor, temperature: float, score_dtype: torch.dtype = torch.float32
) -> PartialAttention:
    """Attention over all given rows, in tiles, so that nothing of size (B, n) lives.

    Args:
        features: (B, D) float32, unit length.
        rows: (n, D) float32, unit length, contiguous.
        temperature: tau > 0.
        score_dtype: float32, or bfloat16 for products of rounded features and rows, added up in float32.
    """
    if not len(rows):
        return attend_nothing(features, temperature)
    if rows.is_cuda and _has_kernel(rows.device, rows.shape[1]):
        from andscale.training.gpu_attention import attend_with_kernel

        return attend_with_kernel(features, rows, temperature, score_dtype)
    if rows.is_cuda or score_dtype != torch.float32:
        return attend_in_tiles(features, rows, temperature, score_dtype)
    return attend_with_flash(features, rows, temperature)


def attend_nothing(features: Tensor, temperature: float) -> PartialAttention:
    """Attention over no rows."""
    sums = features.new_zeros((len(features), 1 + features.shape[1]))
    return PartialAttention(sums, features.new_full((len(features),), NO_SHIFT) if needs_shift(temperature) else None)


def attend_with_flash(features: Tensor, rows: Tensor, temperature: float) -> PartialAttention:
    """``attend_rows`` over at least one row by torch's flash attention, on the CPU in float32."""
    sums, shifts = [], []
    for chunks in _chunks(rows, _flash_chunks(len(features), torch.get_num_threads())):
        keys = chunks[:, None]  # (C, one head, n, D)
        attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            features.expand(len(chunks), 1, *features.shape), keys, keys, scale=1 / temperature
        )
        shifts.append(lse[:, 0])
        sums.append(torch.cat([torch.ones_like(lse[:, 0, :, None]), attended[:, 0]], dim=2))
    return without_needless_shift(merge_parts(torch.cat(sums), torch.cat(shifts)), temperature)


def _flash_chunks(num_features: int, num_threads: int) -> int:
    """The fewest chunks that give all threads as many blocks of features each; a wrong guess costs balance alone."""
    num_blocks = -(-num_features // (64 if num_features >= 192 else 32))  # as torch's kernel cuts them
    return num_threads // math.gcd(num_threads, num_blocks)


def attend_in_tiles(
    features: Tensor, rows: Tensor, temperature: float, score_dtype: torch.dtype = torch.float32
) -> PartialAttention:
    """``attend_rows`` over at least one row in torch's matrix products, on any device."""
    queries = rounded(features, score_dtype) / temperature
    parts = [
        _attend_chunks(queries, chunks, needs_shift(temperature), score_dtype)
        for chunks in _chunks(rows, _DEVICE_CHUNKS if rows.is_cuda else torch.get_num_threads())
    ]
    return merge_parts(
        torch.cat([sums for sums, _ in parts]),
        torch.cat([shift for _, shift in parts]) if needs_shift(temperature) else None,
    )


def without_needless_shift(part: PartialAttention, temperature: float) -> PartialAttention:
    """The same with shift None where the temperature allows it."""
    if part.shift is None or needs_shift(temperature):
        return part
    return PartialAttention(part.sums * torch.exp(part.shift)[:, None], None)


def _chunks(rows: Tensor, num_chunks: int) -> list[Tensor]:
    """Rows (n, D) as (C, n // C, D), and the few that are left over as (1, n % C, D)."""
    num_chunks = min(num_chunks, len(rows))
    whole = len(rows) - len(rows) % num_chunks
    chunks = [rows[:whole].view(num_chunks, -1, rows.shape[1])]
    return chunks if whole == len(rows) else [*chunks, rows[None, whole:]]


def merge_parts(sums: Tensor, shifts: Tensor | None) -> PartialAttention:
    """Add up parts over different rows.

    Args:
        sums: (parts, B, 1 + D), float32 or float64.
        shifts: (parts, B), or None where there are none.
    """
    if shifts is None:
        return PartialAttention(sums.sum(dim=0).float(), None)
    highest = shifts.amax(dim=0)
    scaled = sums * torch.exp(shifts - highest)[..., None]
    return PartialAttention(scaled.sum(dim=0).float(), highest.float())


def _attend_chunks(
    queries: Tensor, chunks: Tensor, with_shift: bool, score_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sums (C, B, 1 + D) float64 and shifts (C, B) float32 of queries (B, D) over chunks of rows (C, n, D).

    Tiles add up in float32 and sums of tiles in float64: it costs nothing beside the products, and the error does not
    grow with the number of tiles.
    """
    num_chunks, num_rows, dim = chunks.shape
    queries = queries.expand(num_chunks, *queries.shape)
    shape = queries.shape[:2]
    sums = queries.new_zeros((*shape, 1 + dim), dtype=torch.float64)
    shift = queries.new_full(shape, NO_SHIFT)
    tile_rows = min(num_rows, _MAX_TILE_ROWS, max(1, _TILE_SCORES // shape[1]))
    buffer = queries.new_empty(shape[0] * shape[1] * tile_rows)
    for start in range(0, num_rows, tile_rows):
        tile = rounded(chunks[:, start : start + tile_rows], score_dtype)
        scores = buffer[: shape[0] * shape[1] * tile.shape[1]].view(*shape, tile.shape[1])
        torch.bmm(queries, tile.transpose(1, 2), out=scores)
        if with_shift:
            highest = torch.maximum(shift, scores.amax(dim=2))
            sums *= torch.exp(shift - highest)[..., None]
            scores -= highest[..., None]
            shift = highest
        weights = scores.exp_()
        sums[..., 0] += weights.sum(dim=2)
        sums[..., 1:] += torch.bmm(weights, tile)
    return sums, shift


@functools.cache
def _has_kernel(device: torch.device, dim: int) -> bool:
    """Whether the Triton kernel takes this device's share; said once, since torch takes several times as long."""
    from andscale.training.gpu_attention import MAX_DIM

    problem = ""
    if importlib.util.find_spec("triton") is None:
        problem = "Triton is not installed"
    elif dim > MAX_DIM:
        problem = f"the Triton kernel takes features of up to {MAX_DIM} numbers, these have {dim}"
    engine = f"torch on {device}, slower: {problem}" if problem else f"Triton kernel on {device}"
    print(f"objective: {engine}", file=sys.stderr)
    return not problem
