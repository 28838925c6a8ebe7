"""The exact sweep of a rank on its GPU: rows against all columns as they come round, streamed where they do not fit."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from andscale.errors import RunError
from andscale.indexing.candidates import add_candidates
from andscale.indexing.partials import Partials
from andscale.indexing.ring import Ring, Shard, decide, num_undecided, sweep_all_columns
from andscale.metrics import Progress

if TYPE_CHECKING:
    import torch

    from andscale.indexing.gpu_partials import GpuRequest, TensorPartials
    from andscale.indexing.gpu_sweep import Sweep

_RESERVED_BYTES = 3 * 1024**3
"""Of the device's memory, for batches of rows and what the libraries hold."""

_LEAST_ROWS = 1024
_TIMED_ROWS = 65_536

_COPIES = 3
"""Of features on the device: float32, and float16 operands of at most the same size once more; rounded up."""


@dataclass(frozen=True)
class DeviceRequest:
    """How to sweep.

    Attributes:
        temperature: tau.
        precision: "float32" or "float16".
        num_threads: of the CPU, which scores the candidates in float64.
    """

    temperature: float
    precision: str
    num_threads: int


@dataclass
class Room:
    """How many rows of features, as rows or as columns, are put on the device at a time."""

    num_rows: int

    def halve(self, error: BaseException) -> None:
        """Go on with half of it; RunError when that is next to nothing."""
        if self.num_rows < 2 * _LEAST_ROWS:
            raise RunError(f"the GPU has no memory left for {self.num_rows} rows of features: {error}") from error
        self.num_rows //= 2
        print(f"out of GPU memory: going on with {self.num_rows:,} rows at a time", file=sys.stderr)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def measure_device(dim: int) -> float:
    """Entries of the score matrix that this rank's GPU gets through in a second."""
    import torch

    from andscale.indexing.gpu_partials import GpuRequest
    from andscale.indexing.gpu_sweep import find_sweep

    device = torch.device("cuda", torch.cuda.current_device())
    sweep = find_sweep(device)
    rows = torch.nn.functional.normalize(torch.randn(_TIMED_ROWS, dim, device=device))
    seconds = []
    for _ in range(2):  # the first run may wait for the compiler
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        sweep(rows, rows, GpuRequest(0, 0, 17, 0.1, "float16")).to_partials()
        seconds.append(time.perf_counter() - started)
    return float(_TIMED_ROWS**2 / min(seconds))


def sweep_on_device(own: Shard, ring: Ring, request: DeviceRequest, device: "torch.device | None" = None) -> str:
    """Sums and exact candidates of this rank's rows; rows that the precision leaves open are searched in float32.

    Args:
        own: this rank's shard; its partials are complete afterwards, but for rows that float32 cannot decide.
        ring: who holds which samples.
        request: temperature, precision, threads.
        device: where; None: this rank's CUDA device.

    Returns:
        What swept, such as "gpu float16".
    """
    import torch

    from andscale.indexing.gpu_partials import GpuRequest
    from andscale.indexing.gpu_plan import Precision, candidates_for
    from andscale.indexing.gpu_sweep import find_sweep
    from andscale.indexing.torch_sweep import sweep_with_torch

    device = device or torch.device("cuda", torch.cuda.current_device())
    precision = cast(Precision, request.precision)
    num_candidates = candidates_for(own.partials.scores.shape[1], precision)
    kernel = find_sweep(device)
    room = Room(min(ring.num_samples, _rows_that_fit(device, own.features.shape[1])))
    with Progress("neighbourhoods", len(own.features) * ring.num_samples, "pairs", enabled=ring.world.is_main) as shown:

        def sweep(shard: Shard, columns: Shard) -> None:
            start = 0
            while start < len(shard.features):
                rows = shard.features[start : start + room.num_rows]
                wanted = GpuRequest(shard.start + start, columns.start, num_candidates, request.temperature, precision)
                try:
                    found = _sweep_columns(rows, columns.features, wanted, kernel, (device, room))
                except torch.cuda.OutOfMemoryError as error:
                    room.halve(error)
                    continue
                _absorb(shard, slice(start, start + len(rows)), found, columns, request.num_threads)
                shown.advance(len(rows) * len(columns.features))
                start += len(rows)

        sweep_all_columns(own, ring, sweep)

    def search(queries: np.ndarray, ids: np.ndarray, shard: Shard, found: Partials) -> None:
        """In plain float32, without buckets that can overflow."""
        wanted = GpuRequest(0, shard.start, num_candidates, request.temperature, "float32", torch.from_numpy(ids))
        swept = _sweep_columns(queries, shard.features, wanted, sweep_with_torch, (device, room)).to_partials()
        np.maximum(found.cuts, swept.cuts, out=found.cuts)
        add_candidates(found, queries, shard.features, shard.start, swept.ids, request.num_threads)

    decide(own, ring, num_undecided(own), search)
    return f"{'gpu' if device.type == 'cuda' else 'torch on the cpu'} {request.precision}"


def _rows_that_fit(device: "torch.device", dim: int) -> int:
    """Rows of features, as rows or as columns, of which there is room for twice as many on the device."""
    import torch

    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    return max(_LEAST_ROWS, (free - _RESERVED_BYTES) // (2 * _COPIES * 4 * dim))


def _sweep_columns(
    rows: np.ndarray, columns: np.ndarray, wanted: "GpuRequest", sweep: "Sweep", where: tuple["torch.device", "Room"]
) -> "TensorPartials":
    """Sweep rows that fit the device against columns that may not."""
    import torch

    from andscale.indexing.gpu_sweep import sweep_streamed

    device, room = where
    rows_there = torch.from_numpy(rows).to(device)
    if len(columns) > room.num_rows:
        # two chunks are on the device at a time
        return sweep_streamed(rows_there, torch.from_numpy(columns), wanted, max(1, room.num_rows // 2), sweep)
    columns_there = rows_there if columns is rows else torch.from_numpy(columns).to(device)
    return sweep(rows_there, columns_there, wanted)


def _absorb(shard: Shard, rows: slice, found: "TensorPartials", columns: Shard, num_threads: int) -> None:
    """Take over what a sweep found for some of a shard's rows; candidates are scored in float64."""
    step, all_rows = found.to_partials(), shard.partials
    all_rows.weight_sums[rows] += step.weight_sums
    all_rows.weighted_exponents[rows] += step.weighted_exponents
    np.maximum(all_rows.cuts[rows], step.cuts, out=all_rows.cuts[rows])
    # views of the shard's own arrays
    part = Partials(*(array[rows] for array in all_rows.arrays()))
    add_candidates(part, shard.features[rows], columns.features, columns.start, step.ids, num_threads)
