"""The process group: which rank this is, and the few collectives that are used."""

import datetime
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from andscale.errors import AndscaleError, RunError, UsageError
from andscale.store.files import num_usable_cores

if TYPE_CHECKING:
    import numpy as np
    import torch

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "imed out", "imeout")
"""What gloo, NCCL and their store say when another rank is gone, or does not answer."""
_POLLED_S = 0.02
"""How long a collective on the CPU is asked for before its thread sleeps: several times a training step's longest."""
_LONG = datetime.timedelta(days=365)
"""How long ranks wait where one of them works alone: longer than any job."""


@dataclass(frozen=True)
class World:
    """This process among all processes of a job; it gives up a rank that does not answer for ``hang_timeout_min``."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    hang_timeout_min: float = 10.0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and publishes."""
        return self.rank == 0


def world_from_environment() -> World:
    """The world that torchrun or the orchestrator describes in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and
    the orchestrator in HANG_TIMEOUT_MIN.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return World(
        rank=int(os.environ.get("RANK", "0")),
        world_size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        hang_timeout_min=float(os.environ.get("HANG_TIMEOUT_MIN", "10")),
    )


def cores_of_rank(world: World) -> int:
    """Cores that a rank has to itself: as many as Slurm gave it, or its share of those that its process may use.

    Slurm's number is a rank's where each rank is a task of a job that we submitted. Within ``srun --pty bash`` it is
    that of the shell, whose ranks, started by us or by torchrun, share it.
    """
    usable = num_usable_cores()
    if "SLURM_CPUS_PER_TASK" in os.environ and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        return min(int(os.environ["SLURM_CPUS_PER_TASK"]), usable)
    return max(1, usable // world.local_world_size)


@contextmanager
def process_group(world: World) -> "Iterator[torch.device]":
    """Join the job's process group for the time of the block; a world of one needs none.

    Yields:
        The device of this rank: its GPU with NCCL, or the CPU with gloo and this rank's share of the cores.

    Raises:
        PeerLostError: another rank is gone, or did not answer in time.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", _gpu_of_rank(world)) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(cores_of_rank(world))
    if world.world_size == 1:
        yield device
        return
    # both backends: tensors of a GPU go through NCCL, hashes and other small records through gloo
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(minutes=world.hang_timeout_min)
    leaves_alone = True
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=timeout)
        yield device
        leaves_alone = False
    except RuntimeError as error:
        if isinstance(error, AndscaleError) or not any(words in str(error) for words in _LOST):
            raise
        reason = next(line for line in str(error).splitlines() if any(words in line for words in _LOST))
        raise PeerLostError(f"rank {world.rank} lost another rank: {reason}") from error
    finally:
        # NCCL's waits for what was queued: for ranks that do not know yet that this one failed. The process ends with
        # its error now, which closes the group, and the others hear of it through gloo
        if dist.is_initialized() and not (leaves_alone and device.type == "cuda"):
            dist.destroy_process_group()


def _gpu_of_rank(world: World) -> int:
    """The rank's place among the GPUs that it sees: all of the node's, or the one to which Slurm bound it."""
    import torch

    num_seen = torch.cuda.device_count()
    if num_seen == 1 and int(os.environ.get("SLURM_GPUS_ON_NODE") or 1) >= world.local_world_size:
        return 0
    if world.local_world_size > num_seen:
        raise UsageError(
            f"{world.local_world_size} ranks on a node of {num_seen} GPUs: set resources.tasks_per_node and "
            "gpus_per_node to the number of GPUs, or gpus_per_node = 0 to train on the CPU"
        )
    return world.local_rank


def missing_gpus(asked: int | None) -> str | None:
    """Why torch sees no GPU where there should be one; None where it sees some, or none is wanted.

    Args:
        asked: GPUs a node that this job was launched with: 0: it is to run on the CPU; None: whatever there is, and
            Slurm says in the job's environment what it gave.
    """
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0") or bool(os.environ.get("SLURM_JOB_GPUS"))
    if asked == 0 or not (asked or given):
        return None
    import torch

    if torch.cuda.is_available():
        return None
    whose = "Slurm gave this job some" if given else f"this launch asks for {asked} a node"
    built_for = torch.version.cuda
    why = f"is built for CUDA {built_for}, and the driver may be too old for that" if built_for else "is for CPUs alone"
    return f"torch sees no GPU, though {whose}: torch {torch.__version__} {why}"


class PeerLostError(RunError):
    """Another rank is gone, or does not answer: its own log says why, if anything does."""


def is_distributed() -> bool:
    """Whether a process group is up."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def wait_for_work(work: Any, device: "torch.device") -> None:
    """Wait for a collective that was started, on the CPU by asking again and again for a while.

    A thread that sleeps until gloo wakes it waits for the scheduler besides: 2 to 3 ms on busy cores (docs/log.md), as
    much as a tenth of a small network's step. Between two questions the core is left to whoever wants it.

    Args:
        work: what the collective returned; its ``wait`` raises when another rank is gone.
        device: of its tensors; on a GPU the stream waits, not the host.
    """
    if device.type == "cpu":
        deadline = time.monotonic() + _POLLED_S
        while not work.is_completed() and time.monotonic() < deadline:
            os.sched_yield()
    work.wait()


def all_gather_rows(rows: "torch.Tensor", counts: list[int]) -> "torch.Tensor":
    """Concatenate the rows of all ranks in rank order.

    Args:
        rows: (counts[rank], ...) this rank's rows.
        counts: rows of every rank; known on all of them, so no sizes travel.

    Returns:
        (sum(counts), ...) on every rank, same dtype and device.
    """
    import torch
    import torch.distributed as dist

    if not is_distributed():
        return rows
    # gloo gathers equal sizes only: pad to the longest, cut after
    longest = max(counts)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    wait_for_work(dist.all_gather(parts, padded, async_op=True), padded.device)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_max(values: "torch.Tensor") -> "torch.Tensor":
    """Element-wise maximum over the ranks, in place."""
    import torch.distributed as dist

    if is_distributed():
        wait_for_work(dist.all_reduce(values, op=dist.ReduceOp.MAX, async_op=True), values.device)
    return values


def start_all_reduce_max(values: "torch.Tensor") -> "Callable[[], None]":
    """Start the element-wise maximum over the ranks, in place; what it returns waits for its end."""
    import torch.distributed as dist

    if not is_distributed():
        return lambda: None
    work = dist.all_reduce(values, op=dist.ReduceOp.MAX, async_op=True)
    return lambda: wait_for_work(work, values.device)


def all_reduce_sum(values: "torch.Tensor") -> "torch.Tensor":
    """Sum over the ranks, in place."""
    import torch.distributed as dist

    if is_distributed():
        wait_for_work(dist.all_reduce(values, async_op=True), values.device)
    return values


def gather_records(value: Any) -> list[Any]:
    """Every rank's JSON value, in rank order, on every rank. JSON, not pickle (promise 6)."""
    import torch
    import torch.distributed as dist

    if not is_distributed():
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    counts = [int(size) for size in sizes]
    joined = torch.split(all_gather_rows(data, counts), counts)
    return [json.loads(bytes(part.tolist())) for part in joined]


def exchange(send: "list[np.ndarray]", to_rank: int, receive: "list[np.ndarray]", from_rank: int) -> None:
    """Send arrays to one rank while receiving into others of known shape and dtype, all on the CPU.

    Args:
        send: C-contiguous arrays.
        to_rank: who gets them; may be this rank.
        receive: C-contiguous arrays that are overwritten.
        from_rank: who sends them.
    """
    import torch
    import torch.distributed as dist

    operations = [dist.P2POp(dist.isend, torch.from_numpy(array), to_rank) for array in send if array.size]
    operations += [dist.P2POp(dist.irecv, torch.from_numpy(array), from_rank) for array in receive if array.size]
    for request in dist.batch_isend_irecv(operations) if operations else []:
        request.wait()


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    if is_distributed():
        dist.barrier()


@contextmanager
def others_wait() -> Iterator[None]:
    """For a block that all ranks enter and rank 0 works in alone, perhaps for longer than ``hang_timeout_min``, as when
    it builds a large index: the others wait at the block's end for as long as that lasts.

    When rank 0 dies they hear of it at once; one that hangs there is ended by the job's time limit alone.
    """
    import torch.distributed as dist

    if not is_distributed():
        yield
        return
    # made before the work: all ranks meet for it within the usual time
    group = dist.new_group(backend="gloo", timeout=_LONG)
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    yield
    dist.barrier(group)
    dist.destroy_process_group(group)
