"""Features of a split, its batches shared out over the ranks on one grid."""

import numpy as np
import torch
from torch import Tensor

from andscale.config import RunConfig
from andscale.data.reader import SplitReader
from andscale.distributed import World, all_gather_rows
from andscale.metrics import Progress
from andscale.training.backbones import EmbeddingNetwork


def share_of_rank(num_samples: int, batch_size: int, rank: int, world_size: int) -> range:
    """The sample ids that a rank embeds: consecutive whole batches, the last of all being what is left.

    An image lies in the same batch with any number of ranks, so that its feature has the same bits: libraries choose
    their kernels, and thereby the order of sums, by the size of a batch. Ranks differ by one batch at most.
    """
    num_batches = -(-num_samples // batch_size)
    cuts = [min(num_batches * r // world_size * batch_size, num_samples) for r in (rank, rank + 1)]
    return range(*cuts)


def embed_rows(
    network: EmbeddingNetwork, reader: SplitReader, config: RunConfig, rows: range, progress: Progress
) -> np.ndarray:
    """Features of some samples with the evaluation transform: (len(rows), D) float32, unit length, by id."""
    network.eval()
    features = [np.empty((0, config.model.feature_dim), np.float32)]
    with torch.inference_mode(), progress:
        for images in reader.in_order(config.evaluation.batch_size, rows):
            features.append(network(channels_last(images)).cpu().numpy())
            progress.advance(len(images))
    return np.concatenate(features)


def gather_rows(mine: np.ndarray, num_samples: int, batch_size: int, world: World) -> np.ndarray:
    """Every rank's features, (N, D) float32 by id, from those of each rank's ``share_of_rank``."""
    counts = [len(share_of_rank(num_samples, batch_size, r, world.world_size)) for r in range(world.world_size)]
    gathered: np.ndarray = all_gather_rows(torch.from_numpy(mine), counts).numpy()
    return gathered


def channels_last(images: Tensor) -> Tensor:
    """The same images in the memory order that convolutions like best."""
    return images.contiguous(memory_format=torch.channels_last)
