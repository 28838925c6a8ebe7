"""``python -m benchmarks.gpu``: ours beside its peers on a GPU, and what the parts of a rebuild job take there."""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from andscale.indexing.exact import Discovery, Request, discover
from benchmarks import objective, table
from benchmarks.bench import DIM, TAU, Settings, sampled_truth, say
from benchmarks.data import clustered_unit_vectors
from benchmarks.device_peers import bare_gemm, original_algorithm, torch_topk
from benchmarks.gpu_step import NUM_IMAGES, step_table
from benchmarks.peers import without_self
from benchmarks.rebuild_parts import measure_parts
from benchmarks.table import NOT_KNOWN, markdown, number
from benchmarks.truth import Truth

SIZES = (60_000, 1_281_167)
_BLOCK_BYTES = 1 << 30
_TILE = 8192
_LONG_S = 20.0
_BATCH = 256
_MOST_STEP_MS = 1.5
"""Of an H100."""

Answer = tuple[Any, Any]


@dataclass(frozen=True)
class Peer:
    """Something to measure on a device.

    Attributes:
        title: of its row.
        gives: what it computes.
        call: () -> (ids, entropies), either None.
    """

    title: str
    gives: str
    call: Callable[[], Answer]


def main(arguments: list[str] | None = None) -> int:
    """Measure every size and print tables; 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: bench-gpu needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    print(f"{datetime.date.today()}; {torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    record = {}
    for size in SIZES:
        features = clustered_unit_vectors(size, DIM)
        rows = compare(features, device)
        print(f"\nN = {size:,}, D = {DIM}, k = 1, tau = {TAU}, float32 products unless a row says otherwise\n")
        print(comparison_table(rows))
        with tempfile.TemporaryDirectory(prefix="andscale-bench-") as folder:
            parts = measure_parts(features, Path(folder), TAU)
        print(f"\nThe parts of a rebuild job, N = {size:,}\n")
        print(markdown(["part", "seconds"], [[name, table.seconds(seconds)] for name, seconds in parts.items()]))
        record[size] = {"comparison": rows, "rebuild_s": parts}
    print(f"\nLoss, gradient and memory update of a step, B = {_BATCH}, N = {SIZES[-1]:,}\n")
    print(objective.device_report(device, _BATCH, SIZES[-1], _MOST_STEP_MS))
    print(f"\nThe training job beside the bare network, {NUM_IMAGES:,} images held in memory\n")
    with tempfile.TemporaryDirectory(prefix="andscale-bench-") as folder:
        print(step_table(Path(folder), device))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def compare(features: np.ndarray, device: torch.device, repeats: int = 3) -> list[dict[str, Any]]:
    """Every peer in turn; one call only of those that take longer than 20 s.

    Args:
        features: (N, D) float32.
        device: the card; peers but ours find the features there already.
        repeats: rounds, after a first call that is not counted.

    Returns:
        A record a peer: title, gives, seconds, recall, entropy_error, peak_bytes of what torch allocated, problem.
    """
    truth = sampled_truth(features, Settings(judged_rows=500))
    peers = make_peers(features, device)
    records: list[dict[str, Any]] = []
    for peer in peers:
        say(f"N = {len(features):,}: {peer.title}")
        records.append(_first_call(peer, truth, device))
    for _ in range(repeats):
        for peer, record in zip(peers, records, strict=True):
            if not record["problem"] and record["first_s"] < _LONG_S:
                record["seconds"].append(timed(peer.call, device)[0])
    for record in records:
        if not record["seconds"] and not record["problem"]:
            record["seconds"].append(record["first_s"])
    return records


def make_peers(features: np.ndarray, device: torch.device) -> list[Peer]:
    """Ours, the original algorithm, torch, FAISS and the bare GEMM on a device."""
    on_device = torch.from_numpy(features).to(device)

    def ours() -> Answer:
        found: Discovery = discover(features, Request(1, TAU))
        # a discovery that stayed on the CPU must not pass for one on the card
        say(f"andscale used: {found.engine}")
        return found.neighbour_ids, found.entropies

    def faiss_flat() -> Answer:
        import faiss

        if not hasattr(faiss, "GpuIndexFlatIP"):
            raise ImportError("this build of FAISS has no GPU part")
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), features.shape[1])
        index.add(features)
        return without_self(index.search(features, 2)[1], 1), None

    def gemm() -> Answer:
        bare_gemm(on_device, _TILE)
        return None, None

    both = "neighbours, H"
    return [
        Peer("andscale discover, features and answer on the host", both, ours),
        Peer("original algorithm", both, lambda: original_algorithm(on_device, 1, TAU)),
        Peer("torch matmul + topk", "neighbours", lambda: (torch_topk(on_device, 1, _BLOCK_BYTES), None)),
        Peer("FAISS GpuIndexFlatIP, answer on the host", "neighbours", faiss_flat),
        Peer("bare GEMM, float32", "nothing", gemm),
    ]


def timed(call: Callable[[], Answer], device: torch.device) -> tuple[float, Answer]:
    """Seconds of a call until the device is idle again, and its answer."""
    _synchronize(device)
    started = time.perf_counter()
    answer = call()
    _synchronize(device)
    return time.perf_counter() - started, answer


def comparison_table(records: list[dict[str, Any]]) -> str:
    """One row a peer, with its time over ours."""
    medians = [statistics.median(record["seconds"]) if record["seconds"] else None for record in records]
    ours, rows = medians[0], []
    for record, seconds in zip(records, medians, strict=True):
        peak, error = record["peak_bytes"], record["entropy_error"]
        rows.append([
            record["title"], record["problem"] or record["gives"], number(record["recall"], 4),
            NOT_KNOWN if error is None else f"{error:.1e}", table.seconds(seconds), str(len(record["seconds"])),
            NOT_KNOWN if peak is None else f"{peak / 1024**2:,.0f}",
            number(seconds / ours if seconds and ours else None, 2),
        ])  # fmt: skip
    header = ["", "gives", "recall@1", "error of H (nats)", "seconds", "runs", "torch's peak (MiB)", "x andscale"]
    return markdown(header, rows)


def _first_call(peer: Peer, truth: Truth, device: torch.device) -> dict[str, Any]:
    """Compile and warm up, judge the answer, note the memory."""
    record: dict[str, Any] = {
        "title": peer.title, "gives": peer.gives, "seconds": [], "first_s": 0.0, "problem": "",
        "recall": None, "entropy_error": None, "peak_bytes": None,
    }  # fmt: skip
    on_card = device.type == "cuda"
    base = torch.cuda.memory_allocated(device) if on_card else 0
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        record["first_s"], (ids, entropies) = timed(peer.call, device)
    except (ImportError, RuntimeError) as error:
        record["problem"] = f"{type(error).__name__}: {error}".splitlines()[0]
        return record
    if ids is not None:
        record["recall"] = truth.recall(_array(ids)[truth.rows], 1)
    if entropies is not None:
        record["entropy_error"] = truth.entropy_error(_array(entropies)[truth.rows])
    if on_card and "FAISS" not in peer.title:
        record["peak_bytes"] = torch.cuda.max_memory_allocated(device) - base
    return record


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
