"""The compiled loops around the tile kernel: packing columns, scoring pairs of blocks, keeping candidates."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import intrinsic

from andscale.indexing import tile_kernel
from andscale.indexing.tile_kernel import TileShape, score_tile


class Rows(NamedTuple):
    """A shard as the compiled loops see it; n_padded is a multiple of the rows of a block.

    Attributes:
        start: sample id of the first row.
        features: (n, D) float32.
        tail: (block_rows, D) float32, the rows behind the last whole block, zeros behind them.
        thresholds: (n_padded,) float32, +inf behind row n.
        scores: (n_padded, C) float32, falling.
        ids: (n_padded, C) int32.
        sums: (2, n_padded) int64.
    """

    start: int
    features: np.ndarray
    tail: np.ndarray
    thresholds: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    sums: np.ndarray


@intrinsic
def _lowest_bit(_: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(numba.types.boolean, True))

    return numba.types.int64(numba.types.int64), generate


@numba.njit(nogil=True, cache=True)
def _insert(scores: Any, ids: Any, row: int, score: float, sample_id: int) -> Any:
    """Put a candidate into its place among the row's, which fall; the last one goes. Returns the last one's score."""
    last = scores.shape[1] - 1
    place = last
    while place > 0 and scores[row, place - 1] < score:
        scores[row, place] = scores[row, place - 1]
        ids[row, place] = ids[row, place - 1]
        place -= 1
    scores[row, place] = score
    ids[row, place] = sample_id
    return scores[row, last]


@numba.njit(nogil=True, cache=True)
def _block(side: Any, number: int, block_rows: int) -> Any:
    """(block_rows, D) rows of a block."""
    start = number * block_rows
    if start + block_rows <= side.features.shape[0]:
        return side.features[start : start + block_rows]
    return side.tail


@numba.njit(nogil=True, cache=True)
def _pack(block: Any, packed: Any) -> None:
    """Turn (block_rows, D) rows into (num_panels, D, tile_columns)."""
    num_panels, dim, tile_columns = packed.shape
    for panel in range(num_panels):
        for column in range(tile_columns):
            for d in range(dim):
                packed[panel, d, column] = block[panel * tile_columns + column, d]


# inlined: handing two shards over costs more than most tiles' hits
@numba.njit(nogil=True, cache=True, inline="always")
def _keep_hits(rows: Any, columns: Any, place: Any, is_diagonal: Any, hits: Any, masks: Any) -> None:
    """Insert the similarities of one tile, ``hits`` (tile_rows * tile_columns,), that are above a threshold.

    ``place`` is its first row and column; ``masks`` (2 * tile_rows,) as ``score_tile`` leaves them. On the diagonal a
    similarity is met as (i, j) and as (j, i), so only rows take it.
    """
    tile_rows = masks.shape[0] // 2
    tile_columns = hits.shape[0] // tile_rows
    # filled-up columns are no samples
    num_columns = columns.features.shape[0] - place[1]
    for r in range(tile_rows):
        row = place[0] + r
        for_row, for_columns = masks[2 * r], masks[2 * r + 1]
        while for_row:
            bit = _lowest_bit(for_row)  # type: ignore[call-arg, var-annotated]
            for_row &= for_row - 1
            score = hits[r * tile_columns + bit]
            # the threshold may have risen since the tile was scored
            is_other = not is_diagonal or row != place[1] + bit
            if bit < num_columns and is_other and score > rows.thresholds[row]:
                least = _insert(rows.scores, rows.ids, row, score, columns.start + place[1] + bit)
                rows.thresholds[row] = max(rows.thresholds[row], least)
        if is_diagonal:
            continue
        while for_columns:
            bit = _lowest_bit(for_columns)  # type: ignore[call-arg]
            for_columns &= for_columns - 1
            column = place[1] + bit
            score = hits[r * tile_columns + bit]
            if score > columns.thresholds[column]:
                least = _insert(columns.scores, columns.ids, column, score, rows.start + row)
                columns.thresholds[column] = max(columns.thresholds[column], least)


# the lanes are added in vectors, in an order that depends on their number alone
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _add_sums(side: Any, first: Any, sums: Any, lanes: Any, sum_scale: Any) -> None:
    """Add (2, count * lanes) float32 sums, ``lanes`` of them a row, to the rows from ``first`` on, as whole numbers."""
    for row in range(sums.shape[1] // lanes):
        for number in range(2):
            total = np.float64(0)
            for lane in range(lanes):
                total += sums[number, row * lanes + lane]
            side.sums[number, first + row] += np.int64(np.rint(total * sum_scale))


def kernel_stamp() -> int:
    """A number that changes with ``tile_kernel.py``: compiled callers of its tile must hold it.

    numba keeps compiled functions on disk and makes them anew when their own file or the numbers that they hold have
    changed; of the files that their instructions come from it knows nothing.
    """
    return zlib.crc32(Path(tile_kernel.__file__).read_bytes())


def build_kernel(shape: TileShape, block_rows: int, sum_scale: float) -> Any:
    """The compiled sweep over two spans of blocks, for one shape of tiles.

    Its arguments: the shards of the rows and of the columns (``Rows``), whether they are one, the first and last + 1
    block of each as a tuple, the scale and the (2, block_rows) shifts of exponents (the second one for the last
    block), and scratch: packed blocks (num_blocks, panels, D, tile_columns), and a tuple of row sums
    (2, block_rows * lanes), column sums (2, block_rows), hits (tile_rows * tile_columns,), all float32, and masks
    (2 * tile_rows,) int64.

    Returns:
        A function that returns how many pairs of rows and columns it scored.
    """
    lanes, tile_rows, num_vectors, tile_columns = shape.lanes, shape.num_rows, shape.num_vectors, shape.num_columns
    stamp = kernel_stamp()

    # it holds numbers only, no other compiled function: numba could not keep it on disk otherwise
    @numba.njit(nogil=True, cache=True)
    def score_spans(  # noqa: PLR0913, PLR0917 - compiled functions take arrays, not objects
        rows: Any, columns: Any, is_same: Any, spans: Any, scale: Any, shifts: Any, packed: Any, scratch: Any
    ) -> Any:
        assert stamp >= 0  # see kernel_stamp
        row_sums, column_sums, hits, masks = scratch
        dim, num_scored = rows.features.shape[1], 0
        for b in range(*spans[1]):
            _pack(_block(columns, b, block_rows), packed[b - spans[1][0]])
        for a in range(*spans[0]):
            block = _block(rows, a, block_rows)
            num_rows = min(block_rows, rows.features.shape[0] - a * block_rows)
            for b in range(max(a, spans[1][0]) if is_same else spans[1][0], spans[1][1]):
                num_columns = min(block_rows, columns.features.shape[0] - b * block_rows)
                is_diagonal = is_same and a == b
                row_sums[:], column_sums[:] = 0, 0
                for j in range(0, block_rows, tile_columns):
                    panel = packed[b - spans[1][0], j // tile_columns]
                    for i in range(0, block_rows, tile_rows):
                        row, column = a * block_rows + i, b * block_rows + j
                        if score_tile(  # type: ignore[call-arg]
                            lanes, tile_rows, num_vectors,
                            block.ctypes.data + i * dim * 4, dim * 4, panel.ctypes.data, dim,
                            rows.thresholds.ctypes.data + row * 4,
                            row_sums.ctypes.data + i * lanes * 4, block_rows * lanes * 4,
                            columns.thresholds.ctypes.data + column * 4,
                            column_sums.ctypes.data + j * 4, block_rows * 4,
                            shifts.ctypes.data + ((block_rows if num_columns < block_rows else 0) + j) * 4,
                            hits.ctypes.data, masks.ctypes.data, scale,
                        ):  # fmt: skip
                            _keep_hits(rows, columns, (row, column), is_diagonal, hits, masks)
                _add_sums(rows, a * block_rows, row_sums, lanes, sum_scale)
                if not is_diagonal:
                    _add_sums(columns, b * block_rows, column_sums, 1, sum_scale)
                num_scored += num_rows * (num_rows + 1) // 2 if is_diagonal else num_rows * num_columns
        return num_scored

    return score_spans
