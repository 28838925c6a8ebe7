"""The check of loss and gradient that every step passes before it may change anything.

The decision is taken on the device, where the optimizer and the memory read it; the host hears of it later. On a GPU
it asks one step late: reading a number at once would leave the card idle until the next step is queued.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from andscale.data.reader import Batch


@dataclass(frozen=True)
class CheckedStep:
    """What the host knows of a step that is over.

    Attributes:
        step: within the epoch.
        sample_ids: (b,) int64, this rank's, on the device.
        batch_size: B of the global batch.
        loss: mean over the global batch, or, when the gradient is not finite, its norm.
    """

    step: int
    sample_ids: Tensor
    batch_size: int
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether the step changed anything."""
        return math.isfinite(self.loss)


class FiniteCheck:
    """Admits steps whose loss and gradient are finite; after the first that is not, none is admitted any more.

    Args:
        device: where the steps run.
        lag: how many steps the host may be behind the device.
    """

    def __init__(self, device: torch.device, lag: int | None = None):
        self.lag = int(device.type == "cuda") if lag is None else lag
        self._healthy = torch.ones((), dtype=torch.bool, device=device)
        self._unread: deque[tuple[Batch, Tensor, Any]] = deque()

    @torch.no_grad()
    def admit(self, batch: Batch, mean_loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """() bool on the device: whether the step may change the weights and the memory; the same on every rank.

        Args:
            batch: what the step was made of.
            mean_loss: () float32, over the global batch.
            gradients: averaged over the ranks.
        """
        figures = torch.stack([mean_loss, torch.nn.utils.get_total_norm(gradients)])
        self._healthy = self._healthy & torch.isfinite(figures).all()
        read = None
        if figures.device.type == "cuda":
            figures = figures.to("cpu", non_blocking=True)  # into pinned memory: the host goes on
            read = torch.cuda.Event()  # type: ignore[no-untyped-call]
            read.record()
        # without its images, which would stay on the card
        self._unread.append((replace(batch, images=batch.images[:0].clone()), figures, read))
        return self._healthy

    def finished(self, lag: int | None = None) -> Iterator[CheckedStep]:
        """The steps that the host has not heard of, but for the last ``lag``; all of them with 0."""
        while len(self._unread) > (self.lag if lag is None else lag):
            batch, figures, read = self._unread.popleft()
            if read is not None:
                read.synchronize()
            loss, norm = figures.tolist()
            yield CheckedStep(batch.step, batch.sample_ids, sum(batch.counts), loss if math.isfinite(norm) else norm)
