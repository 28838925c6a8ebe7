"""The neighbourhood service under load: requests a second and latencies, server and clients on the same cores.

python -m benchmarks.service [NUM_SAMPLES SECONDS]     1,000,000 and 20 by default; 300 seconds were asked for once
"""

import asyncio
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.subject import Subject
from andscale.indexing.faiss_index import INDEX_NAME, read_mapped, save
from andscale.indexing.index_building import build_index
from andscale.indexing.index_vectors import prepare_vectors
from andscale.service.api import Service, build_api
from andscale.service.embedding import Embedder
from andscale.service.guard import Figures, Guard, Limits
from andscale.service.rounds import Rounds
from andscale.service.searching import BatchedSearch
from andscale.service.snapshot import Snapshot
from andscale.store.artifacts import Manifest, Provenance
from andscale.store.neighbourhoods import NeighbourhoodTable
from benchmarks.data import clustered_unit_vectors

DIM, NUM_NEIGHBOURS, CONNECTIONS = 128, 10, 16
TARGETS = {"/v1/neighbours/{id}": 1000, "/v1/search": 300}
MOST_P99_MS = 50
NUM_SWAPS = 2


@dataclass(frozen=True)
class Load:
    """What came of one row: seconds of each request, and how many were no 200 or named another round than a swap's."""

    route: str
    seconds: np.ndarray
    num_errors: int
    took_s: float


def main() -> None:
    """Print one line a route."""
    num_samples, seconds = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (1_000_000, 20)
    folder = Path(tempfile.gettempdir()) / f"andscale-bench-service-{num_samples}"
    vectors = prepare(folder, num_samples)
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=serve, args=(folder, num_samples, theirs, seconds), daemon=True)
    server.start()
    port = mine.recv()
    print(f"{num_samples:,} x {DIM}, ivf_flat, {CONNECTIONS} connections, {seconds} s a row, {NUM_SWAPS} swaps a row")
    print("| route | requests/s | p50 ms | p99 ms | errors | target |\n|---|---|---|---|---|---|")
    for route in TARGETS:
        mine.send("swap")
        print(describe(asyncio.run(run_load(port, route, vectors, seconds))), flush=True)
    mine.send(None)
    server.terminate()


def describe(load: Load) -> str:
    """A table's line."""
    rate = len(load.seconds) / load.took_s
    p50, p99 = np.quantile(load.seconds, (0.5, 0.99)) * 1000
    wanted = TARGETS[load.route]
    is_met = rate >= wanted and p99 <= MOST_P99_MS and not load.num_errors
    verdict = f"{wanted:,}/s at p99 <= {MOST_P99_MS} ms: {'met' if is_met else 'MISSED'}"
    return f"| {load.route} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {load.num_errors} | {verdict} |"


def prepare(folder: Path, num_samples: int) -> np.ndarray:
    """Build the index once, which takes minutes at a million; returns 1,000 vectors to ask for."""
    features = clustered_unit_vectors(num_samples, DIM)
    path = folder / INDEX_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        print(f"building the index in {folder}", file=sys.stderr)
        save(build_index(features, "ivf_flat", seed=0), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
        print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr)
    chosen: np.ndarray = features[np.random.default_rng(1).integers(0, num_samples, 1000)]
    return chosen


def serve(folder: Path, num_samples: int, pipe: Any, seconds: int) -> None:
    """The server's process: the service as it is, over made-up tables of two rounds that take turns."""
    import uvicorn

    snapshots = [_snapshot(folder, num_samples, number) for number in (1, 2)]
    rounds = Rounds(folder, snapshots[0], follows=False)
    limits, figures = Limits(), Figures()
    service = Service(rounds, BatchedSearch(limits.queries), Embedder(limits.image_pixels), limits, figures)
    server = uvicorn.Server(uvicorn.Config(Guard(build_api(service), limits, figures, None), port=0, log_level="error"))

    def swap_when_told() -> None:
        while not server.started:
            time.sleep(0.05)
        pipe.send(server.servers[0].sockets[0].getsockname()[1])
        while pipe.recv() is not None:
            for _ in range(NUM_SWAPS):
                time.sleep(seconds / (NUM_SWAPS + 1))
                rounds.current = next(s for s in snapshots if s is not rounds.current)

    threading.Thread(target=swap_when_told, daemon=True).start()
    server.run()


def _snapshot(folder: Path, num_samples: int, number: int) -> Snapshot:
    rng = np.random.default_rng(number)
    ids = (np.arange(num_samples)[:, None] + rng.integers(1, num_samples // 10, (num_samples, NUM_NEIGHBOURS))).astype(
        np.int64
    ) % num_samples
    similarities = -np.sort(-rng.random((num_samples, NUM_NEIGHBOURS), np.float32), axis=1)
    is_anchor = rng.random(num_samples) < 0.5
    table = NeighbourhoodTable(ids, similarities, rng.random(num_samples, np.float32), is_anchor)
    manifest = Manifest("neighbourhoods", (), Provenance("c"), {}, 0.0, "", None, "")
    labels = rng.integers(0, 1000, num_samples).astype(np.int32)
    subject = Subject(folder, number, table, manifest, None, None, labels, ())
    index = read_mapped(folder / INDEX_NAME)
    prepare_vectors(index)
    snapshot = Snapshot(subject, index, None)
    _ = snapshot.stats
    return snapshot


async def run_load(port: int, route: str, vectors: np.ndarray, seconds: float) -> Load:
    """Closed loops on kept connections for so long."""
    started = time.perf_counter()
    parts = await asyncio.gather(*(_ask(port, route, vectors, seconds, seed) for seed in range(CONNECTIONS)))
    took_s = time.perf_counter() - started
    return Load(route, np.concatenate([p[0] for p in parts]), sum(p[1] for p in parts), took_s)


async def _ask(port: int, route: str, vectors: np.ndarray, seconds: float, seed: int) -> tuple[np.ndarray, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    rng, ends, times, errors = np.random.default_rng(seed), time.perf_counter() + seconds, [], 0
    while time.perf_counter() < ends:
        if route == "/v1/search":
            body = vectors[rng.integers(len(vectors))].tobytes()
            head = f"POST {route}?k=10 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        else:
            request = f"GET {route.replace('{id}', str(rng.integers(1000)))} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        asked = time.perf_counter()
        writer.write(request)
        head_bytes = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head_bytes.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        answer = await reader.readexactly(length)
        times.append(time.perf_counter() - asked)
        errors += not head_bytes.startswith(b"HTTP/1.1 200") or json.loads(answer)["round"] not in (1, 2)
    writer.close()
    return np.array(times), errors


if __name__ == "__main__":
    main()
