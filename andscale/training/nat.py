"""Noise as targets (NAT), a baseline: each sample is drawn to a random unit vector of its own.

Bojanowski, Joulin, "Unsupervised Learning by Predicting Noise", ICML 2017. There are N fixed targets, the noise of the
first memory, and an assignment of targets to samples, one to one. In a batch the samples exchange their targets so that
these lie as near as they can, and the network is then drawn to them. What differs from the paper is in
docs/faithfulness.md.

The memory bank holds each sample's target in the place of its feature: so the assignment is kept, checkpointed, handed
to the next round and held in shares by the ranks like every memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from andscale.config import MethodConfig
from andscale.data.reader import Batch
from andscale.distributed import all_gather_rows, all_reduce_sum
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import ObjectiveResult, start_of_this_rank
from andscale.training.step import BatchLoss


@dataclass(frozen=True)
class NoiseLoss(BatchLoss):
    """Half the squared distance to the target, after the batch's samples have exchanged theirs.

        loss = 1/B sum_i |x_i - t_i|^2 / 2 = 1/B sum_i (1 - x_i . t_i)

    Attributes:
        memory: this rank's rows: targets.
        config: of the method; targets are exchanged in the first of every ``target_epochs`` epochs.
    """

    memory: MemoryBank
    config: MethodConfig

    def __call__(self, outputs: Any, batch: Batch, where: tuple[int, int]) -> ObjectiveResult:
        """(b, D) features of a batch -> its loss, and the targets for the memory."""
        sample_ids = all_gather_rows(batch.sample_ids, batch.counts)
        features = all_gather_rows(outputs.detach(), batch.counts)
        targets = self._targets(sample_ids)
        if where[1] % self.config.target_epochs == 0:
            targets = targets[best_assignment(features, targets)]
        first = start_of_this_rank(batch.counts)
        total = (1 - (outputs * targets[first : first + len(outputs)]).sum(dim=1)).sum()
        size = len(sample_ids)
        return ObjectiveResult(
            loss=total * (len(batch.counts) / size),
            mean_loss=all_reduce_sum(total.detach().clone()) / size,
            features=targets,
            sample_ids=sample_ids,
        )

    def _targets(self, sample_ids: Tensor) -> Tensor:
        """The targets of samples that any rank holds, (B, D) float32 on every rank."""
        if not len(self.memory.rows):
            return all_reduce_sum(self.memory.values.new_zeros(len(sample_ids), self.memory.values.shape[1]))
        positions, here = self.memory.locate(sample_ids)
        return all_reduce_sum(torch.where(here[:, None], self.memory.values[positions], 0))


def best_assignment(features: Tensor, targets: Tensor) -> Tensor:
    """The permutation of targets that brings them nearest to the features (Hungarian algorithm).

    Args:
        features: (B, D) float32, unit length.
        targets: (B, D) float32, unit length.

    Returns:
        (B,) int64, on their device: sample i gets target ``result[i]``, so that sum_i x_i . t_result[i] is largest. A
        sync point; some ms for B = 256, and B^3.
    """
    from scipy.optimize import linear_sum_assignment

    similarities = (features.double() @ targets.double().T).cpu().numpy()
    _, columns = linear_sum_assignment(similarities, maximize=True)
    return torch.from_numpy(columns).to(features.device)
