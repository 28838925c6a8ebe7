"""What a sweep carries for every row while it is on a device, and how rows are swept in batches that fit there."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from andscale.errors import RunError
from andscale.indexing.gpu_plan import Precision
from andscale.indexing.partials import SUM_SCALE, Partials


@dataclass(frozen=True)
class GpuRequest:
    """What a sweep of some rows against some columns is to find.

    Attributes:
        row_start: global id of the first row.
        column_start: global id of the first column.
        num_candidates: C, the best samples that are kept for each row; ``candidates_for`` says how many K need.
        temperature: tau > 0.
        precision: what the matrix products take in.
        row_ids: (n,) int64, global ids of the rows where they are not consecutive: rows that are searched again.
    """

    row_start: int
    column_start: int
    num_candidates: int
    temperature: float
    precision: Precision = "float32"
    row_ids: torch.Tensor | None = None

    def ids_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Global ids of the rows, (n,) int64 on their device."""
        if self.row_ids is not None:
            return self.row_ids.to(rows.device)
        return torch.arange(self.row_start, self.row_start + len(rows), device=rows.device)


@dataclass(frozen=True)
class TensorPartials:
    """``Partials`` of n rows on a device.

    Attributes:
        weight_sums: (n,) int64, sum_j 2^x_ij in units of 2^-32.
        weighted_exponents: (n,) int64, sum_j 2^x_ij x_ij in units of 2^-32.
        scores: (n, C) float32, similarities of the candidates from float32 features, largest first; NO_SCORE: none.
        ids: (n, C) int64, NO_ID where there is none.
        cuts: (n,) float32: no sample left out has a larger similarity, but for the rounding of a float32 product of D
            numbers. NO_SCORE while none was left out.
    """

    weight_sums: torch.Tensor
    weighted_exponents: torch.Tensor
    scores: torch.Tensor
    ids: torch.Tensor
    cuts: torch.Tensor

    def to_partials(self) -> Partials:
        """The same as numpy arrays; waits for the device."""
        return Partials(*(tensor.cpu().numpy() for tensor in self.tensors()))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in the order of ``Partials``."""
        return self.weight_sums, self.weighted_exponents, self.scores, self.ids, self.cuts


def to_units(sums: torch.Tensor) -> torch.Tensor:
    """Sums as int64 in units of 2^-32."""
    return (sums.double() * SUM_SCALE).round().long()


def merge_candidates(first: TensorPartials, second: TensorPartials) -> TensorPartials:
    """The state of the same rows after the columns of both, which must not overlap.

    Sums add up, the best C of all candidates stay, and the cut rises to the best that is dropped here or was before.
    """
    num_candidates = first.scores.shape[1]
    scores = torch.cat([first.scores, second.scores], dim=1)
    ids = torch.cat([first.ids, second.ids], dim=1)
    scores, order = scores.topk(min(num_candidates + 1, scores.shape[1]), dim=1)
    cuts = torch.maximum(first.cuts, second.cuts)
    if scores.shape[1] > num_candidates:
        cuts = torch.maximum(cuts, scores[:, num_candidates])
    return TensorPartials(
        weight_sums=first.weight_sums + second.weight_sums,
        weighted_exponents=first.weighted_exponents + second.weighted_exponents,
        scores=scores[:, :num_candidates],
        ids=ids.gather(1, order[:, :num_candidates]),
        cuts=cuts,
    )


def in_row_batches(
    sweep_rows: Callable[[int, int], TensorPartials], num_rows: int, rows_per_batch: int
) -> TensorPartials:
    """Sweep rows [0, n) batch by batch; where the device has no room for a batch, go on with half of it.

    Args:
        sweep_rows: (start, stop) -> the state of these rows. Each row's state must not depend on the others'.
        num_rows: n > 0.
        rows_per_batch: how many to begin with.

    Raises:
        RunError: no room for a single row.
    """
    done: list[TensorPartials] = []
    start = 0
    while start < num_rows:
        stop = min(start + rows_per_batch, num_rows)
        try:
            done.append(sweep_rows(start, stop))
        except torch.cuda.OutOfMemoryError as error:
            if stop - start == 1:
                raise RunError(f"the device has no memory left for one row of the sweep: {error}") from error
            rows_per_batch = (stop - start) // 2
            print(f"discovery: out of device memory, going on with {rows_per_batch:,} rows at a time", file=sys.stderr)
        else:
            start = stop
    return TensorPartials(*(torch.cat(parts) for parts in zip(*(p.tensors() for p in done), strict=True)))
