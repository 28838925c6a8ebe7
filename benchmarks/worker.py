"""One peer in a process of its own: ``python -m benchmarks.worker PEER FEATURES.npy``.

Reads one JSON request a line and answers each with one line. A process a peer keeps the thread pools of one library
out of the way of another, and gives each its own peak memory. The environment says how many threads (OMP_NUM_THREADS)
and, for a rank of several, which one (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.peers import Answer, all_peers, num_threads

_WARM_UP_ROWS = 2000
RANKED = "ranks"
"""The peer that is ours as one rank of several."""


@dataclass(frozen=True)
class Call:
    """One call of a peer.

    Attributes:
        num_rows: N, the first so many of the features.
        k: neighbours.
        tau: temperature.
        rows: sample ids whose answer is sent back.
    """

    num_rows: int
    k: int
    tau: float
    rows: tuple[int, ...] = ()

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Warm up, say so, answer calls until standard input ends; an exception is an answer and the end."""
    peer, path = sys.argv[1:]
    with _replies() as replies:
        try:
            for reply in _serve(peer, np.load(path, mmap_mode="r")):
                print(json.dumps(reply), file=replies, flush=True)
        except Exception as error:
            print(json.dumps({"problem": f"{type(error).__name__}: {error}"}), file=replies, flush=True)


def _serve(peer: str, features: np.ndarray) -> Iterator[dict[str, Any]]:
    with _function(peer, len(features)) as function:
        warm_up = np.array(features[:_WARM_UP_ROWS])
        started = time.perf_counter()
        function(warm_up, 1, 0.1)
        yield {"warm_up_s": time.perf_counter() - started}
        for line in sys.stdin:
            call = Call(**json.loads(line))
            yield _measure(function, np.array(features[: call.num_rows]), call)


@contextmanager
def _function(peer: str, num_rows: int) -> Iterator[Callable[[np.ndarray, int, float], Answer]]:
    if peer != RANKED:
        yield all_peers()[peer].function
        return
    import torch

    from andscale.distributed import barrier, process_group, world_from_environment
    from andscale.indexing.exact import Request, discover
    from andscale.indexing.ring import Ring

    world = world_from_environment()
    with process_group(world):
        torch.set_num_threads(num_threads())

        def discover_share(features: np.ndarray, k: int, tau: float) -> Answer:
            ring = Ring(len(features), world)
            rows = ring.rows(world.rank)
            share = np.ascontiguousarray(features[rows.start : rows.stop])
            barrier()
            found = discover(share, Request(k, tau, num_threads=num_threads()), ring)
            barrier()
            return found.neighbour_ids, found.entropies

        yield discover_share


def _measure(function: Callable[[np.ndarray, int, float], Answer], features: np.ndarray, call: Call) -> dict[str, Any]:
    base = reset_peak()
    started = time.perf_counter()
    ids, entropies = function(features, call.k, call.tau)
    seconds = time.perf_counter() - started
    peak = status_bytes("VmHWM")
    rows = list(call.rows)
    return {
        "seconds": seconds,
        "peak_bytes": None if base is None or peak is None else peak - base,
        "ids": None if ids is None else ids[rows].tolist(),
        "entropies": None if entropies is None else entropies[rows].tolist(),
    }


def reset_peak() -> int | None:
    """What lies in memory now; its peak starts from here. None where the kernel does not say or cannot forget."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int | None:
    """A size from this process's status, such as VmHWM, its peak; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(name + ":")]
    return kilobytes[0] * 1024 if kilobytes else None


@contextmanager
def _replies() -> Iterator[TextIO]:
    """Standard output for replies alone: what a library prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with replies:
        yield replies


if __name__ == "__main__":
    main()
