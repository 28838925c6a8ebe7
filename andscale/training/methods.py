"""What each method trains, and by which loss; everything else is one code for all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from andscale.config import MethodConfig, RunConfig
from andscale.data.reader import Batch, SplitReader
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import ObjectiveOptions, ObjectiveResult, batch_objective
from andscale.training.step import BatchLoss, TrainedModule


@dataclass(frozen=True)
class NeighbourhoodLoss:
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
    """What is trained: the network, for the supervised baseline with a classifier on top."""
    if config.method.name == "supervised":
        from andscale.training.supervised import ClassifiedModule, training_labels

        return ClassifiedModule(network, config, num_classes=int(training_labels(reader.catalogue).max()) + 1)
    return TrainedModule(network, config.optim.precision)


def make_loss(config: RunConfig, members: Tensor, memory: MemoryBank, reader: SplitReader) -> BatchLoss:
    """The loss of a batch."""
    if config.method.name == "supervised":
        from andscale.training.supervised import SupervisedLoss, training_labels

        return SupervisedLoss(torch.from_numpy(training_labels(reader.catalogue)).to(reader.device))
    options = ObjectiveOptions.from_config(config.method, config.seed)
    return NeighbourhoodLoss(members.to(reader.device), memory, config.method, options)


@torch.inference_mode()
def random_features(network: EmbeddingNetwork, reader: SplitReader, rows: range, batch_size: int) -> Tensor:
    """Features of a network that was not trained, with the evaluation transform: what its memory starts from.

    Args:
        network: on the reader's device.
        reader: the training split.
        rows: consecutive sample ids.
        batch_size: images at a time.

    Returns:
        (len(rows), D) float32, unit length.
    """
    network.eval()
    parts = [
        network(images.contiguous(memory_format=torch.channels_last)) for images in reader.in_order(batch_size, rows)
    ]
    return torch.cat(parts)
