"""The sweep without a kernel of its own: tiles in plain torch, for devices without Triton and as a check of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from andscale.indexing.gpu_partials import GpuRequest, TensorPartials, in_row_batches, merge_candidates, to_units
from andscale.indexing.partials import NO_ID, NO_SCORE

_TILE_BYTES = 1 << 28
_ROWS_PER_TILE = 4096
_LOG2_E = 1.4426950408889634
_NONE = float(NO_SCORE)


def sweep_with_torch(rows: torch.Tensor, columns: torch.Tensor, request: GpuRequest) -> TensorPartials:
    """Sums, candidates and cuts of all rows over all columns: scores in float32, whatever precision is asked for.

    Each score is written once and read about five times, which bounds the sweep by the device's memory; attention's
    log-sum-exp (SDPA) would save the passes for the entropies, but needs twice the products and cannot give candidates.

    Args:
        rows: (n, D) float32, unit length.
        columns: (m, D) float32, unit length, on the same device.
        request: what is wanted; ``precision`` is not looked at.

    Raises:
        RunError: the device has no room for a single row.
    """
    row_ids = request.ids_of(rows)
    columns_per_tile = max(1, min(len(columns), _TILE_BYTES // (8 * _ROWS_PER_TILE)))

    def sweep_rows(start: int, stop: int) -> TensorPartials:
        state: TensorPartials | None = None
        for first in range(0, len(columns), columns_per_tile):
            tile = columns[first : first + columns_per_tile]
            with _full_float32():
                scores = rows[start:stop] @ tile.T
            found = _take(scores, row_ids[start:stop], request.column_start + first, request)
            state = found if state is None else merge_candidates(state, found)
        assert state is not None, "no columns"
        return state

    return in_row_batches(sweep_rows, len(rows), _ROWS_PER_TILE)


def _take(scores: torch.Tensor, row_ids: torch.Tensor, first_column: int, request: GpuRequest) -> TensorPartials:
    """The state of R rows after one tile of (R, c) scores, which are overwritten."""
    num_columns = scores.shape[1]
    shift = _LOG2_E / request.temperature
    # the row itself counts in the sums, and is no candidate
    own = (row_ids - first_column)[:, None]
    place = own.clamp(0, num_columns - 1)
    own_scores = scores.gather(1, place)
    scores.scatter_(1, place, own_scores.where(own != place, _NONE))
    best, places = scores.topk(min(request.num_candidates + 1, num_columns), dim=1)
    scores.scatter_(1, place, own_scores)

    exponents = scores.sub_(1).mul_(shift)
    weights = exponents.exp2()
    weight_sums = weights.sum(dim=1)
    weighted_exponents = weights.mul_(exponents).sum(dim=1)
    pad = (0, request.num_candidates + 1 - best.shape[1])
    best = torch.nn.functional.pad(best, pad, value=_NONE)
    ids = torch.nn.functional.pad(places, pad) + first_column
    ids = ids.where(best > _NONE, NO_ID)
    return TensorPartials(
        weight_sums=to_units(weight_sums),
        weighted_exponents=to_units(weighted_exponents),
        scores=best[:, :-1],
        ids=ids[:, :-1],
        cuts=best[:, -1],
    )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Matrix products in float32 whatever the process has allowed (tf32 has three digits)."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
