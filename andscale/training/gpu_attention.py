"""Attention of a batch over the memory by the Triton kernel: the memory is split so that the card is full."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from andscale.training.attention import PartialAttention, merge_parts, without_needless_shift

MAX_DIM = 128
"""Longest feature whose sums fit a block's registers."""

_LOG2_E = 1.4426950408889634
_UNIT = 4096.0
"""The kernel's."""


@dataclass(frozen=True)
class Tiling:
    """Shapes of the kernel's tiles.

    Attributes:
        block_features: of a block.
        block_rows: of a tile.
        group: tiles that the tensor cores add up among themselves.
        num_warps: of a block.
        num_stages: tiles that are loaded ahead.
    """

    block_features: int
    block_rows: int
    group: int
    num_warps: int
    num_stages: int


TILINGS = {
    ("hopper", "float32"): Tiling(128, 64, 4, num_warps=8, num_stages=2),
    ("hopper", "bfloat16"): Tiling(128, 64, 4, num_warps=8, num_stages=3),
    ("other", "float32"): Tiling(64, 32, 8, num_warps=8, num_stages=2),
    ("other", "bfloat16"): Tiling(64, 64, 4, num_warps=8, num_stages=2),
}
"""By family and score dtype. They fit shared memory and, but for 104 bytes of ("other", "float32"), the registers;
chosen by what the compiler makes of them, not by timing."""


def choose_tiling(device: torch.device, score_dtype: torch.dtype) -> Tiling:
    """The tiles for a device."""
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return TILINGS["hopper" if is_hopper else "other", "bfloat16" if score_dtype == torch.bfloat16 else "float32"]


def attend_with_kernel(
    features: Tensor,
    rows: Tensor,
    temperature: float,
    score_dtype: torch.dtype = torch.float32,
    tiling: Tiling | None = None,
) -> PartialAttention:
    """``attention.attend_rows`` by the kernel; beside its result it holds one part a split.

    Args:
        features: (B, D) float32, unit length, on a CUDA device (on the CPU under TRITON_INTERPRET=1).
        rows: (n, D) float32, unit length, on the same device, contiguous.
        temperature: tau > 0.
        score_dtype: float32 or bfloat16.
        tiling: for tests and tuning; the device's own by default.
    """
    from andscale.training.attention_kernel import attention_kernel

    num_features, dim = features.shape
    device, bfloat16 = rows.device, score_dtype == torch.bfloat16
    tiling = tiling or choose_tiling(device, score_dtype)
    blocks = math.ceil(num_features / tiling.block_features)
    groups = max(1, math.ceil(len(rows) / (tiling.group * tiling.block_rows)))
    groups_per_split = math.ceil(groups / max(1, _programs_at_once(device) // blocks))
    num_splits = math.ceil(groups / groups_per_split)
    sums = torch.empty((num_splits, num_features, 1 + dim), device=device)
    shifts = torch.empty((num_splits, num_features), device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        attention_kernel[(blocks, num_splits)](
            features.contiguous(), rows, sums, shifts, num_features, len(rows), groups_per_split,
            _LOG2_E / temperature / _UNIT**2,
            D=dim, DIM=max(16, 1 << (dim - 1).bit_length()), BM=tiling.block_features, BN=tiling.block_rows,
            GROUP=tiling.group, BF16=bfloat16,
            num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        )  # fmt: skip
    return without_needless_shift(merge_parts(sums, shifts / _LOG2_E), temperature)


def _programs_at_once(device: torch.device) -> int:
    """Blocks that the device runs side by side: their registers fill a multiprocessor."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
