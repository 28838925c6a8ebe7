"""The innermost loop of the CPU sweep: a small tile of similarities, scored and summed up while it is in registers.

Written as LLVM instructions on whole vectors, compiled by numba when it is first called, so that nothing has to be
compiled at installation. A tile has ``num_rows`` x ``num_columns`` similarities, which stay in vector registers from
the first product to the last sum; only when one of them can be a neighbour are they stored.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

_EXPONENT_DEGREE = 5
_MIN_EXPONENT = -126.0
"""2^x is a normal float32 down to here; below it a weight counts as 2^-126, which no sum of float32 notices."""

_ROUND_TO_INTEGER = 12582912.0
"""1.5 * 2^23: added to a float32 it leaves the nearest integer in the lowest bits of the sum."""

_UNROLL = 4


@dataclass(frozen=True)
class TileShape:
    """A tile in registers: ``num_rows`` rows of ``num_vectors`` registers of ``lanes`` float32 numbers."""

    lanes: int
    num_rows: int
    num_vectors: int

    @property
    def num_columns(self) -> int:
        """Columns of a tile."""
        return self.lanes * self.num_vectors


def host_tile_shape() -> TileShape:
    """The tile for this machine: as many accumulators as its registers hold beside a row of columns and one factor."""
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return TileShape(lanes=16, num_rows=8, num_vectors=3)  # 32 registers of 16: 24 + 3 + 1 used
    if features.get("neon") or features.get("asimd"):
        return TileShape(lanes=4, num_rows=8, num_vectors=3)  # 32 registers of 4
    return TileShape(lanes=8, num_rows=4, num_vectors=3)  # AVX2: 16 registers of 8: 12 + 3 + 1 used


def power_of_two_coefficients() -> np.ndarray:
    """Coefficients c_0.. of 2^f ~ sum_q c_q f^q for f in [-1/2, 1/2], (6,) float64; relative error below 3e-7.

    A least-squares fit of the relative error at Chebyshev points, which is close to the best in the largest error.
    """
    points = 0.5 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    powers = np.vander(points, _EXPONENT_DEGREE + 1, increasing=True)
    weights = 2.0**-points
    coefficients: np.ndarray = np.linalg.lstsq(powers * weights[:, None], np.ones(400), rcond=None)[0]
    return coefficients


@intrinsic(prefer_literal=True)
def score_tile(  # noqa: PLR0913, PLR0917 - a compiled function has no objects to hold them
    _: Any,
    lanes: Any,
    num_rows: Any,
    num_vectors: Any,
    a: Any,
    a_stride: Any,
    b: Any,
    dim: Any,
    row_thresholds: Any,
    row_sums: Any,
    row_gap: Any,
    column_thresholds: Any,
    column_sums: Any,
    column_gap: Any,
    shift: Any,
    hits: Any,
    masks: Any,
    scale: Any,
) -> Any:
    """Score one tile; for compiled functions.

    The first three arguments, the tile's shape, are constants of the caller. Most others are addresses (int64) of
    float32 arrays:

    - ``a``: (num_rows, D) rows of features, ``a_stride`` bytes from row to row
    - ``b``: (D, num_columns) packed columns; ``dim`` = D
    - ``row_thresholds`` (num_rows,), ``column_thresholds`` (num_columns,): similarities above them are wanted
    - ``row_sums``: (2, num_rows * lanes), sums of 2^x and 2^x x by lane, ``row_gap`` bytes from one to the other;
      ``column_sums``: (2, num_columns), ``column_gap`` bytes apart; both are added to
    - ``shift``: (num_columns,); x = scale * s + shift, with ``scale`` a float32
    - ``hits``: (num_rows * num_columns,) similarities; ``masks``: (num_rows, 2) int64, a bit for each column above the
      row's threshold, and one for each column whose own threshold the similarity is above. Both are written only if
      the kernel returns 1.

    Returns:
        int64: 1 if any similarity is above a threshold, else 0.
    """
    shape = TileShape(lanes.literal_value, num_rows.literal_value, num_vectors.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _TileWriter(builder, shape).write(_Arguments(*arguments[3:]))

    return types.int64(lanes, num_rows, num_vectors, *([types.int64] * 13), types.float32), generate


class _Arguments(NamedTuple):
    """``score_tile``'s arguments behind the shape."""

    a: Any
    a_stride: Any
    b: Any
    dim: Any
    row_thresholds: Any
    row_sums: Any
    row_gap: Any
    column_thresholds: Any
    column_sums: Any
    column_gap: Any
    shift: Any
    hits: Any
    masks: Any
    scale: Any


class _TileWriter:
    """Writes the instructions of one tile. ``s[r][v]`` is vector v of the similarities of row r."""

    def __init__(self, builder: Any, shape: TileShape):
        from llvmlite import ir

        self.ir, self.builder, self.shape = ir, builder, shape
        self.i64, self.float = ir.IntType(64), ir.FloatType()
        self.vector = ir.VectorType(self.float, shape.lanes)
        self.integers = ir.VectorType(ir.IntType(32), shape.lanes)
        self.bits = ir.IntType(shape.lanes)
        self.vector_bytes = 4 * shape.lanes
        name = f"llvm.fmuladd.v{shape.lanes}f32"
        self.fma_function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(self.vector, [self.vector] * 3), name
        )

    def write(self, to: _Arguments) -> Any:
        """The whole tile."""
        builder = self.builder
        s = self._similarities(to)
        row_best, column_best = self._sum_up(s, to)
        above = None
        for r, best in enumerate(row_best):
            hit = self._above(best, self.splat(self.load_number(to.row_thresholds, 4 * r)))
            above = hit if above is None else builder.or_(above, hit)
        for v, best in enumerate(column_best):
            above = builder.or_(above, self._above(best, self.load(to.column_thresholds, v)))
        any_above = builder.icmp_unsigned("!=", builder.bitcast(above, self.bits), self.bits(0))
        with builder.if_then(any_above, likely=False):
            self._store_hits(s, to)
        return builder.zext(any_above, self.i64)

    def _similarities(self, to: _Arguments) -> list[list[Any]]:
        """All inner products; every one adds its D products in the same order, so equal pairs get equal bits."""
        a, b, dim = to.a, to.b, to.dim
        rows = [self.builder.add(a, self.builder.mul(to.a_stride, self.i64(r))) for r in range(self.shape.num_rows)]
        zero = self.constant(0.0)
        s = [[zero] * self.shape.num_vectors for _ in rows]
        whole = self.builder.and_(dim, self.i64(-_UNROLL))
        s = self._product_loop(rows, b, (self.i64(0), whole, _UNROLL), s)
        return self._product_loop(rows, b, (whole, dim, 1), s)

    def _product_loop(self, rows: list[Any], b: Any, span: tuple[Any, Any, int], s: list[list[Any]]) -> list[list[Any]]:
        """``s`` plus the products of the components from ``start`` to ``stop``, ``step`` a turn."""
        start, stop, step = span
        builder, shape = self.builder, self.shape
        before = builder.block
        head = builder.append_basic_block("products")
        body = builder.append_basic_block("products.body")
        after = builder.append_basic_block("products.end")
        builder.branch(head)
        builder.position_at_end(head)
        d = builder.phi(self.i64)
        d.add_incoming(start, before)
        sums = [[builder.phi(self.vector) for _ in row] for row in s]
        builder.cbranch(builder.icmp_signed("<", d, stop), body, after)
        builder.position_at_end(body)
        new = [list(row) for row in sums]
        for component in (builder.add(d, self.i64(u)) for u in range(step)):
            offset = builder.add(b, builder.mul(component, self.i64(4 * shape.num_columns)))
            columns = [self.load(offset, v) for v in range(shape.num_vectors)]
            for r, row in enumerate(rows):
                factor = self.splat(self.load_number(builder.add(row, builder.mul(component, self.i64(4))), 0))
                new[r] = [self.fma(factor, column, total) for column, total in zip(columns, new[r], strict=True)]
        d.add_incoming(builder.add(d, self.i64(step)), builder.block)
        for old_row, sum_row, new_row in zip(s, sums, new, strict=True):
            for old, total, updated in zip(old_row, sum_row, new_row, strict=True):
                total.add_incoming(old, before)
                total.add_incoming(updated, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return sums

    def _sum_up(self, s: list[list[Any]], to: _Arguments) -> tuple[list[Any], list[Any]]:
        """Add 2^x and 2^x x to the sums of rows and columns; returns the largest similarities by row and by column."""
        builder, vectors = self.builder, range(self.shape.num_vectors)
        row_weights, row_exponents = to.row_sums, builder.add(to.row_sums, to.row_gap)
        column_weights, column_exponents = to.column_sums, builder.add(to.column_sums, to.column_gap)
        scales, shifts = self.splat(to.scale), [self.load(to.shift, v) for v in vectors]
        weights = [self.load(column_weights, v) for v in vectors]
        exponents = [self.load(column_exponents, v) for v in vectors]
        row_best: list[Any] = []
        column_best = s[0]
        for r, row in enumerate(s):
            weight_sum, exponent_sum = self.load(row_weights, r), self.load(row_exponents, r)
            for v in vectors:
                x = self.larger(self.fma(row[v], scales, shifts[v]), self.constant(_MIN_EXPONENT))
                weight = self._power_of_two(x)
                weight_sum, exponent_sum = builder.fadd(weight_sum, weight), self.fma(weight, x, exponent_sum)
                weights[v], exponents[v] = builder.fadd(weights[v], weight), self.fma(weight, x, exponents[v])
            self.store(weight_sum, row_weights, r)
            self.store(exponent_sum, row_exponents, r)
            best = row[0]
            for vector in row[1:]:
                best = self.larger(best, vector)
            row_best.append(best)
            column_best = [self.larger(b, vector) for b, vector in zip(column_best, row, strict=True)]
        for v in vectors:
            self.store(weights[v], column_weights, v)
            self.store(exponents[v], column_exponents, v)
        return row_best, column_best

    def _power_of_two(self, x: Any) -> Any:
        """2^x: the integer nearest to x goes to the exponent bits, a polynomial takes the rest."""
        builder = self.builder
        rounded = builder.fadd(x, self.constant(_ROUND_TO_INTEGER))
        rest = builder.fsub(x, builder.fsub(rounded, self.constant(_ROUND_TO_INTEGER)))
        *lower, power = power_of_two_coefficients()
        power = self.constant(power)
        for coefficient in reversed(lower):
            power = self.fma(power, rest, self.constant(coefficient))
        exponent_shift = self.ir.Constant(self.integers, [23] * self.shape.lanes)
        exponent = builder.shl(builder.bitcast(rounded, self.integers), exponent_shift)
        return builder.bitcast(builder.add(builder.bitcast(power, self.integers), exponent), self.vector)

    def _store_hits(self, s: list[list[Any]], to: _Arguments) -> None:
        """Write the similarities and the bits of those above a threshold."""
        builder, shape = self.builder, self.shape
        for r, row in enumerate(s):
            threshold = self.splat(self.load_number(to.row_thresholds, 4 * r))
            row_mask = column_mask = self.i64(0)
            for v, vector in enumerate(row):
                self.store(vector, to.hits, r * shape.num_vectors + v)
                place = self.i64(v * shape.lanes)
                row_mask = builder.or_(row_mask, builder.shl(self._mask(vector, threshold), place))
                own = self._mask(vector, self.load(to.column_thresholds, v))
                column_mask = builder.or_(column_mask, builder.shl(own, place))
            for number, mask in enumerate((row_mask, column_mask)):
                builder.store(mask, self._pointer(to.masks, 16 * r + 8 * number, self.i64)).align = 8

    def _above(self, values: Any, threshold: Any) -> Any:
        return self.builder.fcmp_ordered(">", values, threshold)

    def _mask(self, values: Any, threshold: Any) -> Any:
        return self.builder.zext(self.builder.bitcast(self._above(values, threshold), self.bits), self.i64)

    def _pointer(self, address: Any, offset: int, kind: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(address, self.i64(offset)), kind.as_pointer())

    def load(self, address: Any, number: int) -> Any:
        """Vector ``number`` of the array at ``address``."""
        return self.builder.load(self._pointer(address, number * self.vector_bytes, self.vector), align=4)

    def store(self, value: Any, address: Any, number: int) -> None:
        """Write vector ``number`` of the array at ``address``."""
        self.builder.store(value, self._pointer(address, number * self.vector_bytes, self.vector)).align = 4

    def load_number(self, address: Any, offset: int) -> Any:
        """The float32 ``offset`` bytes behind ``address``."""
        return self.builder.load(self._pointer(address, offset, self.float), align=4)

    def constant(self, value: float) -> Any:
        """A vector of one number."""
        return self.ir.Constant(self.vector, [float(np.float32(value))] * self.shape.lanes)

    def splat(self, number: Any) -> Any:
        """A vector of one number that is known at run time only."""
        undefined = self.ir.Constant(self.vector, self.ir.Undefined)
        first = self.builder.insert_element(undefined, number, self.ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, undefined, self.ir.Constant(self.integers, [0] * self.shape.lanes))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """X y + z, fused where the machine can."""
        return self.builder.call(self.fma_function, [x, y, z])

    def larger(self, x: Any, y: Any) -> Any:
        """The larger of two vectors, lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)
