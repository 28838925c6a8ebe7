# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, no-untyped-call"
"""The Triton kernel of the exact sweep: scores, softmax sums and best candidates, all in registers.

This module imports Triton, and is imported only where the kernel is going to run (``gpu_sweep.py``). With
TRITON_INTERPRET=1 in the environment before Triton's first import it runs on CPU tensors.

Cost of one score outside the tensor cores, which with their 2 D FLOP bounds the sweep: 4 instructions on the FMA pipes
(exponent, sum, weighted sum, fixed point), 1 exponential, 1 shift-and-add and 4 integer min/max. That is 10 of the 128
issue slots that an SM has a clock, 5 of its 64 integer ones and 1 of its 16 exponentials: 0.08 clocks. What ptxas makes
of it for sm_90 has 14 instructions a score: 0.8 s for N = 1,281,167 on 132 SMs at 1.7 GHz, beside 0.5 s of matrix
products at D = 128 that a second block on the same SM can overlap.

Functions here have no annotations but ``tl.constexpr``: Triton resolves the names in them on the device.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-(2**31))
"""Packed value of a slot that holds nothing: below every score."""

_MASKED = tl.constexpr(-1e30)
"""Exponent of a column that does not exist: its weight is 0, and 0 * -1e30 is 0 where 0 * -inf would be NaN."""


@triton.jit
def _add(total, lost, value):
    """Compensated addition: tiles of small weights are not lost beside the row's own weight of 1."""
    value = value - lost
    raised = total + value
    return raised, (raised - total) - value


@triton.jit
def _load(pointers, mask, DIM: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr):
    """A block of operands: the values, and with SPLIT the remainders that lie DIM behind them."""
    if MASKED:
        values = tl.load(pointers, mask=mask, other=0.0)
        rest = tl.load(pointers + DIM, mask=mask, other=0.0) if SPLIT else values
    else:
        values = tl.load(pointers)
        rest = tl.load(pointers + DIM) if SPLIT else values
    return values, rest


@triton.jit
def _multiply(query, key, scores, SPLIT: tl.constexpr):
    """Add the products of one chunk of features to (BM, BN) scores, the small ones of SPLIT first."""
    if SPLIT:
        scores = tl.dot(query[0], key[1], scores)
        scores = tl.dot(query[1], key[0], scores)
    return tl.dot(query[0], key[0], scores)


@triton.jit
def _fold(  # noqa: PLR0913, PLR0917
    state, scores, exists, index, scaling, BN: tl.constexpr, INDEX_BITS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Fold (BM, BN) scores into the rows' state; ``index`` (BN,) int32 is what goes below the score."""
    first, second, overflow, weights, weights_lost, weighted, weighted_lost = state
    scale, shift, unit, bias = scaling
    exponents = scores * scale - shift  # a fused multiply-add
    if MASKED:
        exponents = tl.where(exists[None, :], exponents, _MASKED)
    weight = tl.exp2(exponents)
    weights, weights_lost = _add(weights, weights_lost, tl.sum(weight, axis=1))
    weighted, weighted_lost = _add(weighted, weighted_lost, tl.sum(weight * exponents, axis=1))

    fixed = (exponents * unit + bias).to(tl.int32, bitcast=True)
    packed = (fixed << INDEX_BITS) + index[None, :]
    if MASKED:
        packed = tl.where(exists[None, :], packed, EMPTY)
    # two columns that stand side by side share a bucket: half the registers for as many operations
    even, odd = tl.split(tl.reshape(packed, (packed.shape[0], BN // 2, 2)))
    high, low = tl.maximum(even, odd), tl.minimum(even, odd)
    beaten, rest = tl.minimum(first, high), tl.maximum(second, low)
    first = tl.maximum(first, high)
    second = tl.maximum(beaten, rest)
    # the third of four, and the fourth is no larger: the best score that a bucket of this row has lost
    overflow = tl.maximum(overflow, tl.max(tl.minimum(beaten, rest), axis=1))
    return first, second, overflow, weights, weights_lost, weighted, weighted_lost


@triton.jit
def _take_tile(  # noqa: PLR0913, PLR0917
    query, queries, row_mask, columns, tile, num_columns, state, index, scaling,
    DIM: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, INDEX_BITS: tl.constexpr,
    SPLIT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold one tile of BN columns into the rows' state; MASKED: some of the columns do not exist."""
    width = DIM * 2 if SPLIT else DIM
    lanes = tl.arange(0, BN)
    exists = tile * BN + lanes < num_columns
    keys = columns + tl.cast(tile, tl.int64) * (BN * width) + lanes[None, :] * width + tl.arange(0, CHUNK)[:, None]
    scores = tl.zeros((row_mask.shape[0], BN), tl.float32)
    if DIM == CHUNK:
        scores = _multiply(query, _load(keys, exists[None, :], DIM, SPLIT, MASKED), scores, SPLIT)
    else:
        for chunk in range(0, DIM, CHUNK):
            query = _load(queries + chunk, row_mask[:, None], DIM, SPLIT, True)
            key = _load(keys + chunk, exists[None, :], DIM, SPLIT, MASKED)
            scores = _multiply(query, key, scores, SPLIT)
    return _fold(state, scores, exists, index + (lanes & 1), scaling, BN, INDEX_BITS, MASKED)


@triton.jit
def _store(state, outputs, row_ids, row_mask, split, BN: tl.constexpr):
    """Write the rows' state after the last tile of a split."""
    first, second, overflow, weights, _, weighted, _ = state
    slots_out, overflow_out, weights_out, weighted_out = outputs
    place = tl.cast(row_ids, tl.int64) * tl.num_programs(1) + split
    slots = slots_out + place[:, None] * BN + tl.arange(0, BN // 2)[None, :]
    tl.store(slots, first, mask=row_mask[:, None])
    tl.store(slots + BN // 2, second, mask=row_mask[:, None])
    tl.store(overflow_out + place, overflow, mask=row_mask)
    tl.store(weights_out + place, weights, mask=row_mask)
    tl.store(weighted_out + place, weighted, mask=row_mask)


@triton.jit
def sweep_kernel(  # noqa: PLR0913, PLR0917
    rows, columns, slots_out, overflow_out, weights_out, weighted_out,
    num_rows, num_columns, tiles_per_split, index_base, scale, shift, unit, bias,
    DIM: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, INDEX_BITS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Sums and candidates of BM rows over one split of the columns; grid (row blocks, splits).

    Row blocks vary fastest, so that all SMs want the same columns at about the same time: L2 has them.

    Args:
        rows: (num_rows, DIM) features times a power of two, with zeros behind them; with SPLIT (num_rows, 2 DIM), and
            what rounding left of them.
        columns: (num_columns, DIM or 2 DIM), the same.
        slots_out: (num_rows, splits, 2, BN / 2) int32: best and second best of every bucket, as
            score << INDEX_BITS | tile within the split << 1 | whether it is the odd column of its pair; or EMPTY.
        overflow_out: (num_rows, splits) int32: the best that found no room, packed alike.
        weights_out: (num_rows, splits) float32, sum of 2^x over the split; x = (s - 1) shift.
        weighted_out: (num_rows, splits) float32, sum of 2^x x.
        num_rows: n.
        num_columns: m.
        tiles_per_split: tiles of BN columns in every split but the last.
        index_base: int32, minus the bits of the magic number << INDEX_BITS, wrapped.
        scale: shift over the square of the operands' power of two.
        shift: log2(e) / tau.
        unit: units of the fixed-point score, 2^-f, in one of x.
        bias: 2^f + 1.5 * 2^23: x unit + bias then holds round(s 2^f) in its low bits, in a quarter of a conversion's
            time.
        DIM: features, padded to a multiple of CHUNK.
        CHUNK: features that are multiplied at a time, a power of two >= 16.
        BM: rows of a tile.
        BN: columns of a tile.
        INDEX_BITS: t, with 2 tiles_per_split <= 2^t.
        SPLIT: operands are values and remainders.
    """
    split = tl.program_id(1)
    row_ids = tl.program_id(0) * BM + tl.arange(0, BM)
    row_mask = row_ids < num_rows
    width = DIM * 2 if SPLIT else DIM
    queries = rows + row_ids[:, None].to(tl.int64) * width + tl.arange(0, CHUNK)[None, :]
    # with one chunk the rows' features stay where they are for all tiles
    query = _load(queries, row_mask[:, None], DIM, SPLIT, True)
    scaling, outputs = (scale, shift, unit, bias), (slots_out, overflow_out, weights_out, weighted_out)
    nothing = tl.full((BM, BN // 2), EMPTY, tl.int32)
    zero = tl.zeros((BM,), tl.float32)
    state = (nothing, nothing, tl.full((BM,), EMPTY, tl.int32), zero, zero, zero, zero)
    start = split * tiles_per_split
    num_whole = num_columns // BN
    for tile in range(start, tl.minimum(start + tiles_per_split, num_whole)):
        state = _take_tile(
            query, queries, row_mask, columns, tile, num_columns, state, index_base + (tile - start) * 2, scaling,
            DIM, CHUNK, BN, INDEX_BITS, SPLIT, False,
        )  # fmt: skip
    if (num_whole >= start) & (num_whole < start + tiles_per_split) & (num_whole * BN < num_columns):
        state = _take_tile(
            query, queries, row_mask, columns, num_whole, num_columns, state, index_base + (num_whole - start) * 2,
            scaling, DIM, CHUNK, BN, INDEX_BITS, SPLIT, True,
        )  # fmt: skip
    _store(state, outputs, row_ids, row_mask, split, BN)
