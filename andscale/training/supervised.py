"""The supervised baseline: cross-entropy against the data set's labels.

The only place in training that sees labels; the method and its other baselines never come here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from andscale.config import RunConfig
from andscale.data.reader import Batch
from andscale.data.shards import Catalogue
from andscale.distributed import all_gather_rows, all_reduce_sum
from andscale.errors import UsageError
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.objective import ObjectiveResult
from andscale.training.step import BatchLoss, TrainedModule


def training_labels(catalogue: Catalogue) -> np.ndarray:
    """(N,) int64, the class of every training sample.

    Raises:
        UsageError: a sample has none.
    """
    labels = catalogue.labels.astype(np.int64)
    if (labels < 0).any():
        raise UsageError(
            f"method.name = supervised needs a label for every training image, and {int((labels < 0).sum()):,} of "
            f"{len(labels):,} have none: choose another method, or prepare the data set with labels"
        )
    return labels


class ClassifiedModule(TrainedModule):
    """A linear classifier on the unit-length features:  logits = (W x + b) / tau.

    On the features, and not on what lies before the head, because features are what everything after training reads:
    the head is trained with the rest, for every network alike. Of unit length they give logits of the size of |W|, too
    even for a softmax over many classes; 1 / tau scales them as it scales the similarities of the method.
    """

    def __init__(self, network: EmbeddingNetwork, config: RunConfig, num_classes: int):
        super().__init__(network, config.optim.precision)
        self._temperature = config.method.temperature
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.classifier = nn.Linear(config.model.feature_dim, num_classes)

    def forward(self, images: Tensor) -> Any:
        """(b, 3, S, S) float32 -> (b, D) float32 features, (b, C) float32 logits."""
        features = super().forward(images)
        return features, self.classifier(features) / self._temperature


@dataclass(frozen=True)
class SupervisedLoss(BatchLoss):
    """Mean cross-entropy over the global batch.

    Attributes:
        labels: (N,) int64 on the device.
    """

    labels: Tensor

    def __call__(self, outputs: Any, batch: Batch, where: tuple[int, int]) -> ObjectiveResult:
        """(b, D) features and (b, C) logits of a batch -> its loss, and the features for the memory."""
        features, logits = outputs
        total = functional.cross_entropy(logits, self.labels[batch.sample_ids], reduction="sum")
        size = sum(batch.counts)
        return ObjectiveResult(
            loss=total * (len(batch.counts) / size),
            mean_loss=all_reduce_sum(total.detach().clone()) / size,
            features=all_gather_rows(features.detach(), batch.counts),
            sample_ids=all_gather_rows(batch.sample_ids, batch.counts),
        )
