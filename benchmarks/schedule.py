"""``python -m benchmarks.schedule``: what 10 million to a billion samples cost, by simulating the ring of ranks.

Arithmetic, not measurements: docs/scale.md states the assumptions and shows the table that this prints.
"""

import math
from dataclasses import dataclass

_GPUS_A_NODE = 8
_DIM = 128
_EXACT_BATCH = 16_384
"""Rows that the exact sweep scores against the same columns while these are in the cache."""

_NEAR_BATCH = 480
"""Rows of a block, which have their near columns in common."""


@dataclass(frozen=True)
class Gpu:
    """What is assumed of one GPU, an H100, and of its links.

    Attributes:
        flops: of bfloat16 products, a second, after utilisation: 989e12 times 0.4.
        exponentials: a second: 132 multiprocessors, 16 a clock each, 1.7 GHz, times 0.5; more than the products need.
        memory_bytes: 80 GB, of which 0.8 may hold samples and partials.
        memory_bandwidth: bytes a second of its own memory: 3.35e12 times 0.8.
        nvlink_bytes: a second and direction within a node: 450 GB/s times 0.8.
        network_bytes: a second and direction between nodes, a GPU: 50 GB/s times 0.8.
        host_bytes: a second from main memory: 64 GB/s times 0.8.
    """

    flops: float = 989e12 * 0.4
    exponentials: float = 132 * 16 * 1.7e9 * 0.5
    memory_bytes: float = 80e9 * 0.8
    memory_bandwidth: float = 3.35e12 * 0.8
    nvlink_bytes: float = 450e9 * 0.8
    network_bytes: float = 50e9 * 0.8
    host_bytes: float = 64e9 * 0.8


@dataclass(frozen=True)
class Work:
    """One job.

    Attributes:
        num_samples: N.
        num_ranks: W, one GPU each.
        columns_a_row: samples that a row is scored against; N for the exact sweep.
    """

    num_samples: int
    num_ranks: int
    columns_a_row: float

    @property
    def shard(self) -> int:
        """Samples of a rank, the largest share."""
        return -(-self.num_samples // self.num_ranks)

    @property
    def flop(self) -> float:
        """Of all products: 2 D for each entry of the score matrix."""
        return 2.0 * _DIM * self.num_samples * self.columns_a_row


@dataclass(frozen=True)
class Outcome:
    """What a simulated ring took.

    Attributes:
        seconds: until the last rank was done.
        sent_bytes: by one rank.
        waited_s: the longest that a rank waited for a shard to arrive.
    """

    seconds: float
    sent_bytes: float
    waited_s: float


def simulate(
    compute_s: list[list[float]], transfer_s: list[float], shard_bytes: float, *, overlap: bool = True
) -> Outcome:
    """A ring, event by event: at each of W steps a rank scores its rows against the shard that is with it.

    A rank sends a shard on when it has it, beside the scoring if ``overlap``, after it if not. A link carries one
    shard at a time, and a rank has room for one shard beside the one that it scores: the next comes when the one
    before it is done with.

    Args:
        compute_s: (W, W): of rank r at step t, stragglers included.
        transfer_s: (W,): of a shard from rank r to rank r - 1.
        shard_bytes: of a shard.
        overlap: whether scoring and sending go on together.
    """
    size = len(compute_s)
    arrived, free, waited = [0.0] * size, [0.0] * size, [0.0] * size
    link = [0.0] * size
    for step in range(size):
        begun = [max(a, f) for a, f in zip(arrived, free, strict=True)]
        waited = [w + b - f for w, b, f in zip(waited, begun, free, strict=True)]
        done = [b + compute_s[rank][step] for rank, b in enumerate(begun)]
        if step + 1 < size:
            # rank r gets its next shard from rank r + 1, into the room of the one that it scored before this one
            for rank in range(size):
                source = (rank + 1) % size
                ready = arrived[source] if overlap else done[source]
                start = max(ready, link[source], begun[rank] if overlap else done[rank])
                link[source] = start + transfer_s[source]
            arrived = [link[(rank + 1) % size] for rank in range(size)]
        free = done
    return Outcome(max(free), (size - 1) * shard_bytes, max(waited))


def cost(work: Work, gpu: Gpu, straggler: float = 1.0) -> dict[str, float]:
    """Figures of one job; ``straggler``: how much longer than the others one rank takes for everything.

    Returns:
        flop (all ranks), held_bytes and read_bytes and sent_bytes (a rank), seconds.
    """
    size = work.num_ranks
    entries = work.shard * work.columns_a_row / size  # of a step
    # each batch of rows reads all its columns, in bfloat16
    batch = _EXACT_BATCH if work.columns_a_row == work.num_samples else _NEAR_BATCH
    read = -(-work.shard // batch) * work.columns_a_row * 2 * _DIM
    compute = max(entries * 2 * _DIM / gpu.flops, entries / gpu.exponentials, read / size / gpu.memory_bandwidth)
    shard_bytes = work.shard * 2.0 * _DIM  # as bfloat16
    # float32 rows of one's own, bfloat16 copies of three shards (own, visiting, arriving), 100 bytes of partials a row
    held = work.shard * (4 * _DIM + 100) + (3 if size > 1 else 1) * shard_bytes
    if held > gpu.memory_bytes:
        # own rows stay in main memory and pass through: every step reads them once
        compute = max(compute, work.shard * 4 * _DIM / gpu.host_bytes)
    steps = [[compute * (straggler if rank == 0 else 1.0)] * size for rank in range(size)]
    # one rank of a node sends to the next node
    link = [
        shard_bytes / (gpu.network_bytes if size > _GPUS_A_NODE and rank % _GPUS_A_NODE == 0 else gpu.nvlink_bytes)
        for rank in range(size)
    ]
    outcome = simulate(steps, link, shard_bytes)
    return {
        "flop": work.flop,
        "held_bytes": held,
        "read_bytes": read,
        "sent_bytes": outcome.sent_bytes,
        "seconds": outcome.seconds,
    }


def columns_a_row(num_samples: int) -> float:
    """What an approximate row is scored against: centres, near blocks, a panel of middle ones, far draws.

    Twice the CPU's default effort, because the nearest blocks hold less of the weight among more of them.
    """
    blocks = num_samples / 480
    return min(blocks, 16_384) + 2 * 1.5 * 8 * 480 + 2 * 16 * 48 + 4 * 512


def table(gpu: Gpu | None = None) -> str:
    """The table of docs/scale.md."""
    gpu = gpu or Gpu()
    lines = [
        "| N | mode | GPUs | FLOP | held a GPU | read a GPU | sent a rank | wall | one rank 20 % slower |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for num_samples in (10**7, 10**8, 10**9):
        for mode, columns in (("exact", float(num_samples)), ("approximate", columns_a_row(num_samples))):
            for num_ranks in (1, 8, 64):
                work = Work(num_samples, num_ranks, columns)
                even, slow = cost(work, gpu), cost(work, gpu, straggler=1.2)
                held = f"{even['held_bytes'] / 1e9:.3g} GB"
                host = " (streamed)" if even["held_bytes"] > gpu.memory_bytes else ""
                lines.append(
                    f"| {num_samples // 10**6:,} M | {mode} | {num_ranks} | {even['flop']:.1e} | {held}{host} | "
                    f"{even['read_bytes'] / 1e9:.3g} GB | "
                    f"{even['sent_bytes'] / 1e9:.3g} GB | {clock(even['seconds'])} | {clock(slow['seconds'])} |"
                )
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Two digits and a unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds)} s"


def _two_digits(value: float) -> str:
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


if __name__ == "__main__":
    print(table())
