# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, no-untyped-call"
"""The Triton kernel of the objective: attention of a batch over one split of the memory, scores in registers only.

This module imports Triton, and is imported only where the kernel is going to run (``gpu_attention.py``). With
TRITON_INTERPRET=1 in the environment before Triton's first import it runs on CPU tensors.

Float32 products are made of float16 ones: x = high + low, each a float16, holds 22 bits of x, and high high + high low
+ low high is as good as a float32 product, in less time than three tf32 ones. Tensor cores cut off what they add to
float32 sums instead of rounding it, so a sum over ten thousand rows could lose some 1e-4 of itself; hence only the
products of GROUP tiles are added up there, and groups by ordinary additions.

Functions here have no annotations but ``tl.constexpr``: Triton resolves the names in them on the device.
"""

import triton
import triton.language as tl

_NO_SCORE = tl.constexpr(-1e30)
"""Largest exponent before the first row: finite, so that no difference is NaN."""


_UNIT = tl.constexpr(4096.0)
"""Factor of what is multiplied, so that what rounding to float16 leaves of a number is no denormal."""


@triton.jit
def _load(pointers, places, exists, D: tl.constexpr, DIM: tl.constexpr):
    """(len(places), DIM) float32 rows times the unit, zeros beyond D and where none exists."""
    lanes = tl.arange(0, DIM)
    mask = exists[:, None]
    if D < DIM:
        mask = mask & (lanes < D)[None, :]
    return tl.load(pointers + places.to(tl.int64)[:, None] * D + lanes[None, :], mask=mask, other=0.0) * _UNIT


@triton.jit
def _split(values, BF16: tl.constexpr):
    """What is multiplied for float32 values: the nearest bfloat16, or float16 and what it leaves."""
    high = values.to(tl.bfloat16 if BF16 else tl.float16)
    return high, (values - high.to(tl.float32)).to(high.dtype)


@triton.jit
def _multiply(a, b_high, b_low, total, BF16: tl.constexpr):
    """``total`` + a b, the small products first."""
    if not BF16:
        total = tl.dot(a[1], b_high, total)
        total = tl.dot(a[0], b_low, total)
    return tl.dot(a[0], b_high, total)


@triton.jit
def _fold_tile(query, key, exists, scale, state, BF16: tl.constexpr):
    """Add one tile of rows to the state of a group: ``kept`` is what its shifts have left of earlier groups."""
    highest, weight_sum, part, kept = state
    scores = tl.zeros((part.shape[0], exists.shape[0]), tl.float32)
    scores = _multiply(query, tl.trans(key[0]), tl.trans(key[1]), scores, BF16) * scale
    scores = tl.where(exists[None, :], scores, -float("inf"))
    raised = tl.maximum(highest, tl.max(scores, axis=1))
    factor = tl.exp2(highest - raised)
    weights = tl.exp2(scores - raised[:, None])
    weight_sum = weight_sum * factor + tl.sum(weights, axis=1)
    part = _multiply(_split(weights * _UNIT, BF16), key[0], key[1], part * factor[:, None], BF16)
    return raised, weight_sum, part, kept * factor


@triton.jit
def attention_kernel(  # noqa: PLR0913, PLR0917
    features, rows, sums_out, shifts_out, num_features, num_rows, groups_per_split, scale,
    D: tl.constexpr, DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """Attention of BM features over one split of the rows; grid (feature blocks, splits).

    Feature blocks vary fastest, so that those over the same rows run at the same time and share them in L2.

    Args:
        features: (B, D) float32.
        rows: (n, D) float32.
        sums_out: (splits, B, 1 + D) float32, total and weighted.
        shifts_out: (splits, B) float32, the largest exponent of two.
        num_features: B.
        num_rows: n.
        groups_per_split: groups of GROUP tiles in every split but the last.
        scale: log2(e) / tau over the square of the unit.
        D: length of a feature.
        DIM: D filled up to a power of two >= 16.
        BM: features of a block.
        BN: rows of a tile.
        GROUP: tiles whose products are added up in the tensor cores.
        BF16: products of bfloat16 instead of float32.
    """
    places = tl.program_id(0) * BM + tl.arange(0, BM)
    is_feature = places < num_features
    query = _split(_load(features, places, is_feature, D, DIM), BF16)
    split = tl.program_id(1)
    highest = tl.full((BM,), _NO_SCORE, tl.float32)
    weight_sum = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM, DIM), tl.float32)
    for group in range(split * groups_per_split, (split + 1) * groups_per_split):
        state = (highest, weight_sum, tl.zeros((BM, DIM), tl.float32), tl.full((BM,), 1.0, tl.float32))
        for number in range(GROUP):
            # 32 bits are enough for 2 billion rows a rank
            row_places = (group * GROUP + number) * BN + tl.arange(0, BN)
            exists = row_places < num_rows
            key = _split(_load(rows, row_places, exists, D, DIM), BF16)
            state = _fold_tile(query, key, exists, scale, state, BF16)
        highest, weight_sum, part, kept = state
        weighted = weighted * kept[:, None] + part
    out = split * num_features + places
    sums = sums_out + out.to(tl.int64) * (D + 1)
    lanes = tl.arange(0, DIM)
    tl.store(sums, weight_sum, mask=is_feature)
    mask = is_feature[:, None] & (lanes < D)[None, :]
    tl.store(sums[:, None] + 1 + lanes[None, :], weighted / (_UNIT * _UNIT), mask=mask)
    tl.store(shifts_out + out, highest, mask=is_feature)
