"""Linear classifiers on every layer of a frozen network, all trained in one pass over the images.

Each layer's map is averaged over a grid of cells until it has about 9,000 numbers (Zhang et al., 2016), standardised
by channel, and classified by one linear layer with cross-entropy. ImageNet's maps at 9,000 numbers do not fit into any
memory, so images are read and embedded anew in every epoch, augmented by crops and flips.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from andscale.config import EvaluationConfig, RunConfig
from andscale.config_data import AugmentConfig
from andscale.data.reader import Batch, SplitReader, batch_bounds
from andscale.distributed import World, all_reduce_sum
from andscale.errors import RunError, UsageError
from andscale.evaluation.embed import channels_last, share_of_rank
from andscale.evaluation.ranking import accuracies, top_classes
from andscale.metrics import Progress
from andscale.training.backbones import EmbeddingNetwork

MAX_FEATURES = 9600
"""Numbers a layer at most; AlexNet's maps of 96, 256 and 384 channels give 9,600, 9,216 and 9,600."""

MOMENTUM = 0.9
STATISTICS_SAMPLES = 10_000
"""Training samples, about, that channels are standardised by."""

_MIN_VARIANCE = 1e-5


def pool(tap: Tensor) -> Tensor:
    """Average a map over the finest square grid that leaves MAX_FEATURES numbers at most; 1 x 1 for a feature.

    Args:
        tap: (B, C, h, w), or (B, D).

    Returns:
        (B, C, s, s) with s = floor(sqrt(MAX_FEATURES / C)), at least 1 and at most h and w; (B, D, 1, 1).
    """
    if tap.ndim == 2:
        return tap[:, :, None, None]
    _, channels, height, width = tap.shape
    side = min(height, width, max(1, math.isqrt(MAX_FEATURES // channels)))
    return functional.adaptive_avg_pool2d(tap, side)


class Probe(nn.Module):
    """y = W (x - mean) / std + b, from zero weights: the problem is convex, and so every run starts alike.

    Args:
        mean: (C,) float32 of each channel.
        std: (C,) float32.
        shape: (C, s, s) of an input.
        num_classes: outputs.
    """

    def __init__(self, mean: Tensor, std: Tensor, shape: torch.Size, num_classes: int):
        super().__init__()
        self.shape = shape
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("scale", 1 / std[:, None, None])
        self.linear = nn.Linear(shape.numel(), num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, s, s) -> (B, classes)."""
        logits: Tensor = self.linear(((x - self.mean) * self.scale).flatten(1))
        return logits


class Probes(nn.Module):
    """One probe a layer."""

    def __init__(self, probes: dict[str, Probe]):
        super().__init__()
        self.by_name = nn.ModuleDict(probes)
        self.shapes = {name: list(probe.shape) for name, probe in probes.items()}

    def forward(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        """Layer -> (B, C, s, s) to layer -> (B, classes)."""
        return {name: self.by_name[name](x) for name, x in pooled.items()}


@dataclass(frozen=True)
class LinearTask:
    """What the classifiers are trained on.

    Attributes:
        network: frozen, on the device.
        readers: ``train`` and ``val``.
        config: the run's.
        world: this rank.
        round_number: part of the key of crops and order.
    """

    network: EmbeddingNetwork
    readers: dict[str, SplitReader]
    config: RunConfig
    world: World
    round_number: int

    @property
    def settings(self) -> EvaluationConfig:
        """The evaluation's section of the config."""
        return self.config.evaluation

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's training batches: the run's crops and flips, the colours as they are."""
        given = self.config.augment
        augment = AugmentConfig(
            min_crop_scale=given.min_crop_scale, flip_probability=given.flip_probability,
            brightness=0, contrast=0, saturation=0, hue=0, grayscale_probability=0,
        )  # fmt: skip
        key = (self.config.seed, self.round_number, epoch)
        return self.readers["train"].epoch(self.world, augment, self.settings.linear_batch_size, key)

    def pooled(self, images: Tensor) -> dict[str, Tensor]:
        """Every layer's map, pooled."""
        with torch.no_grad():
            return {name: pool(tap) for name, tap in self.network.taps(channels_last(images)).items()}

    def labels_of(self, batch: Batch) -> Tensor:
        """(b,) int64, on the device."""
        return self._labels[batch.sample_ids]

    @cached_property
    def _labels(self) -> Tensor:
        """(N,) int64 on the device: looked up there, the host need not wait for a batch's ids."""
        reader = self.readers["train"]
        return torch.from_numpy(reader.catalogue.labels.astype(np.int64)).to(reader.device)


def num_classes(readers: dict[str, SplitReader]) -> int:
    """One more than the largest label of all splits."""
    return 1 + max(int(reader.catalogue.labels.max()) for reader in readers.values())


def check_shares(settings: EvaluationConfig, num_samples: int, world: World) -> None:
    """Raise UsageError when a step of the linear classifiers would leave a rank without a sample."""
    smallest = min(stop - start for start, stop in batch_bounds(num_samples, settings.linear_batch_size))
    if settings.linear_epochs and smallest < world.world_size:
        raise UsageError(
            f"batches of {smallest} samples are too small for {world.world_size} ranks: use fewer ranks, or a larger "
            "evaluation.linear_batch_size"
        )


def linear_accuracies(task: LinearTask) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Train a linear classifier on every layer and classify the validation split.

    Returns:
        Layer -> ``top1``, ``top5``, ``pooled`` (C, s, s) and ``train_loss`` of the last epoch, nats; and figures.

    Raises:
        RunError: a loss is not finite.
    """
    task.network.eval()
    probes = build_probes(task)
    started = time.monotonic()
    losses = train_probes(task, probes)
    seconds = time.monotonic() - started
    result: dict[str, dict[str, Any]] = classify(task, probes)
    for name, loss in losses.items():
        result[name] |= {"pooled": probes.shapes[name], "train_loss": round(loss, 6)}
    num_images = task.settings.linear_epochs * task.readers["train"].num_samples
    return result, {"linear_s": round(seconds, 3), "linear_images_per_s": round(num_images / seconds, 1)}


def build_probes(task: LinearTask) -> Probes:
    """Untrained probes; channels are standardised by the first batches of the first epoch, over all ranks.

    Batch norm would do the same with statistics that move from step to step; fixed ones leave a linear classifier of
    the features, and depend on the number of ranks by no more than the rounding of a float64 sum.
    """
    num_steps = -(-STATISTICS_SAMPLES // task.settings.linear_batch_size)
    sums: dict[str, Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    for batch in islice(task.batches(0), num_steps):
        for name, x in task.pooled(batch.images).items():
            values = x.to(torch.float64)
            per_image = x[0, 0].numel()
            count = torch.full_like(values[0, :, 0, 0], len(x) * per_image)
            moments = torch.stack([count, values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
            sums[name] = sums.get(name, 0) + moments
            shapes[name] = x.shape[1:]
    probes = {}
    for name, moments in sums.items():
        count, total, squares = all_reduce_sum(moments)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=_MIN_VARIANCE).sqrt()
        probes[name] = Probe(mean.float(), std.float(), shapes[name], num_classes(task.readers))
    return Probes(probes).to(sums["embedding"].device)


def train_probes(task: LinearTask, probes: Probes) -> dict[str, float]:
    """SGD with momentum on the mean cross-entropy of the global batch, all probes at once; returns the last losses."""
    settings, num_samples = task.settings, task.readers["train"].num_samples
    model: nn.Module = DistributedDataParallel(probes) if task.world.world_size > 1 else probes
    optimizer = torch.optim.SGD(
        probes.parameters(),
        lr=settings.linear_learning_rate,
        momentum=MOMENTUM,
        weight_decay=settings.linear_weight_decay,
    )
    num_steps = len(batch_bounds(num_samples, settings.linear_batch_size))
    losses: dict[str, float] = {}
    for epoch in range(settings.linear_epochs):
        totals: dict[str, Tensor] = {}
        label = f"linear classifiers, epoch {epoch + 1}/{settings.linear_epochs}"
        with Progress(label, num_samples, "images", enabled=task.world.is_main) as progress:
            for batch in task.batches(epoch):
                done = (epoch * num_steps + batch.step) / (settings.linear_epochs * num_steps)
                optimizer.param_groups[0]["lr"] = settings.linear_learning_rate * 0.5 * (1 + math.cos(math.pi * done))
                for name, loss in train_step(task, model, optimizer, batch).items():
                    totals[name] = totals.get(name, 0) + loss
                progress.advance(sum(batch.counts))
        summed = all_reduce_sum(torch.stack(list(totals.values()))).tolist()
        losses = {name: total / num_samples for name, total in zip(totals, summed, strict=True)}
        if not all(map(math.isfinite, losses.values())):
            raise RunError(f"linear classifiers, epoch {epoch}: losses {losses}: lower evaluation.linear_learning_rate")
    return losses


def train_step(task: LinearTask, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, Tensor]:
    """One step of all probes; returns the sum of each one's loss over this rank's samples, nats."""
    labels = task.labels_of(batch)
    logits = model(task.pooled(batch.images))
    losses = {name: functional.cross_entropy(y, labels, reduction="sum") for name, y in logits.items()}
    # probes share no weight, so the gradient of the sum is each one's own; DDP divides by the number of ranks
    total = torch.stack(list(losses.values())).sum() * (task.world.world_size / sum(batch.counts))
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def classify(task: LinearTask, probes: Probes) -> dict[str, dict[str, Any]]:
    """Layer -> ``top1`` and ``top5`` on the validation split, each rank classifying its share of the batches."""
    reader, batch_size = task.readers["val"], task.settings.batch_size
    rows = share_of_rank(reader.num_samples, batch_size, task.world.rank, task.world.world_size)
    tops: dict[str, list[np.ndarray]] = {name: [np.empty((0, 5), np.int32)] for name in probes.by_name}
    with torch.inference_mode():
        for images in reader.in_order(batch_size, rows):
            for name, logits in probes(task.pooled(images)).items():
                tops[name].append(top_classes(logits.cpu().numpy()))
    joined = {name: np.concatenate(parts) for name, parts in tops.items()}
    return accuracies(joined, reader.catalogue.labels[rows.start : rows.stop], reader.num_samples)
