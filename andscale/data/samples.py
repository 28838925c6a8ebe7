"""The encoded bytes of samples: by offset from shards, or by chunks that are read, or fetched, ahead of their use."""

import contextlib
import errno
import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from andscale.config_data import DataConfig
from andscale.data.images import decode_rgb, read_image_bytes
from andscale.data.order import WINDOW_CHUNKS, WINDOW_SHARDS, chunk_cuts, spans
from andscale.data.remote import ShardCache, cache_folder
from andscale.data.shards import Catalogue, PreparedDataset, SplitRecord
from andscale.errors import RunError, UsageError
from andscale.metrics import Progress
from andscale.spelling import spelt
from andscale.store.artifacts import check_size

_CHUNKS_AHEAD = 4
"""Chunks that are read before a sample of them is due."""
_CHUNK_THREADS = 2
"""Chunks that are read at a time: one waits for its disk or server while another is copied."""
_MOST_FILES = 1 << 20
"""Containers allow a billion; some programs that a process starts close that many one by one."""


class _TooManyFilesError(RunError):
    """The limit of open files, which is no damage of the data set."""


class Samples(Protocol):
    """Encoded images by sample id."""

    def __getitem__(self, sample_id: int, /) -> bytes: ...


class ReadingPlan(Protocol):
    """Where the samples of an order that is known beforehand come from; threads may share it."""

    def prepare(self, place: int) -> None:
        """Samples up to ``place`` in the order will be taken soon."""

    def take(self, sample_id: int) -> bytes:
        """The encoded image of one sample."""

    def close(self) -> None:
        """No more will be taken."""


class Shards:
    """Reads samples by catalogue offset; the shards that were opened stay so. Threads may share it."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        _allow_many_files()
        weakref.finalize(self, _close_all, self._descriptors)

    def prepare(self, place: int) -> None:
        """Nothing is read ahead: each sample is one read."""

    def take(self, sample_id: int) -> bytes:
        """The encoded image of one sample."""
        number = int(self.catalogue.shard_numbers[sample_id])
        return _read(self._descriptor(number), self.catalogue, sample_id)

    def close(self) -> None:
        """The shards stay open for the next epoch."""

    def read_together(self, sample_ids: np.ndarray) -> dict[int, bytes]:
        """Samples that lie near each other, in long reads: over the gaps between them where these are short."""
        found = {}
        numbers = self.catalogue.shard_numbers[sample_ids]
        for number in np.unique(numbers):
            ids = sample_ids[numbers == number]
            starts, lengths = self.catalogue.offsets[ids], self.catalogue.lengths[ids]
            for part in spans(starts, lengths):
                first, last = int(starts[part].min()), int((starts[part] + lengths[part]).max())
                data = read_image_bytes(self._descriptor(int(number)), first, last - first)
                # copied, so that the bytes of other ranks' samples go at once
                for sample_id, start, length in zip(ids[part], starts[part] - first, lengths[part], strict=True):
                    found[int(sample_id)] = data[int(start) : int(start + length)]
        return found

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._descriptors:
                self._descriptors[number] = _open(self.catalogue.shards[number])
            return self._descriptors[number]


class _FetchedShard:
    """One shard of the cache, open as long as this lives."""

    def __init__(self, descriptor: int, catalogue: Catalogue):
        self._descriptor, self._catalogue = descriptor, catalogue
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, sample_id: int) -> bytes:
        return _read(self._descriptor, self._catalogue, sample_id)


class ChunksAhead:
    """Samples of an order that is known beforehand, from chunks that are read in the order of their first use.

    A chunk is kept until the last of its samples was taken. Threads may share it.

    Args:
        sample_ids: (n,) int64, what will be taken, in order, each once.
        cuts: (C + 1,) int64, where chunks of ids begin.
        load: reads samples of one chunk; called in a thread.
    """

    def __init__(self, sample_ids: np.ndarray, cuts: np.ndarray, load: Callable[[np.ndarray], Samples]):
        self._cuts, self._load = cuts, load
        chunks = np.searchsorted(cuts, sample_ids, side="right") - 1
        # the ids of each chunk, and chunks by the place of their first sample
        by_chunk = np.argsort(chunks, kind="stable")
        numbers, starts = np.unique(chunks[by_chunk], return_index=True)
        groups = np.split(sample_ids[by_chunk], starts[1:])
        firsts = by_chunk[starts]
        self._waiting = [
            (int(firsts[i]), int(numbers[i]), np.sort(groups[i])) for i in np.argsort(firsts, kind="stable")[::-1]
        ]
        self._ahead = _CHUNKS_AHEAD * -(-len(sample_ids) // max(len(numbers), 1))
        self._loaded: dict[int, Future[Samples]] = {}
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_CHUNK_THREADS, "andscale-chunks")

    def prepare(self, place: int) -> None:
        """Start reading all chunks that are needed up to ``place`` in the order, and some more."""
        while self._waiting and self._waiting[-1][0] <= place + self._ahead:
            _, number, ids = self._waiting.pop()
            self._left[number] = len(ids)
            self._loaded[number] = self._pool.submit(self._load, ids)

    def take(self, sample_id: int) -> bytes:
        """The encoded image; waits for its chunk."""
        number = int(np.searchsorted(self._cuts, sample_id, side="right")) - 1
        samples = self._loaded[number].result()
        data = samples[sample_id]
        with self._lock:
            self._left[number] -= 1
            if not self._left[number]:
                del self._loaded[number]
        return data

    def close(self) -> None:
        """Give up what was not read yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class SampleSource:
    """How the samples of a split are read.

    Attributes:
        shards: by offset; used where nothing else is said.
        cuts: (C + 1,) int64, where chunks of ids begin.
        window: chunks that a chunked order mixes.
        load: reads samples of one chunk; None: sample by sample, by offset.
    """

    shards: Shards
    cuts: np.ndarray
    window: int
    load: Callable[[np.ndarray], Samples] | None

    def plan(self, sample_ids: np.ndarray) -> ReadingPlan:
        """Get ready to read (n,) int64 samples, each once, in about this order."""
        return self.shards if self.load is None else ChunksAhead(sample_ids, self.cuts, self.load)

    @contextmanager
    def named(self, sample_id: int) -> Iterator[None]:
        """Put shard and sample before the text of a RunError."""
        try:
            yield
        except _TooManyFilesError:
            raise
        except RunError as error:
            catalogue = self.shards.catalogue
            shard = catalogue.shards[int(catalogue.shard_numbers[sample_id])]
            raise RunError(
                f"{shard}, sample {sample_id}: {error}: check the data set with {spelt('prepare')} --verify"
            ) from None

    def decode_all(self, size: tuple[int, int], label: str) -> np.ndarray:
        """(N, H, W, 3) uint8 of all images, which have one size; ``label`` says in a progress line what this is."""
        num_samples = len(self.shards.catalogue.labels)
        images = np.empty((num_samples, *size, 3), np.uint8)
        plan = self.plan(np.arange(num_samples))
        with Progress(label, num_samples, "images", enabled=num_samples > 100_000) as progress:
            for sample_id in range(num_samples):
                plan.prepare(sample_id)
                with self.named(sample_id):
                    pixels = decode_rgb(plan.take(sample_id))
                    if pixels.shape[:2] != size:
                        height, width = pixels.shape[:2]
                        raise RunError(f"an image has {height}x{width} pixels, its record says {size[0]}x{size[1]}")
                    images[sample_id] = pixels
                progress.advance()
        plan.close()
        return images


def open_source(
    dataset: PreparedDataset, record: SplitRecord, catalogue: Catalogue, config: DataConfig, *, read_once: bool
) -> SampleSource:
    """Decide how a split is read, and check what can be checked before the first image.

    Args:
        dataset: the prepared data set.
        record: of the split.
        catalogue: of the samples that are used.
        config: how to shuffle; the cache of a remote data set.
        read_once: whether all samples will be read once, by id, and never again.

    Raises:
        RunError: a shard is missing or has another size. UsageError: the cache cannot hold what is needed at a time.
    """
    shards, num_samples = Shards(catalogue), len(catalogue.labels)
    if not dataset.url:
        for shard in record.shards[: int(catalogue.shard_numbers.max(initial=0)) + 1]:
            check_size(dataset.root / shard.name, shard.bytes)
        load = shards.read_together if config.shuffle == "chunked" else None
        return SampleSource(shards, chunk_cuts(num_samples, config.chunk_samples), WINDOW_CHUNKS, load)
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(catalogue.shard_numbers)) + 1, [num_samples]])
    sizes = sorted((record.shards[number].bytes for number in np.unique(catalogue.shard_numbers)), reverse=True)
    in_use = len(sizes) if config.shuffle == "full" and not read_once else WINDOW_SHARDS + _CHUNKS_AHEAD + 1
    if sum(sizes[:in_use]) > config.cache_bytes:
        raise UsageError(
            f"{min(in_use, len(sizes))} shards of {dataset.url} are in use at a time, {sum(sizes[:in_use])} bytes: "
            f"data.cache_bytes = {config.cache_bytes} is too small"
            + ("; data.shuffle = chunked needs less" if config.shuffle == "full" else "")
        )
    cache = ShardCache(dataset.url, cache_folder(config.cache_dir), config.cache_bytes)

    def load_shard(sample_ids: np.ndarray) -> Samples:
        shard = record.shards[int(catalogue.shard_numbers[sample_ids[0]])]
        with _opening(f"{dataset.url}/{shard.name}"):
            descriptor = cache.open(shard.name, shard.bytes, shard.blake3)
        return _FetchedShard(descriptor, catalogue)

    return SampleSource(shards, cuts, WINDOW_SHARDS, load_shard)


def _allow_many_files() -> None:
    """Raise this process's limit of open files as far as it may: each shard is one, and 1,024 is what shells set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # as it is: the kernel of some systems allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(path: Path) -> int:
    with _opening(path):
        return os.open(path, os.O_RDONLY)


@contextmanager
def _opening(shard: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{shard} cannot be opened: {error.strerror}"
        if error.errno != errno.EMFILE:
            raise RunError(text) from None
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise _TooManyFilesError(
            f"{text}: each shard that is read stays open, and a process may have {limit}: raise it with ulimit -n, or "
            "prepare fewer shards (--samples-per-shard)"
        ) from None


def _read(descriptor: int, catalogue: Catalogue, sample_id: int) -> bytes:
    return read_image_bytes(descriptor, int(catalogue.offsets[sample_id]), int(catalogue.lengths[sample_id]))


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
