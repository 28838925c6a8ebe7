"""How the sweep is laid out on a device: precisions, tiles, splits of the columns, and what each promises."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "float16"]
"""What the matrix products on the tensor cores take in; they add up in float32.

    float32  each number as the sum of two float16 (22 bits of it), three products: entropies within 1e-4 nats.
    float16  each number rounded to 11 bits, one product: a third of the arithmetic, entropies within 1e-2 nats.

The neighbours are the same (``score_error``). True float32 products would run on the FMA pipes, several times as long
as three products here. There is no bfloat16: its range is of no use to unit vectors, and it is as fast as float16 and
eight times as coarse.
"""

_OPERAND_FACTOR = 2.0**8
"""Operands are features times this, so that the remainders of ``float32`` are no denormals in float16."""

_ROWS_PER_CONVERSION = 1 << 17

_ACCUMULATION_ERROR = 2.0**-22
"""Of a product's sum, for each feature: tensor cores cut off where others round, and align to the largest addend."""

_COLLISION_TARGET = 0.02
"""Share of rows that may lose one of the C best samples because three of them share a bucket."""

_LOOPED_CHUNK = 64
_MAX_INDEX_BITS = 12
"""Of a column's place in its split: 2,048 tiles, and 18 bits at least for the score."""

_MAX_SCORE_BITS = 21
"""Scores up to 2 in units of 2^-21 are as much as float32 holds beside the magic number."""

_MAGIC = 1.5 * 2.0**23
_MAGIC_BITS = 0x4B400000


@dataclass(frozen=True)
class Tiling:
    """How one program works: the entry for a session that tunes on a device (``_TILINGS``).

    Attributes:
        block_rows: BM, of 16 and more. One tile's reads from L2 are shared by its rows: 64 would need 6.5 TB at
            N = 1,281,167 and D = 128, more than a second; 128 needs half of that.
        block_columns: BN, a power of two of 16 and more.
        max_chunk: features that are multiplied at a time, at most; a power of two of 16 and more. Where D is larger, 64
            at most: then the rows' features pass through shared memory with the columns'.
        num_warps: BM BN / (32 num_warps) scores a thread, each of which takes about two registers: 1 for the product,
            1 for the best and second best of half a bucket. 32 scores fit into 128 registers, so that two programs of
            8 warps share an SM and one multiplies while the other folds.
        num_stages: tiles of columns on their way into shared memory.
    """

    block_rows: int
    block_columns: int
    max_chunk: int
    num_warps: int
    num_stages: int


# By (family of devices, precision). Not timed yet. What ptxas 13 makes of D = 128, none of it spilling: sm_90 128
# registers a thread, so that two programs of float16 (80 KB of shared memory each) or one of float32 (160 KB) fit an
# SM; sm_80 246 (66 KB) and 255 (32 KB); sm_86 162 (16 KB) and 255 (32 KB).
_TILINGS: dict[tuple[str, Precision], Tiling] = {
    ("hopper", "float16"): Tiling(128, 64, 128, 8, 3),
    ("hopper", "float32"): Tiling(128, 64, 128, 8, 3),
    ("ampere", "float16"): Tiling(128, 64, 128, 8, 3),
    ("ampere", "float32"): Tiling(64, 64, 64, 4, 2),
    ("other", "float16"): Tiling(64, 64, 64, 4, 2),
    ("other", "float32"): Tiling(64, 64, 64, 4, 2),
}


def choose_tiling(device: torch.device, precision: Precision) -> Tiling:
    """The table's row for a device: data-centre Hopper (9.0), data-centre Ampere (8.0), or anything else."""
    family = "other"
    if device.type == "cuda":
        family = {(9, 0): "hopper", (8, 0): "ampere"}.get(torch.cuda.get_device_capability(device), "other")
    return _TILINGS[family, precision]


def candidates_for(num_neighbours: int, precision: Precision) -> int:
    """C, the candidates to ask for so that few rows stay undecided (those whose K-th similarity is not above the cut).

    A row is decided when less than C - K samples lie within ``score_error`` below its K-th. Of 20,000 clustered samples
    with K = 1, 10, 50, 128 at most 0.4 % stayed undecided; in clusters so tight that similarities differ by 1e-4, none
    in float32, but 5 % (K = 10) and 79 % (K = 128) in float16.
    """
    margin = {"float32": 8, "float16": 16}[precision]
    return num_neighbours + margin + num_neighbours * margin // 64


@dataclass(frozen=True)
class Plan:
    """One launch: n rows against m columns.

    Attributes:
        tiling: what a program does.
        num_splits: S; each row has S BN / 2 buckets of two slots.
        tiles_per_split: tiles of BN columns in each split but the last.
        index_bits: t; a slot is an int32 with the column's place within its split in the low t bits.
        score_bits: f; the score in units of 2^-f above them.
        chunk: features that are multiplied at a time.
        padded_dim: D, padded to a multiple of the chunk.
    """

    tiling: Tiling
    num_splits: int
    tiles_per_split: int
    index_bits: int
    score_bits: int
    chunk: int
    padded_dim: int

    @property
    def score_unit(self) -> float:
        """2^-f."""
        return 2.0**-self.score_bits

    @property
    def slots_per_row(self) -> int:
        """S BN."""
        return self.num_splits * self.tiling.block_columns

    @property
    def bias(self) -> float:
        """What makes a float32 x unit into (the magic number and) round(s 2^f) in its low bits."""
        return 2.0**self.score_bits + _MAGIC

    @property
    def index_base(self) -> int:
        """What takes the magic number's bits away again after the shift: int32, wrapped."""
        return (-(_MAGIC_BITS << self.index_bits) + 2**31) % 2**32 - 2**31


def make_plan(num_columns: int, dim: int, num_candidates: int, tiling: Tiling) -> Plan:
    """Cut the columns into splits: as many as the candidates need in buckets, and the slots' bits in tiles.

    Buckets keep two samples, and a third is lost to the cut. The C best lie in B buckets at random, so three of them
    share one in about C^3 / (6 B^2) of the rows; B follows from the share that is allowed.
    """
    num_tiles = math.ceil(num_columns / tiling.block_columns)
    num_buckets = math.sqrt(num_candidates**3 / (6 * _COLLISION_TARGET))
    num_splits = max(math.ceil(2 * num_buckets / tiling.block_columns), math.ceil(2 * num_tiles / 2**_MAX_INDEX_BITS))
    tiles_per_split = max(1, num_tiles // num_splits)
    index_bits = math.ceil(math.log2(2 * tiles_per_split))
    chunk = max(16, 2 ** math.ceil(math.log2(dim)))
    if chunk > tiling.max_chunk:
        chunk = min(tiling.max_chunk, _LOOPED_CHUNK)
    return Plan(
        tiling=tiling,
        num_splits=math.ceil(num_tiles / tiles_per_split),
        tiles_per_split=tiles_per_split,
        index_bits=index_bits,
        # scores up to 2 must fit beside the index and, in float32 with the magic number, into 22 bits
        score_bits=min(_MAX_SCORE_BITS, 30 - index_bits),
        chunk=chunk,
        padded_dim=math.ceil(dim / chunk) * chunk,
    )


@dataclass(frozen=True)
class Operands:
    """Features as the matrix products take them.

    Attributes:
        values: (n, D') float16, or (n, 2 D') for ``float32``: features times ``factor`` and zeros behind them, then
            likewise what rounding has left of them.
        residuals: (n,) float32, length of what is missing from each row.
        factor: a power of two.
    """

    values: torch.Tensor
    residuals: torch.Tensor
    factor: float = _OPERAND_FACTOR


def make_operands(features: torch.Tensor, padded_dim: int, precision: Precision) -> Operands:
    """Round features to a precision, and measure what that takes from each row.

    Args:
        features: (n, D) float32, unit length.
        padded_dim: D', at least D.
        precision: what to round to.
    """
    num_rows, dim = features.shape
    width = 2 * padded_dim if precision == "float32" else padded_dim
    values = torch.zeros((num_rows, width), dtype=torch.float16, device=features.device)
    residuals = torch.empty(num_rows, device=features.device)
    for start in range(0, num_rows, _ROWS_PER_CONVERSION):
        block = slice(start, start + _ROWS_PER_CONVERSION)
        left = features[block] * _OPERAND_FACTOR
        for offset in range(0, width, padded_dim):
            part = left.half()
            values[block, offset : offset + dim] = part
            left -= part.float()
        residuals[block] = torch.linalg.vector_norm(left, dim=1) / _OPERAND_FACTOR
    return Operands(values, residuals)


def score_error(row_residuals: torch.Tensor, column_residual: float, dim: int) -> torch.Tensor:
    """What the kernel's similarities of each row can be off by at most: (n,) float32.

    With x' = x - d the rounded row and m' = m - e a rounded column, |x.m - x'.m'| = |d.m + x'.e| <= |d| + |x'| |e|
    (Cauchy and Schwarz; unit lengths), and sums of D products round. That is a bound, not an estimate: about 4e-4 for
    float16 and 3e-5 for float32 at D = 128. A cut that is raised by it is true for the similarities
    themselves, so neighbours never depend on the precision: it only decides how many rows stay undecided.

    Args:
        row_residuals: (n,) float32, as in ``Operands``.
        column_residual: the largest of the columns.
        dim: D.
    """
    # 1.01: lengths that are not quite one; 2^-22: the product of the two remainders, which float32 leaves out
    return 1.01 * (row_residuals + column_residual) + dim * _ACCUMULATION_ERROR + 2.0**-22
