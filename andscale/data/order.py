"""Who reads what, and when: pure functions of integers, the same on every rank of every world size."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WINDOW_CHUNKS = 64
"""Chunks that samples are mixed over where ``data.shuffle`` is ``chunked``."""
WINDOW_SHARDS = 8
"""The same where a chunk is a whole shard that has to be fetched and kept."""
_GAP_BYTES = 512 * 1024


def epoch_order(num_samples: int, seed: int, round_number: int, epoch: int) -> np.ndarray:
    """The full shuffle of an epoch: (N,) int64, a permutation of 0..N-1."""
    return np.random.default_rng([seed, round_number, epoch, 0x6F7264]).permutation(num_samples)


def chunked_order(cuts: np.ndarray, window: int, key: tuple[int, int, int]) -> np.ndarray:
    """An order of an epoch in which chunks of consecutive samples come one after the other, blurred over a window.

        place of sample i = place of its chunk + window * u_i,   u_i uniform in [0, 1)

    Chunks come in random order, and samples of about ``window`` of them are under way at a time: whoever reads a chunk
    at its first sample reads the disk in long pieces, and holds half a window on average. The window slides, so the
    first batch waits for a part of it only, and no batch sees the seam of two windows.

    Args:
        cuts: (C + 1,) int64, rising, where chunks begin; the last is N.
        window: in chunks.
        key: (seed, round, epoch).

    Returns:
        (N,) int64, a permutation of 0..N-1.
    """
    rng = np.random.default_rng([*key, 0x63686B])
    sizes = np.diff(cuts)
    places = np.repeat(rng.permutation(len(sizes)), sizes)
    return np.argsort(places + min(window, len(sizes)) * rng.random(len(places)), kind="stable")


def chunk_cuts(num_samples: int, chunk_samples: int) -> np.ndarray:
    """Where chunks of equal size begin: (C + 1,) int64; the last chunk may be shorter."""
    return np.append(np.arange(0, num_samples, chunk_samples), num_samples)


@dataclass(frozen=True)
class ShuffleQuality:
    """How well an order mixes, each figure beside what a full shuffle has on average (1 is as good).

    Attributes:
        displacement: mean |place - sample id|, over N/3.
        separation: mean distance between the places of consecutive ids, over N/3.
        same_chunk: share of pairs within a batch that come from one chunk, over that share among all pairs.
    """

    displacement: float
    separation: float
    same_chunk: float


def shuffle_quality(order: np.ndarray, cuts: np.ndarray, batch_size: int) -> ShuffleQuality:
    """Measure an order.

    Args:
        order: (N,) int64, a permutation.
        cuts: (C + 1,) int64, where chunks of ids begin.
        batch_size: samples of a step.
    """
    num_samples, num_chunks = len(order), len(cuts) - 1
    places = np.empty(num_samples, np.int64)
    places[order] = np.arange(num_samples)
    chunks = np.repeat(np.arange(num_chunks), np.diff(cuts))[order]
    same = pairs = 0
    for start, stop in batch_bounds(num_samples, batch_size):
        counts = np.bincount(chunks[start:stop])
        same += int((counts * (counts - 1)).sum())
        pairs += (stop - start) * (stop - start - 1)
    sizes = np.diff(cuts)
    by_chance = (sizes * (sizes - 1)).sum() / (num_samples * (num_samples - 1))
    return ShuffleQuality(
        displacement=float(np.abs(places - np.arange(num_samples)).mean() * 3 / num_samples),
        separation=float(np.abs(np.diff(places)).mean() * 3 / num_samples),
        same_chunk=float(same / pairs / by_chance),
    )


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


def spans(starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Pieces of a file that are read at once, gaps of up to 512 KiB included.

    The ranks share a chunk out: if each read all of it, 8 ranks would read the data set 7 times; without gaps they
    would read image by image. So they read 1.8 times its bytes, in pieces of 0.4 MB (docs/log.md).

    Args:
        starts: (n,) int64, where samples begin, bytes.
        lengths: (n,) int64, their bytes.

    Returns:
        For each piece the places of its samples in ``starts``.
    """
    order = np.argsort(starts, kind="stable")
    ends = np.maximum.accumulate((starts + lengths)[order])
    return np.split(order, 1 + np.flatnonzero(starts[order][1:] - ends[:-1] > _GAP_BYTES))
