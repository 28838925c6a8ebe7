"""Shards -> batches of (sample_ids, images), each sample exactly once an epoch over all ranks.

Who reads what is a pure function of integers: the order is f(seed, round, epoch), its cuts into global batches
f(N, global batch size), a rank's share of a batch f(batch, world_size). Nothing of it is state, so a run that goes on
after a stop, on any world size, reads what it would have read.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from andscale.config_data import AugmentConfig, DataConfig
from andscale.data.augment import (
    AugmentationDraw,
    crop_and_resize,
    draw_augmentation,
    evaluation_boxes,
    jitter_colours,
    normalise,
    training_boxes,
)
from andscale.data.decoding import colours_of, decode_and_transform, transform_held
from andscale.data.device_feed import one_ahead, to_device
from andscale.data.images import image_size
from andscale.data.order import batch_bounds, chunked_order, epoch_order, rank_counts
from andscale.data.samples import ReadingPlan, open_source
from andscale.data.shards import PreparedDataset, load_catalogue
from andscale.distributed import World, cores_of_rank, world_from_environment
from andscale.errors import UsageError
from andscale.store.artifacts import verify_file

__all__ = ["Batch", "SplitReader", "batch_bounds", "epoch_order", "rank_counts"]

_BATCHES_AHEAD = 2
"""Batches that are read and decoded while the step before them runs; more would only take memory."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        step: number within the epoch.
        sample_ids: (b,) int64, on the device.
        images: (b, 3, S, S) float32, augmented and normalised, on the device; in channels-last memory on the CPU.
        counts: the shares of all ranks.
    """

    step: int
    sample_ids: Tensor
    images: Tensor
    counts: list[int]


@dataclass(frozen=True)
class _Request:
    """What is read next: samples, and their random numbers (None: the evaluation transform)."""

    step: int
    sample_ids: np.ndarray
    draw: AugmentationDraw | None
    counts: list[int]

    def __getitem__(self, rows: slice) -> "_Request":
        draw = None if self.draw is None else self.draw[rows]
        return _Request(self.step, self.sample_ids[rows], draw, self.counts)

    def crops(self, extents: Sequence[int] | np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """(b, 4) int64 boxes and (b,) bool flips for images of the given heights and widths, one or b of each."""
        heights, widths = (np.broadcast_to(extent, len(self.sample_ids)) for extent in extents)
        if self.draw is None:
            return evaluation_boxes(heights, widths, image_size), np.zeros(len(heights), bool)
        return training_boxes(self.draw, heights, widths), self.draw.flips


class SplitReader:
    """Reads one split of a prepared data set, from memory or from its shards.

    Args:
        dataset: the prepared data set.
        split: ``train`` or ``val``.
        config: image size, where images are held, reading threads.
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
        self.catalogue = load_catalogue(dataset, split, max_samples, texts=False)
        self.num_samples = len(self.catalogue.labels)
        if self.num_samples < 1:
            raise UsageError(f"{dataset.url or dataset.root} has no {split} images")
        self._num_threads = (
            cores_of_rank(world_from_environment()) if config.num_workers is None else config.num_workers
        )
        # a GPU has time for the colours, and whole intensities are a quarter of the bytes to copy
        self._finish_on_device = device.type != "cpu"
        record = dataset.splits[split]
        size = record.uniform_size
        is_held = size is not None and self.num_samples * 3 * size[0] * size[1] <= config.in_memory_bytes
        self.source = open_source(dataset, record, self.catalogue, config, read_once=is_held)
        self._held: Tensor | None = None
        if is_held:
            assert size is not None
            if not dataset.url:
                for shard in record.shards[: int(self.catalogue.shard_numbers[-1]) + 1]:
                    verify_file(dataset.root / shard.name, shard.bytes, shard.blake3)
            self._held = torch.from_numpy(self.source.decode_all(size, f"decode {split}")).to(device)

    @property
    def is_in_memory(self) -> bool:
        """Whether the images are held decoded."""
        return self._held is not None

    def epoch(
        self,
        world: World,
        augment: AugmentConfig,
        global_batch_size: int,
        key: tuple[int, int, int],
        first_step: int = 0,
    ) -> Iterator[Batch]:
        """This rank's batches of one epoch, or of what is left of it, augmented.

        Args:
            world: this rank.
            augment: the training augmentation.
            global_batch_size: B over all ranks, at least twice the world size.
            key: (seed, round, epoch).
            first_step: the step to begin with; those before it are not read.
        """
        order = self.order(key)
        shares = []
        for start, stop in batch_bounds(self.num_samples, global_batch_size)[first_step:]:
            counts = rank_counts(stop - start, world.world_size)
            first = sum(counts[: world.rank])
            shares.append((counts, slice(first, first + counts[world.rank]), order[start:stop]))

        def requests() -> Iterator[_Request]:
            for step, (counts, mine, ids) in enumerate(shares, start=first_step):
                draw = draw_augmentation(augment, len(ids), (*key, step))
                yield _Request(step, ids[mine], draw[mine], counts)

        for request, ids, images in self._images(requests(), np.concatenate([ids[mine] for _, mine, ids in shares])):
            yield Batch(request.step, ids, images, request.counts)

    def in_order(self, batch_size: int, rows: range | None = None) -> Iterator[Tensor]:
        """Images with the evaluation transform, by id: (b, 3, S, S) float32 batches on the device.

        Args:
            batch_size: the last batch may be smaller.
            rows: consecutive sample ids; None takes all.
        """
        rows = range(self.num_samples) if rows is None else rows
        ids = np.arange(rows.start, rows.stop)
        requests = (
            _Request(step, ids[start : start + batch_size], None, [])
            for step, start in enumerate(range(0, len(ids), batch_size))
        )
        for _, _, images in self._images(requests, ids):
            yield images

    def order(self, key: tuple[int, int, int]) -> np.ndarray:
        """The sample ids of a whole epoch in the order of reading, (N,) int64; ``key`` is (seed, round, epoch)."""
        if self.config.shuffle == "full":
            return epoch_order(self.num_samples, *key)
        return chunked_order(self.source.cuts, self.source.window, key)

    def _images(
        self, requests: Iterator[_Request], sample_ids: np.ndarray
    ) -> Iterator[tuple[_Request, Tensor, Tensor]]:
        """Each request with its ids and the network's input: (b,) int64 and (b, 3, S, S) float32, on the device.

        On a GPU a batch is gathered or copied, and transformed, on a stream of its own while the step before it runs.
        """
        batches = self._from_memory(requests) if self.is_in_memory else self._from_shards(requests, sample_ids)
        # lazy: what the generators queue on the device, a gather of held images too, is queued on the stream that asks
        made = ((request, *self._finish(request, pixels)) for request, pixels in batches)
        return one_ahead(made, self._side_stream) if self.device.type == "cuda" else made

    def _finish(self, request: _Request, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and images on the device, the last steps done there: none where the CPU's loops have done all."""
        ids = to_device(request.sample_ids, self.device)
        if pixels.dtype == torch.float32:
            return ids, pixels.permute(0, 3, 1, 2)
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self._held is None:
            images = images.to(torch.float32) / 255
        else:
            boxes, flips = request.crops(images.shape[2:], self.config.image_size)
            images = crop_and_resize(images, boxes, flips, self.config.image_size)
        return ids, normalise(images if request.draw is None else jitter_colours(images, request.draw))

    def _from_memory(self, requests: Iterator[_Request]) -> Iterator[tuple[_Request, Tensor]]:
        """Held images: (b, S, S, 3) float32 ready for the network, or (b, H, W, 3) uint8 on their device."""
        assert self._held is not None
        for request in requests:
            if self._finish_on_device:
                yield request, self._held[to_device(request.sample_ids, self.device)]
                continue
            crops = request.crops(self._held.shape[1:3], self.config.image_size)
            colours = colours_of(request.draw, len(request.sample_ids))
            images = transform_held(self._held.numpy(), request.sample_ids, crops, colours, self.config.image_size)
            yield request, torch.from_numpy(images)

    def _from_shards(self, requests: Iterator[_Request], sample_ids: np.ndarray) -> Iterator[tuple[_Request, Tensor]]:
        """Images read and decoded by threads, some batches ahead: (b, S, S, 3), float32 ready for the network, or
        uint8 crops where the device does the colours.
        """
        plan, place = self.source.plan(sample_ids), 0
        ahead: deque[tuple[_Request, Tensor, list[Future[None]]]] = deque()
        try:
            for request in requests:
                place += len(request.sample_ids)
                plan.prepare(place)
                ahead.append((request, *self._start_reading(request, plan)))
                if len(ahead) > _BATCHES_AHEAD:
                    yield _wait_for(*ahead.popleft())
            while ahead:
                yield _wait_for(*ahead.popleft())
        finally:
            for _, _, jobs in ahead:
                for job in jobs:
                    job.cancel()
            plan.close()

    def _start_reading(self, request: _Request, plan: ReadingPlan) -> tuple[Tensor, list[Future[None]]]:
        """The batch that threads will fill, and their jobs; without threads it is filled at once."""
        size, num_rows = self.config.image_size, len(request.sample_ids)
        dtype = torch.uint8 if self._finish_on_device else torch.float32
        pixels = torch.empty((num_rows, size, size, 3), dtype=dtype, pin_memory=self.device.type == "cuda")
        if not self._num_threads:
            self._read_rows(request, slice(0, num_rows), plan, pixels.numpy())
            return pixels, []
        # every thread has a part of every batch: all work at the one that is wanted next
        parts = batch_bounds(num_rows, -(-num_rows // self._num_threads))
        return pixels, [
            self._threads.submit(self._read_rows, request, slice(*part), plan, pixels.numpy()) for part in parts
        ]

    def _read_rows(self, request: _Request, rows: slice, plan: ReadingPlan, out: np.ndarray) -> None:
        """Fill some rows of a batch."""
        part = request[rows]
        encoded, sizes = [], []
        for sample_id in part.sample_ids.tolist():
            with self.source.named(sample_id):
                encoded.append(plan.take(sample_id))
                sizes.append(image_size(encoded[-1]))
        boxes, flips = part.crops(np.array(sizes).T, self.config.image_size)
        jitter, orders, is_gray = colours_of(None if self._finish_on_device else part.draw, len(encoded))
        for row, sample_id in enumerate(part.sample_ids.tolist()):
            crop, colours = (boxes[row], flips[row]), (jitter[row], orders[row], is_gray[row])
            with self.source.named(sample_id):
                decode_and_transform(encoded[row], sizes[row], crop, colours, out[rows.start + row])

    @cached_property
    def _side_stream(self) -> torch.cuda.Stream:
        """Kept from epoch to epoch: memory that was given out on a stream is used again on that stream only."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Kept from epoch to epoch."""
        return ThreadPoolExecutor(self._num_threads, "andscale-reading")


def _wait_for(request: _Request, pixels: Tensor, jobs: list[Future[None]]) -> tuple[_Request, Tensor]:
    for job in jobs:
        job.result()
    return request, pixels
