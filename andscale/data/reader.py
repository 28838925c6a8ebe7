"""Shards -> batches of (sample_ids, images), each sample exactly once an epoch over all ranks.

Who reads what is a pure function of integers: the order is f(seed, round, epoch), its cuts into global batches
f(N, global batch size), a rank's share of a batch f(batch, world_size). Nothing of it is state, so a run that goes on
after a stop, on any world size, reads what it would have read.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from andscale.config import AugmentConfig, DataConfig
from andscale.data.augment import (
    AugmentationDraw,
    crop_and_resize,
    draw_augmentation,
    evaluation_boxes,
    jitter_colours,
    normalise,
    training_boxes,
)
from andscale.data.images import open_rgb, read_image_bytes
from andscale.data.shards import Catalogue, PreparedDataset, load_catalogue
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.store.artifacts import check_size, verify_file


def epoch_order(num_samples: int, seed: int, round_number: int, epoch: int) -> np.ndarray:
    """The order of an epoch: (N,) int64, a permutation of 0..N-1, the same on every rank of every world size."""
    return np.random.default_rng([seed, round_number, epoch, 0x6F7264]).permutation(num_samples)


def batch_bounds(num_samples: int, global_batch_size: int) -> list[tuple[int, int]]:
    """Cut an epoch into ceil(N / B) global batches whose sizes differ by one at most.

    A short last batch would weigh its few samples more than the others and could leave ranks without any.
    """
    steps = -(-num_samples // global_batch_size)
    cuts = [num_samples * step // steps for step in range(steps + 1)]
    return list(pairwise(cuts))


def rank_counts(batch_size: int, world_size: int) -> list[int]:
    """How many samples of a global batch each rank takes, consecutive in rank order; shares differ by one at most."""
    cuts = [batch_size * rank // world_size for rank in range(world_size + 1)]
    return [stop - start for start, stop in pairwise(cuts)]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        step: number within the epoch.
        sample_ids: (b,) int64, on the device.
        images: (b, 3, S, S) float32, augmented and normalised, on the device.
        counts: the shares of all ranks.
    """

    step: int
    sample_ids: Tensor
    images: Tensor
    counts: list[int]


@dataclass(frozen=True)
class _Request:
    """What a reading process is asked for: samples, and their random numbers (None: the evaluation transform)."""

    step: int
    sample_ids: np.ndarray
    draw: AugmentationDraw | None
    counts: list[int]


class SplitReader:
    """Reads one split of a prepared data set, from memory or from its shards.

    Args:
        dataset: the prepared data set.
        split: ``train`` or ``val``.
        config: image size, where images are held, reading processes.
        device: where batches are wanted.
        max_samples: use the first so many samples only.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        split: str,
        config: DataConfig,
        device: torch.device,
        max_samples: int | None = None,
    ):
        self.config, self.device = config, device
        self.catalogue = load_catalogue(dataset, split, max_samples)
        self.num_samples = len(self.catalogue.labels)
        if self.num_samples < 1:
            raise UsageError(f"{dataset.root} has no {split} images")
        self._shards = _ShardImages(self.catalogue, config.image_size)
        self._held: Tensor | None = None
        record = dataset.splits[split]
        size = record.uniform_size
        needed = record.shards[: int(self.catalogue.shard_numbers[-1]) + 1]
        for shard in needed:
            check_size(dataset.root / shard.name, shard.bytes)
        if size is not None and self.num_samples * 3 * size[0] * size[1] <= config.in_memory_bytes:
            for shard in needed:
                verify_file(dataset.root / shard.name, shard.bytes, shard.blake3)
            self._held = _decode_all(self._shards, size, f"decode {split}").to(device)

    @property
    def is_in_memory(self) -> bool:
        """Whether the images are held decoded."""
        return self._held is not None

    def epoch(
        self, world: World, augment: AugmentConfig, global_batch_size: int, key: tuple[int, int, int]
    ) -> Iterator[Batch]:
        """This rank's batches of one epoch, augmented.

        Args:
            world: this rank.
            augment: the training augmentation.
            global_batch_size: B over all ranks, at least twice the world size.
            key: (seed, round, epoch).
        """
        requests = self._training_requests(world, augment, global_batch_size, key)
        for request, images in self._images(requests):
            assert request.draw is not None
            coloured = jitter_colours(images, request.draw)
            ids = torch.from_numpy(request.sample_ids).to(self.device)
            yield Batch(request.step, ids, normalise(coloured), request.counts)

    def in_order(self, batch_size: int, rows: range | None = None) -> Iterator[Tensor]:
        """Images with the evaluation transform, by id: (b, 3, S, S) float32 batches on the device.

        Args:
            batch_size: the last batch may be smaller.
            rows: consecutive sample ids; None takes all.
        """
        rows = range(self.num_samples) if rows is None else rows
        starts = range(rows.start, rows.stop, batch_size)
        requests = (
            _Request(step, np.arange(start, min(start + batch_size, rows.stop)), None, [])
            for step, start in enumerate(starts)
        )
        for _, images in self._images(requests):
            yield normalise(images)

    def _training_requests(
        self, world: World, augment: AugmentConfig, global_batch_size: int, key: tuple[int, int, int]
    ) -> Iterator[_Request]:
        order = epoch_order(self.num_samples, *key)
        for step, (start, stop) in enumerate(batch_bounds(self.num_samples, global_batch_size)):
            counts = rank_counts(stop - start, world.world_size)
            first = sum(counts[: world.rank])
            mine = slice(first, first + counts[world.rank])
            draw = draw_augmentation(augment, stop - start, (*key, step))
            yield _Request(step, order[start:stop][mine], draw[mine], counts)

    def _images(self, requests: Iterable[_Request]) -> Iterator[tuple[_Request, Tensor]]:
        """Cropped and resized images of each request: (b, 3, S, S) float32 in [0, 1], on the device."""
        if self._held is not None:
            for request in requests:
                images = self._held[torch.from_numpy(request.sample_ids).to(self.device)]
                heights = np.full(len(images), images.shape[2])
                widths = np.full(len(images), images.shape[3])
                boxes, flips = _boxes(request.draw, heights, widths, self.config.image_size)
                yield request, crop_and_resize(images, boxes, flips, self.config.image_size)
            return
        loader: DataLoader[Any] = DataLoader(
            self._shards,
            sampler=requests,
            batch_size=None,
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for request, pixels in loader:
            if isinstance(pixels, str):
                raise RunError(pixels)
            yield (
                request,
                pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32) / 255,
            )


def _boxes(
    draw: AugmentationDraw | None, heights: np.ndarray, widths: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    if draw is None:
        return evaluation_boxes(heights, widths, image_size), np.zeros(len(heights), bool)
    return training_boxes(draw, heights, widths), draw.flips


class _ShardImages(Dataset[tuple[_Request, Tensor | str]]):
    """Reads images by catalogue offset; every process opens the shards for itself."""

    def __init__(self, catalogue: Catalogue, image_size: int):
        self.catalogue, self.image_size = catalogue, image_size
        self._descriptors: dict[tuple[int, int], int] = {}

    def read(self, sample_id: int) -> bytes:
        """The encoded image of one sample."""
        number = int(self.catalogue.shard_numbers[sample_id])
        key = (os.getpid(), number)
        if key not in self._descriptors:
            self._descriptors[key] = os.open(self.catalogue.shards[number], os.O_RDONLY)
        offset, length = int(self.catalogue.offsets[sample_id]), int(self.catalogue.lengths[sample_id])
        return read_image_bytes(self._descriptors[key], offset, length)

    def __getitem__(self, request: _Request) -> tuple[_Request, Tensor | str]:
        """(b, S, S, 3) uint8, cropped, resized and flipped; or what went wrong, since loaders fold errors up."""
        try:
            return request, self._read_batch(request)
        except RunError as error:
            return request, str(error)

    def _read_batch(self, request: _Request) -> Tensor:
        from PIL import Image

        size = self.image_size
        pixels = np.empty((len(request.sample_ids), size, size, 3), np.uint8)
        for row, sample_id in enumerate(request.sample_ids):
            image = self.open(int(sample_id))
            draw = None if request.draw is None else request.draw[row : row + 1]
            boxes, flips = _boxes(draw, np.array([image.height]), np.array([image.width]), size)
            top, left, height, width = (int(v) for v in boxes[0])
            box = (left, top, left + width, top + height)
            # cropped first: resize(box=...) would let pixels outside the crop into its border
            resized = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
            pixels[row] = resized[:, ::-1] if flips[0] else resized
        return torch.from_numpy(pixels)

    def open(self, sample_id: int) -> Any:
        """The decoded image; RunError names the shard and the sample."""
        try:
            return open_rgb(self.read(sample_id))
        except (RunError, OSError) as error:
            shard = self.catalogue.shards[int(self.catalogue.shard_numbers[sample_id])]
            raise RunError(
                f"{shard}, sample {sample_id}: {error}: check the data set with tools/prepare_shards.py --verify"
            ) from None


def _decode_all(shards: _ShardImages, size: tuple[int, int], label: str) -> Tensor:
    """(N, 3, H, W) uint8 of images that all have one size."""
    num_samples = len(shards.catalogue.labels)
    images = np.empty((num_samples, 3, *size), np.uint8)
    with Progress(label, num_samples, "images", enabled=num_samples > 100_000) as progress:
        for sample_id in range(num_samples):
            images[sample_id] = np.asarray(shards.open(sample_id)).transpose(2, 0, 1)
            progress.advance()
    return torch.from_numpy(images)
