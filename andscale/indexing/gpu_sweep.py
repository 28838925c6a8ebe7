"""The exact sweep of discovery on a device: rows against columns, their softmax sums and their best candidates.

The kernel (``gpu_kernel.py``) scores coarsely and keeps the two best of each of several hundred buckets a row; here
the best of these are scored again from the float32 features. What no bucket had room for, and how far the coarse scores
can be off, is in the cut, so a caller who finds the K-th similarity above the cut has the exact neighbours; the others
must be searched again. ``sweep_with_torch`` gives the same without Triton, in several times the time.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from math import ceil

import torch

from andscale.indexing.gpu_partials import GpuRequest, TensorPartials, in_row_batches, merge_candidates, to_units
from andscale.indexing.gpu_plan import Operands, Plan, Tiling, choose_tiling, make_operands, make_plan, score_error
from andscale.indexing.partials import NO_ID, NO_SCORE, Partials
from andscale.indexing.torch_sweep import sweep_with_torch

Sweep = Callable[[torch.Tensor, torch.Tensor, GpuRequest], TensorPartials]

_BATCH_BYTES = 1 << 30
"""Temporaries of a batch of rows."""

_EMPTY = -(2**31)
_NONE = float(NO_SCORE)
_LOG2_E = 1.4426950408889634


def find_sweep(device: torch.device) -> Sweep:
    """The sweep for a device: the kernel on CUDA where Triton is installed, else torch; said on stderr."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        _say(f"discovery: Triton kernel on {torch.cuda.get_device_name(device)}")
        return sweep_with_kernel
    why = "" if device.type == "cpu" else ": Triton is not installed, which would be several times as fast"
    _say(f"discovery: torch on {device}{why}")
    return sweep_with_torch


def sweep_on_gpu(rows: torch.Tensor, columns: torch.Tensor, request: GpuRequest) -> Partials:
    """Sweep all rows against all columns with the best that there is for their device; see ``sweep_with_kernel``."""
    return find_sweep(rows.device)(rows, columns, request).to_partials()


def sweep_streamed(
    rows: torch.Tensor, columns: torch.Tensor, request: GpuRequest, columns_per_chunk: int, sweep: Sweep | None = None
) -> TensorPartials:
    """The same with columns that do not fit the device: chunks of them pass through it, copied beside the work.

    Args:
        rows: (n, D) float32 on the device.
        columns: (m, D) float32 on the CPU; may be a memory-mapped file.
        request: as for the others.
        columns_per_chunk: columns on the device at a time; two such chunks are there, and two more in pinned memory.
        sweep: what sweeps a chunk; ``find_sweep`` by default.
    """
    sweep = sweep or find_sweep(rows.device)
    state: TensorPartials | None = None
    for start, chunk in _chunks_on_device(columns, rows.device, columns_per_chunk):
        found = sweep(rows, chunk, replace(request, column_start=request.column_start + start))
        state = found if state is None else merge_candidates(state, found)
    assert state is not None, "no columns"
    return state


def _chunks_on_device(columns: torch.Tensor, device: torch.device, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(first column, chunk on the device) of each chunk; a chunk is overwritten after the next one was asked for."""
    starts = range(0, len(columns), size)
    if device.type == "cpu":
        yield from ((start, columns[start : start + size]) for start in starts)
        return
    shape = (min(size, len(columns)), columns.shape[1])
    pinned = [torch.empty(shape, pin_memory=True) for _ in range(2)]
    resident = [torch.empty(shape, device=device) for _ in range(2)]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied, used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))  # type: ignore[no-untyped-call]

    def begin(number: int) -> None:
        block, slot = columns[starts[number] : starts[number] + size], number % 2
        copied[slot].synchronize()  # the copy before last has left the pinned buffer
        pinned[slot][: len(block)].copy_(block)
        with torch.cuda.stream(stream):
            stream.wait_event(used[slot])
            resident[slot][: len(block)].copy_(pinned[slot][: len(block)], non_blocking=True)
            copied[slot].record(stream)

    for number in range(min(2, len(starts))):
        begin(number)
    for number, start in enumerate(starts):
        slot = number % 2
        torch.cuda.current_stream(device).wait_event(copied[slot])
        yield start, resident[slot][: min(size, len(columns) - start)]
        used[slot].record(torch.cuda.current_stream(device))
        if number + 2 < len(starts):
            begin(number + 2)


def sweep_with_kernel(
    rows: torch.Tensor, columns: torch.Tensor, request: GpuRequest, tiling: Tiling | None = None
) -> TensorPartials:
    """Sums, candidates and cuts of all rows over all columns by the Triton kernel.

    Nothing larger than a batch of rows' slots is held beside the operands: a copy of rows and columns as float16
    (two for float32). The result does not depend on the size of the batches.

    Args:
        rows: (n, D) float32, unit length, on a CUDA device (on the CPU under TRITON_INTERPRET=1).
        columns: (m, D) float32, unit length, on the same device.
        request: what is wanted.
        tiling: for tests and tuning; the device's own by default.

    Raises:
        RunError: the device has no room for a single row.
    """
    dim = rows.shape[1]
    plan = make_plan(len(columns), dim, request.num_candidates, tiling or choose_tiling(rows.device, request.precision))
    row_operands = make_operands(rows, plan.padded_dim, request.precision)
    column_operands = make_operands(columns, plan.padded_dim, request.precision)
    errors = score_error(row_operands.residuals, float(column_operands.residuals.max()), dim)
    # slots, what topk makes of them, and the candidates' features twice
    bytes_per_row = 8 * plan.slots_per_row + (request.num_candidates + 1) * (40 + 8 * dim)

    def sweep_rows(start: int, stop: int) -> TensorPartials:
        block = slice(start, stop)
        slots, overflow, sums = _launch(row_operands.values[block], column_operands, request, plan)
        ids, coarse, cuts = _read_slots(slots, overflow, plan, request)
        own = request.ids_of(rows)[block, None]
        exact = _score_again(rows[block], columns, ids - request.column_start).where(ids != NO_ID, _NONE)
        if request.precision == "float16":
            sums += _correction(exact, coarse, ids != NO_ID, request.temperature)
        scores, order = exact.where(ids != own, _NONE).topk(request.num_candidates, dim=1)
        return TensorPartials(
            weight_sums=to_units(sums[0]),
            weighted_exponents=to_units(sums[1]),
            scores=scores,
            ids=ids.where(ids != own, NO_ID).gather(1, order),
            cuts=(cuts + errors[block] + plan.score_unit).where(cuts > _NONE, _NONE),
        )

    return in_row_batches(sweep_rows, len(rows), max(1, _BATCH_BYTES // bytes_per_row))


def _launch(
    values: torch.Tensor, columns: Operands, request: GpuRequest, plan: Plan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the kernel over a batch of R rows.

    Returns:
        Slots (R, S BN) int32, overflow (R,) int32, both packed; and sums (2, R) float64 of 2^x and 2^x x.
    """
    from andscale.indexing.gpu_kernel import sweep_kernel

    device, tiling = values.device, plan.tiling
    shape = (len(values), plan.num_splits)
    slots = torch.empty((*shape, tiling.block_columns), dtype=torch.int32, device=device)
    overflow = torch.empty(shape, dtype=torch.int32, device=device)
    sums = torch.empty((2, *shape), device=device)
    shift = _LOG2_E / request.temperature
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        sweep_kernel[(ceil(len(values) / tiling.block_rows), plan.num_splits)](
            values, columns.values, slots, overflow, sums[0], sums[1],
            len(values), len(columns.values), plan.tiles_per_split, plan.index_base,
            shift / columns.factor**2, shift, 2.0**plan.score_bits / shift, plan.bias,
            DIM=plan.padded_dim, CHUNK=plan.chunk, BM=tiling.block_rows, BN=tiling.block_columns,
            INDEX_BITS=plan.index_bits, SPLIT=request.precision == "float32",
            num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        )  # fmt: skip
    return slots.flatten(1), overflow.amax(dim=1), sums.double().sum(dim=2)


def _read_slots(
    slots: torch.Tensor, overflow: torch.Tensor, plan: Plan, request: GpuRequest
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best C + 1 of each row's slots, and the cut: the row itself, which may be among them, goes later.

    Returns:
        Ids (R, C + 1) int64, NO_ID where there are not so many; coarse scores (R, C + 1) float32; cuts (R,) float32 in
        coarse scores: what is not among these ids has none above it. NO_SCORE: everything is among them.
    """
    block_columns, wanted = plan.tiling.block_columns, request.num_candidates + 1
    packed, places = slots.topk(min(wanted, slots.shape[1]), dim=1)
    packed = torch.nn.functional.pad(packed, (0, wanted - packed.shape[1]), value=_EMPTY)
    places = torch.nn.functional.pad(places, (0, wanted - places.shape[1]))
    split, bucket = places // block_columns, places % (block_columns // 2)
    index = packed & (2**plan.index_bits - 1)
    tile = split * plan.tiles_per_split + (index >> 1)
    ids = request.column_start + tile * block_columns + 2 * bucket + (index & 1)
    lost = torch.maximum(overflow, packed[:, -1])
    return ids.where(packed != _EMPTY, NO_ID), _unpack(packed, plan), _unpack(lost, plan)


def _unpack(packed: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Scores of packed values, float32."""
    scores: torch.Tensor = (packed >> plan.index_bits) * plan.score_unit
    return scores.where(packed != _EMPTY, _NONE)


def _score_again(rows: torch.Tensor, columns: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Similarities (R, C) of rows (R, D) and the columns at (R, C) places, float32; a negative place gives anything."""
    gathered = columns[places.clamp(min=0)]  # (R, C, D)
    return gathered.mul_(rows[:, None, :]).sum(dim=2)  # no matrix product: it could be tf32


def _correction(exact: torch.Tensor, coarse: torch.Tensor, exists: torch.Tensor, temperature: float) -> torch.Tensor:
    """What the sums gain when the candidates' coarse scores in them are replaced by exact ones: (2, R) float64.

    The candidates have the largest weights, so this takes most of float16's error from the entropies.
    """
    shift = _LOG2_E / temperature
    exact, coarse = ((scores.double() - 1) * shift for scores in (exact, coarse))
    weights, wrong = torch.exp2(exact) * exists, torch.exp2(coarse) * exists
    return torch.stack([(weights - wrong).sum(dim=1), (weights * exact - wrong * coarse).sum(dim=1)])


def _say(line: str) -> None:
    print(line, file=sys.stderr)
