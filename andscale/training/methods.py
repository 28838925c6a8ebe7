"""What each method trains, and by which loss; everything else is one code for all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from andscale.config import MethodConfig, RunConfig
from andscale.data.reader import Batch, SplitReader
from andscale.distributed import World
from andscale.training.deepcluster import ClusteredModule, Clustering, DeepClusterLoss
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.memory_bank import MemoryBank
from andscale.training.nat import NoiseLoss
from andscale.training.objective import ObjectiveOptions, ObjectiveResult, batch_objective
from andscale.training.step import BatchLoss, TrainedModule, TrainState


@dataclass(frozen=True)
class NeighbourhoodLoss(BatchLoss):
    """Eq 2 and 7: instances alone, anchors with their neighbourhood.

    Attributes:
        members: (N, k + 1) int64 on the device, see RoundInputs.
        memory: this rank's rows.
        config: of the method.
        options: how the objective is computed; a step adds its key.
    """

    members: Tensor
    memory: MemoryBank
    config: MethodConfig
    options: ObjectiveOptions

    def __call__(self, outputs: Any, batch: Batch, where: tuple[int, int]) -> ObjectiveResult:
        """(b, D) features of a batch -> its loss."""
        members = self.members[batch.sample_ids]
        # the parts of a step's batch share its key: they draw the same rows
        options = self.options.at(*where, batch.step)
        temperature = self.config.temperature
        return batch_objective(
            outputs, batch.sample_ids, members, self.memory, temperature, batch.counts, options=options
        )


def make_module(network: EmbeddingNetwork, config: RunConfig, reader: SplitReader) -> TrainedModule:
    """What is trained: the network, for the baselines that classify with a classifier on top."""
    match config.method.name:
        case "supervised":
            from andscale.training.supervised import ClassifiedModule, training_labels

            return ClassifiedModule(network, config, num_classes=int(training_labels(reader.catalogue).max()) + 1)
        case "deepcluster":
            return ClusteredModule(network, config, reader.num_samples)
        case _:
            return TrainedModule(network, config.optim.precision)


def make_loss(
    config: RunConfig, members: Tensor, state: TrainState, reader: SplitReader, ranks: tuple[World, Clustering | None]
) -> BatchLoss:
    """The loss of a batch.

    Args:
        config: of the run.
        members: (N, k + 1) int64, see RoundInputs.
        state: what is trained.
        reader: the training split.
        ranks: this rank, and for ``deepcluster`` what clusters features.
    """
    match config.method.name:
        case "supervised":
            from andscale.training.supervised import SupervisedLoss, training_labels

            return SupervisedLoss(torch.from_numpy(training_labels(reader.catalogue)).to(reader.device))
        case "deepcluster":
            world, clustering = ranks
            assert clustering is not None, "the job gives a clustering"
            return DeepClusterLoss(state, config, reader, world, clustering)
        case "nat":
            return NoiseLoss(state.memory, config.method)
        case _:
            options = ObjectiveOptions.from_config(config.method, config.seed)
            return NeighbourhoodLoss(members.to(reader.device), state.memory, config.method, options)
