"""``python -m benchmarks.service``: requests a second and latencies of the service, with two swaps of rounds.

The server is a process of its own and shares the machine's cores with the load.
"""

import argparse
import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from andscale.store.run_layout import RunLayout
from benchmarks.bench import DIM, machine, say
from benchmarks.data import clustered_unit_vectors
from benchmarks.load import Load, put_load
from benchmarks.service_run import NUM_NEIGHBOURS, bring, make_run

_ROOT = Path(__file__).resolve().parents[1]
_SWAPS = 2
_HEADER = "| what | asked/s | answered/s | p50 ms | p99 ms | max ms | CPU ms each | answers | errors | rounds seen |"


@dataclass(frozen=True)
class Row:
    """One load: which requests, how many a second (None: as many as go), over how many connections, with swaps?"""

    what: str
    rate: float | None
    connections: int
    swaps: bool = False


_ROWS = (
    Row("neighbours", None, 16),
    Row("neighbours", 1000, 32, swaps=True),
    Row("search", None, 16),
    Row("search", 300, 32, swaps=True),
)


def main(arguments: list[str] | None = None) -> None:
    """Make or reuse the run, start the server, put the loads on it, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--kind", default="ivf_flat", help="of the index (hnsw of a million takes long to build)")
    parser.add_argument("--seconds", type=float, default=20, help="a row; 300 is what the claim of no errors is about")
    parser.add_argument("--folder", type=Path, help="where the run is kept for the next time")
    options = parser.parse_args(arguments)
    name = f"andscale-service-{options.kind}-{options.samples}"
    folder = options.folder or Path(tempfile.gettempdir()) / name
    layout = make_run(folder, options.samples, options.kind, 1 + _SWAPS * sum(row.swaps for row in _ROWS))
    say(f"a run of {options.samples:,} samples in {folder}; load average {os.getloadavg()[0]:.1f}")
    lines = []
    with subprocess.Popen(
        [sys.executable, "-u", str(_ROOT / "tools" / "serve.py"), "--run", str(layout.root), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            first = server.stdout.readline()
            address = urllib.parse.urlsplit(first.partition(" ")[0])
            for row in _ROWS:
                before = psutil.Process(server.pid).cpu_times()
                load = measure(row, (str(address.hostname), int(address.port or 0)), layout, options)
                after = psutil.Process(server.pid).cpu_times()
                lines.append(describe(row, load, after.user + after.system - before.user - before.system))
                say(lines[-1])
        finally:
            server.send_signal(signal.SIGINT)
    about = (
        f"{options.kind}, {options.samples:,} x {DIM}, K = {NUM_NEIGHBOURS}; {options.seconds:.0f} s a row; {machine()}"
    )
    rule = "|---|" + "---:|" * 8 + "---|"
    print("\n".join([_HEADER, rule, *lines, "", about]))


def measure(row: Row, address: tuple[str, int], layout: RunLayout, options: argparse.Namespace) -> Load:
    """Put one load on the server, from a process of its own."""
    newest = max(layout.round_numbers())
    timers = [
        threading.Timer(options.seconds * (0.1 + 0.4 * i), bring, (layout, newest + 1 + i))
        for i in range(_SWAPS if row.swaps else 0)
    ]
    for timer in timers:
        timer.start()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        load: Load = pool.apply(_load, (row, address, options.samples, options.seconds))
    for timer in timers:
        timer.join()
    return load


def describe(row: Row, load: Load, cpu_s: float) -> str:
    """A row's line of the table; CPU ms are the server's for an answer, which depend least on what else runs."""
    cells = [
        f"{row.what}{f', {_SWAPS} swaps' if row.swaps else ''}",
        f"{row.rate:.0f}" if row.rate else "all",
        f"{load.rate:.0f}",
        *(f"{load.milliseconds(q):.1f}" for q in (0.5, 0.99, 1)),
        f"{cpu_s * 1000 / max(load.statuses[200], 1):.2f}",
        f"{load.statuses.total():,}",
        str(load.num_errors),
        ", ".join(map(str, sorted(load.rounds))),
    ]
    return f"| {' | '.join(cells)} |"


def _load(row: Row, address: tuple[str, int], num_samples: int, seconds: float) -> Load:
    request = {"neighbours": _neighbours, "search": _searches}[row.what](num_samples)
    return asyncio.run(put_load(address, request, seconds, row.connections, row.rate))


def _neighbours(num_samples: int) -> Callable[[int], bytes]:
    ids = np.random.default_rng(1).integers(0, num_samples, 100_000).tolist()
    return lambda n: f"GET /v1/neighbours/{ids[n % len(ids)]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _searches(num_samples: int) -> Callable[[int], bytes]:
    """Vectors near those of the index, one a request."""
    vectors = clustered_unit_vectors(20_000, DIM)
    vectors += 0.02 * np.random.default_rng(2).standard_normal(vectors.shape, np.float32)
    bodies = [row.astype("<f4").tobytes() for row in vectors]
    head = (
        f"POST /v1/search?k=10 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {4 * DIM}\r\n\r\n"
    ).encode()
    return lambda n: head + bodies[n % len(bodies)]


if __name__ == "__main__":
    main()
