"""DeepCluster, a baseline: the classes to learn are the k-means clusters of the network's own features.

Caron, Bojanowski, Joulin, Douze, "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018. At the
start of an epoch all samples are embedded and clustered and the classifier begins anew, for the clusters have no order;
then the epoch trains the network and the classifier by cross-entropy against the clusters. What differs from the
published code is in docs/faithfulness.md.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from andscale.config import RunConfig
from andscale.data.reader import Batch, SplitReader
from andscale.distributed import World, all_gather_rows, all_reduce_sum, others_wait
from andscale.errors import UsageError
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.evaluation_features import evaluation_features
from andscale.training.memory_bank import rows_of_rank
from andscale.training.objective import ObjectiveResult
from andscale.training.step import BatchLoss, TrainState
from andscale.training.supervised import ClassifiedModule

Clustering = Callable[[np.ndarray, int, int], np.ndarray]
"""(N, D) float32 features, C and a seed -> (N,) int64, the cluster of each sample; given from outside, for training
knows no FAISS."""

_LARGEST_WEIGHT = 10.0
_DEVIATION = 0.01


class ClusteredModule(ClassifiedModule):
    """The network and a classifier of C clusters on its features.

    Attributes:
        assignments: (N,) int64, the cluster of each sample in this epoch; in checkpoints, as it cannot be found again.
        weights: (C,) float32, what a sample of each cluster weighs in the loss.
    """

    assignments: Tensor
    weights: Tensor

    def __init__(self, network: EmbeddingNetwork, config: RunConfig, num_samples: int):
        check_num_clusters(config, num_samples)
        super().__init__(network, config, config.method.num_clusters)
        self.register_buffer("assignments", torch.zeros(num_samples, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(config.method.num_clusters))


class DeepClusterLoss(BatchLoss):
    """Cross-entropy against this epoch's clusters, which all weigh the same.

        loss = 1/B sum_i w_c(i) (-log softmax(W x_i + b)_c(i)),   w_c = min(N / (C n_c), 10)

    The published code draws samples so that each cluster is seen equally often; here an epoch has each sample exactly
    once, and a sample weighs what it would have been drawn. A cluster of a few samples would shake a batch: hence 10.

    Args:
        state: its module and optimizer.
        config: of the run.
        reader: the training split.
        world: this rank.
        clustering: run by rank 0 for all.
    """

    def __init__(self, state: TrainState, config: RunConfig, reader: SplitReader, world: World, clustering: Clustering):
        assert isinstance(state.module, ClusteredModule)
        self.module, self.optimizer = state.module, state.optimizer
        self.config, self.reader, self.world, self.clustering = config, reader, world, clustering

    def begin_epoch(self, where: tuple[int, int]) -> None:
        """Embed, cluster, and begin the classifier anew."""
        started, world = time.monotonic(), self.world
        seed = int(np.random.SeedSequence((self.config.seed, *where, 0x636C)).generate_state(1)[0])
        num_samples, num_clusters = self.reader.num_samples, self.config.method.num_clusters
        shares = [rows_of_rank(num_samples, rank, world.world_size) for rank in range(world.world_size)]
        batch_size = self.config.evaluation.batch_size
        self._take_statistics_of_rank_0()
        mine = evaluation_features(self.module.network, self.reader, shares[world.rank], batch_size)
        features = all_gather_rows(mine, [len(share) for share in shares])
        found = torch.zeros(num_samples, dtype=torch.int64)
        with others_wait():
            if world.is_main:
                found = torch.from_numpy(self.clustering(features.cpu().numpy(), num_clusters, seed % 2**31))
        found = all_reduce_sum(found.to(self.reader.device))
        sizes = torch.bincount(found, minlength=num_clusters)
        self.module.assignments.copy_(found)
        self.module.weights.copy_((num_samples / (num_clusters * sizes.clamp(min=1))).clamp(max=_LARGEST_WEIGHT))
        self._begin_classifier(seed)
        if world.is_main:
            seconds, largest, empty = time.monotonic() - started, int(sizes.max()), int((sizes == 0).sum())
            counts = f"the largest has {largest:,} of {num_samples:,} samples, {empty:,} have none"
            print(f"{num_clusters:,} clusters in {seconds:.1f} s: {counts}", flush=True)

    def _take_statistics_of_rank_0(self) -> None:
        """One network embeds for all: ranks have running statistics of their own batches, and rank 0's are kept."""
        for buffer in self.module.network.buffers():
            if buffer.is_floating_point():
                all_reduce_sum(buffer if self.world.is_main else buffer.zero_())

    def _begin_classifier(self, seed: int) -> None:
        """New weights, the same on every rank, and no momentum of the old ones.

        As small as the published ones, so that an epoch begins with all clusters alike: logits are by 1 / tau larger.
        """
        device, classifier = self.reader.device, self.module.classifier
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            nn.init.normal_(classifier.weight, std=_DEVIATION)
            nn.init.zeros_(classifier.bias)
        for parameter in self.module.classifier.parameters():
            velocity = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if velocity is not None:
                velocity.zero_()

    def __call__(self, outputs: Any, batch: Batch, where: tuple[int, int]) -> ObjectiveResult:
        """(b, D) features and (b, C) logits of a batch -> its loss, and the features for the memory."""
        features, logits = outputs
        clusters = self.module.assignments[batch.sample_ids]
        losses = functional.cross_entropy(logits, clusters, reduction="none")
        total, size = (losses * self.module.weights[clusters]).sum(), sum(batch.counts)
        return ObjectiveResult(
            loss=total * (len(batch.counts) / size),
            mean_loss=all_reduce_sum(total.detach().clone()) / size,
            features=all_gather_rows(features.detach(), batch.counts),
            sample_ids=all_gather_rows(batch.sample_ids, batch.counts),
        )


def check_num_clusters(config: RunConfig, num_samples: int) -> None:
    """Raise UsageError unless there are at least as many samples as clusters."""
    if config.method.num_clusters > num_samples:
        raise UsageError(
            f"method.num_clusters = {config.method.num_clusters:,}, and there are {num_samples:,} training images: "
            "give at most as many clusters (--set method.num_clusters=...; the authors took ten times the classes)"
        )
