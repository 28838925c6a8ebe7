"""Blocks of rows against samples drawn from other blocks: entropies whose far part is estimated, with their error.

What a row's near blocks leave of the sums S = sum_j 2^x_ij and T = sum_j 2^x_ij x_ij is estimated from two kinds of
strata: blocks of a middle distance, of which PANEL_SAMPLES are drawn, and spans of consecutive far blocks, of which
FAR_SAMPLES are drawn. The tile kernel adds up every vector lane by itself; draws are laid out so that lanes are
repetitions of one estimate, and their scatter gives its variance at no cost.
"""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from andscale.indexing.cpu_kernels import kernel_stamp
from andscale.indexing.partials import BLOCK_ROWS, SUM_SCALE
from andscale.indexing.threads import in_turns
from andscale.indexing.tile_kernel import TileShape, host_tile_shape, score_tile

PANEL_SAMPLES = 48
"""Draws from a block of a middle distance: a multiple of every tile's columns, so of every machine's lanes."""

FAR_SAMPLES = 4
"""Draws from a far stratum: divides every machine's lanes."""

_FAR_STRATA = 512
_BEYOND = np.float32(-1e30)
"""Shift of columns that are not to count: their weight is 2^-126."""


class Draws(NamedTuple):
    """Drawn samples, packed for the tile kernel: P panels of tile_columns columns.

    Attributes:
        panels: (P, D, tile_columns) float32.
        shifts: (P, tile_columns) float32, -log2(e) / tau, or _BEYOND where a draw met no sample.
        blocks: (P, tile_columns) int64, the block that a draw lies in; num_blocks where it met no sample.
        scale: float32, log2(e) / tau.
    """

    panels: np.ndarray
    shifts: np.ndarray
    blocks: np.ndarray
    scale: np.float32


class Strata(NamedTuple):
    """What is drawn from for the rows of every block.

    Attributes:
        near: starts (num_blocks + 1,) and blocks, int64: those that were scored in full and may not be drawn from.
        middle: the same of the blocks that PANEL_SAMPLES are drawn from.
        far_size: places in a far stratum.
    """

    near: tuple[np.ndarray, np.ndarray]
    middle: tuple[np.ndarray, np.ndarray]
    far_size: int


def draw_middle(features: np.ndarray, seed: int, temperature: float) -> Draws:
    """PANEL_SAMPLES places of every block without replacement; features (N, D) float32 in the order of the blocks."""
    num_blocks = -(-len(features) // BLOCK_ROWS)
    rng = np.random.default_rng([seed, 0x6D6964])
    places = np.stack([rng.choice(BLOCK_ROWS, PANEL_SAMPLES, replace=False) for _ in range(num_blocks)])
    positions = places + BLOCK_ROWS * np.arange(num_blocks)[:, None]
    return _pack(features, positions.reshape(-1, host_tile_shape().num_columns), temperature)


def draw_far(features: np.ndarray, seed: int, temperature: float) -> tuple[Draws, int]:
    """FAR_SAMPLES places of every far stratum without replacement.

    The FAR_SAMPLES lanes of an aligned group hold draws of the same strata, other groups those of other strata.

    Returns:
        The draws, and the places in a stratum; the last stratum is filled up with places that hold no sample.
    """
    num_blocks = -(-len(features) // BLOCK_ROWS)
    blocks_a_stratum = -(-num_blocks // _FAR_STRATA)
    size, num_strata = blocks_a_stratum * BLOCK_ROWS, -(-num_blocks // blocks_a_stratum)
    rng = np.random.default_rng([seed, 0x666172])
    places = np.stack([rng.choice(size, FAR_SAMPLES, replace=False) for _ in range(num_strata)])
    a_panel = host_tile_shape().num_columns // FAR_SAMPLES
    positions = np.full((-(-num_strata // a_panel) * a_panel, FAR_SAMPLES), len(features), np.int64)
    positions[:num_strata] = places + size * np.arange(num_strata)[:, None]
    return _pack(features, positions.reshape(-1, host_tile_shape().num_columns), temperature), size


def estimate_rows(
    features: np.ndarray, blocks: range, sums: np.ndarray, draws: tuple[Draws, Draws], strata: Strata, num_threads: int
) -> np.ndarray:
    """Entropies of the rows of some blocks, and the variance of what was estimated of them.

    Args:
        features: (N, D) float32, in the order of the blocks.
        blocks: whose rows.
        sums: (2, n_padded) int64, sums of 2^x and 2^x x of all rows over their near blocks, in units of 2^-32.
        draws: from the middle blocks and from the far strata.
        strata: what was drawn from.
        num_threads: plain threads.

    Returns:
        (4, len(blocks) * BLOCK_ROWS) float64: entropies (nats), their variances (nats^2), and S and T; nonsense in
        the rows that fill up the last block.
    """
    results = np.empty((4, len(blocks) * BLOCK_ROWS))
    score_block = _compiled(host_tile_shape())

    def estimate(turn: int) -> None:
        rows = slice(blocks[turn] * BLOCK_ROWS, (blocks[turn] + 1) * BLOCK_ROWS)
        block = features[rows]
        if len(block) < BLOCK_ROWS:
            block = np.concatenate([block, np.zeros((BLOCK_ROWS - len(block), block.shape[1]), np.float32)])
        lane_sums = np.zeros((2, 2, BLOCK_ROWS, host_tile_shape().lanes), np.float32)
        score_block(blocks[turn], block, *draws, strata, lane_sums)
        mine = results[:, turn * BLOCK_ROWS : (turn + 1) * BLOCK_ROWS]
        _finish(np.ascontiguousarray(sums[:, rows]), lane_sums, strata.far_size, mine)

    in_turns(estimate, len(blocks), num_threads)
    return results


def _pack(features: np.ndarray, positions: np.ndarray, temperature: float) -> Draws:
    """(P, tile_columns) positions as panels; positions from N on hold no sample."""
    exists = positions < len(features)
    rows = features[np.where(exists, positions, 0)]  # (P, tile_columns, D)
    scale = np.float32(np.log2(np.e) / temperature)
    shifts = np.where(exists, -scale, _BEYOND)
    blocks = np.where(exists, positions // BLOCK_ROWS, -(-len(features) // BLOCK_ROWS))
    return Draws(np.ascontiguousarray(rows.transpose(0, 2, 1)), shifts, blocks, scale)


@functools.cache
def _compiled(shape: TileShape) -> Any:
    """A function that adds the draws' weights to (2, 2, BLOCK_ROWS, lanes) sums: middle and far, 2^x and 2^x x."""
    lanes, tile_rows, num_vectors, tile_columns = shape.lanes, shape.num_rows, shape.num_vectors, shape.num_columns
    panels_a_block = PANEL_SAMPLES // tile_columns
    stamp = kernel_stamp()

    # it holds numbers only, no other compiled function: numba could not keep it on disk otherwise
    @numba.njit(nogil=True, cache=True)
    def score_block(number: Any, rows: Any, middle: Any, far: Any, strata: Any, sums: Any) -> None:
        assert stamp >= 0  # see kernel_stamp
        never = np.full(tile_rows + tile_columns, np.inf, np.float32)
        ignored = np.zeros((2, tile_columns), np.float32)
        hits, masks = np.empty(tile_rows * tile_columns, np.float32), np.empty((tile_rows, 2), np.int64)
        shift = np.empty(tile_columns, np.float32)
        dim = rows.shape[1]
        starts, near_blocks = strata.near
        taken = np.zeros(len(starts), np.bool_)
        for b in near_blocks[starts[number] : starts[number + 1]]:
            taken[b] = True
        starts, blocks = strata.middle
        blocks = blocks[starts[number] : starts[number + 1]]
        for b in blocks:
            taken[b] = True
        num_middle = len(blocks) * panels_a_block
        for p in range(num_middle + len(far.panels)):
            if p < num_middle:
                place = blocks[p // panels_a_block] * panels_a_block + p % panels_a_block
                panel, shift[:], kind = middle.panels[place], middle.shifts[place], 0
            else:
                place = p - num_middle
                panel, kind = far.panels[place], 1
                for c in range(tile_columns):
                    shift[c] = _BEYOND if taken[far.blocks[place, c]] else far.shifts[place, c]
            for i in range(0, BLOCK_ROWS, tile_rows):
                score_tile(  # type: ignore[call-arg]
                    lanes, tile_rows, num_vectors,
                    rows.ctypes.data + i * dim * 4, dim * 4, panel.ctypes.data, dim,
                    never.ctypes.data,
                    sums.ctypes.data + (kind * 2 * BLOCK_ROWS + i) * lanes * 4, BLOCK_ROWS * lanes * 4,
                    never.ctypes.data,
                    ignored.ctypes.data, tile_columns * 4,
                    shift.ctypes.data, hits.ctypes.data, masks.ctypes.data, middle.scale,
                )  # fmt: skip

    return score_block


@numba.njit(nogil=True, cache=True)
def _finish(exact: Any, sums: Any, far_size: Any, results: Any) -> None:
    """From (2, BLOCK_ROWS) exact sums and (2, 2, BLOCK_ROWS, lanes) drawn ones to entropies, variances, S and T."""
    lanes = sums.shape[3]
    weights = (BLOCK_ROWS / PANEL_SAMPLES, far_size / FAR_SAMPLES)
    for row in range(BLOCK_ROWS):
        total = np.empty(2)
        for i in range(2):
            total[i] = exact[i, row] / SUM_SCALE
            for lane in range(lanes):
                total[i] += weights[0] * sums[0, i, row, lane] + weights[1] * sums[1, i, row, lane]
        results[0, row] = np.log(total[0]) - np.log(2.0) * total[1] / total[0]
        # the entropy's derivatives turn a lane's two sums into its share of the entropy
        by_weight = 1 / total[0] + np.log(2.0) * total[1] / total[0] ** 2
        by_weighted = -np.log(2.0) / total[0]
        variance = 0.0
        for kind in range(2):
            repetitions = lanes if kind == 0 else FAR_SAMPLES
            scatter = 0.0
            for first in range(0, lanes, repetitions):
                shares = np.empty(repetitions)
                for n in range(repetitions):
                    lane = first + n
                    shares[n] = by_weight * sums[kind, 0, row, lane] + by_weighted * sums[kind, 1, row, lane]
                scatter += ((shares - shares.mean()) ** 2).sum()
            # of a sum of n repetitions, drawn without replacement: a share of 1 / weight of the places
            variance += (1 - 1 / weights[kind]) * weights[kind] ** 2 * scatter * repetitions / (repetitions - 1)
        results[1, row] = variance
        results[2, row], results[3, row] = total[0], total[1]
