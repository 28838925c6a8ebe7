"""Ranks that talk to each other: gloo between two processes, NCCL where there are two GPUs."""

import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from andscale.doctor.children import answers_of
from andscale.doctor.finding import Finding, ok, problem
from andscale.spelling import make_env

_TIMEOUT_S = 40
_NUM_RANKS = 2
_FIX = {
    "gloo": "set GLOO_SOCKET_IFNAME to a network interface that is up (ip -br link); look at firewalls",
    "nccl": "set NCCL_DEBUG=INFO and read what it says; NCCL_SOCKET_IFNAME names the interface",
}


def check_collectives(num_gpus: int) -> Iterator[Finding]:
    """An all-reduce between two processes on this machine."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        yield problem("gloo", "torch has no gloo here", f"install torch from its own packages{make_env(': ')}")
    else:
        yield judge("gloo", _reduce("gloo"))
    if not dist.is_nccl_available():
        if num_gpus:
            yield problem(
                "NCCL", "torch has no NCCL here", f"install torch for CUDA from its own packages{make_env(': ')}"
            )
    elif num_gpus < _NUM_RANKS:
        yield ok("NCCL", f"there, but not run: it takes {_NUM_RANKS} GPUs, {num_gpus} are seen")
    else:
        yield judge("nccl", _reduce("nccl"))


def judge(backend: str, answers: list[dict[str, Any]]) -> Finding:
    """What the ranks said: each the sum over all of rank + 1, and the seconds that the collective took."""
    name = "NCCL" if backend == "nccl" else backend
    expected = _NUM_RANKS * (_NUM_RANKS + 1) / 2
    errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer]
    if errors:
        return problem(name, f"an all-reduce of {_NUM_RANKS} processes fails: {errors[0]}", _FIX[backend])
    sums = [answer["sum"] for answer in answers]
    if any(total != expected for total in sums):
        return problem(name, f"an all-reduce gives {sums}, {expected} is right", _FIX[backend])
    slowest = max(answer["seconds"] for answer in answers)
    return ok(name, f"an all-reduce of {_NUM_RANKS} processes is right and takes {1e3 * slowest:.1f} ms")


def _reduce(backend: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="andscale-doctor-") as folder:
        meeting = str(Path(folder) / "meeting")
        arguments = [[backend, str(rank), meeting] for rank in range(_NUM_RANKS)]
        return answers_of("andscale.doctor.collectives:reduce_child", arguments, _TIMEOUT_S)


def reduce_child(backend: str, rank: str, meeting: str) -> None:
    """One rank of an all-reduce; prints the sum and how long it took."""
    import torch
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=_TIMEOUT_S)
    method = f"file://{meeting}"
    dist.init_process_group(backend, init_method=method, rank=int(rank), world_size=_NUM_RANKS, timeout=timeout)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    values = torch.full((1 << 16,), float(rank) + 1, device=device)
    dist.all_reduce(values.clone())
    started = time.monotonic()
    dist.all_reduce(values)
    total = sorted(set(values.tolist()))
    seconds = time.monotonic() - started
    dist.destroy_process_group()
    print(json.dumps({"sum": total[0] if len(total) == 1 else total, "seconds": seconds}))
