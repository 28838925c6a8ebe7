"""``python -m benchmarks.objective``: loss, gradient and memory update of one step beside dense autograd and others."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from andscale.distributed import World
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import ObjectiveOptions, batch_objective
from benchmarks.table import NOT_KNOWN, markdown, number
from benchmarks.worker import reset_peak, status_bytes

DIM, TAU = 128, 0.1
_OURS, _DENSE = "andscale, with the memory update", "dense autograd: logits, softmax, log"
_PLAIN_TILE = 8192
_ROOT = Path(__file__).resolve().parents[1]
_WARM_UP_ROWS = 5000


@dataclass(frozen=True)
class Size:
    """A step's size, and what is wanted of it.

    Attributes:
        batch: B.
        num_rows: N.
        most_of_dense: largest wanted ratio of our time to dense autograd's; None: ours alone is measured.
    """

    batch: int
    num_rows: int
    most_of_dense: float | None


SIZES = (Size(128, 60_000, 0.6), Size(256, 200_000, 0.3), Size(256, 1_281_167, None))
QUICK_SIZES = (Size(8, 3000, 0.6), Size(8, 4000, None))
MOST_OF_DENSE_MEMORY = 0.1
MOST_BYTES = 256 * 1024**2


class Step:
    """A batch and a memory, and the ways to get at loss and gradient: every method returns the gradient (B, D)."""

    def __init__(self, batch: int, num_rows: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(num_rows, DIM, generator=generator)
        values /= torch.linalg.vector_norm(values, dim=1, keepdim=True)
        self.memory = MemoryBank(World(), num_rows, values.to(device))
        self.ids = torch.randperm(num_rows, generator=generator)[:batch].to(device)
        noise = 0.1 * torch.randn(batch, DIM, generator=generator).to(device)
        self.features = functional.normalize(self.memory.values[self.ids] + noise, dim=1)

    def ours(self, score_dtype: torch.dtype = torch.float32) -> Tensor:
        """The objective and the memory update."""
        features = self.features.clone().requires_grad_()
        options = ObjectiveOptions(score_dtype=score_dtype)
        result = batch_objective(
            features, self.ids, self.ids[:, None], self.memory, TAU, [len(features)], options=options
        )
        result.loss.backward()  # type: ignore[no-untyped-call]
        self.memory.update(result.sample_ids, result.features, 0.5)
        assert features.grad is not None
        return features.grad

    def dense(self) -> Tensor:
        """As an implementation by the book does it."""
        features = self.features.clone().requires_grad_()
        p = torch.softmax(features @ self.memory.values.T / TAU, dim=1)
        (-p.gather(1, self.ids[:, None]).log().mean()).backward()
        assert features.grad is not None
        return features.grad

    def plain_tiles(self) -> Tensor:
        """Online softmax over tiles, one torch operation after the other."""
        features, own = self.features, self.memory.values[self.ids]
        highest = features.new_full((len(features), 1), -torch.inf)
        total, weighted = torch.zeros_like(highest), torch.zeros_like(features)
        for tile in torch.split(self.memory.values, _PLAIN_TILE):
            scores = features @ tile.T / TAU
            raised = torch.maximum(highest, scores.amax(dim=1, keepdim=True))
            scale, weights = torch.exp(highest - raised), torch.exp(scores - raised)
            total, weighted = total * scale + weights.sum(dim=1, keepdim=True), weighted * scale + weights @ tile
            highest = raised
        return (weighted / total - own) / TAU / len(features)

    def flash(self) -> Tensor:
        """Torch's attention over the memory; on the CPU its flash kernel, with the log-sum-exp."""
        queries, rows = self.features[None, None], self.memory.values[None, None]
        if self.features.is_cuda:
            halves = queries.bfloat16(), rows.bfloat16()
            attended = functional.scaled_dot_product_attention(halves[0], halves[1], halves[1], scale=1 / TAU).float()
        else:
            attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, rows, rows, scale=1 / TAU)
        return (attended[0, 0] - self.memory.values[self.ids]) / TAU / len(self.features)

    def products(self) -> Tensor:
        """The two matrix products and nothing else."""
        return (self.features @ self.memory.values.T) @ self.memory.values

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """All of them by title."""
        ways = {
            _OURS: self.ours,
            _DENSE: self.dense,
            f"plain torch, tiles of {_PLAIN_TILE:,}": self.plain_tiles,
            "torch's attention, one call": self.flash,
            "two bare GEMMs": self.products,
        }
        if self.features.is_cuda:
            ways["andscale, bfloat16 scores"] = lambda: self.ours(torch.bfloat16)
        return ways


def time_ways(ways: dict[str, Callable[[], Tensor]], turns: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, in turn; a first round that is not counted."""
    seconds: dict[str, list[float]] = {title: [] for title in ways}
    for turn in range(turns + 1):
        for title, way in ways.items():
            synchronize(device)
            started = time.perf_counter()
            way()
            synchronize(device)
            if turn:
                seconds[title].append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(title: str, size: Size) -> int | None:
    """Memory that one call takes on the CPU above the memory bank, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.objective", "--peak", title, str(size.batch), str(size.num_rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT)
    return int(done.stdout) if done.stdout.strip() else None


def measure_peak(title: str, batch: int, num_rows: int) -> int | None:
    """The same, in this process."""
    device = torch.device("cpu")
    Step(batch, _WARM_UP_ROWS, device).ways()[title]()  # threads and buffers of the libraries
    way = Step(batch, num_rows, device).ways()[title]
    base = reset_peak()
    way()
    peak = status_bytes("VmHWM")
    return None if base is None or peak is None else peak - base


def report_size(size: Size, turns: int) -> list[str]:
    """The tables of one size on the CPU."""
    device = torch.device("cpu")
    step = Step(size.batch, size.num_rows, device)
    ways = step.ways() if size.most_of_dense is not None else {_OURS: step.ours}
    seconds = time_ways(ways, turns, device)
    peaks = {title: peak_bytes(title, size) for title in ways if title in (_OURS, _DENSE)}
    rows = [
        [
            title,
            number(1e3 * statistics.median(seconds[title]), 1),
            number(ratio(seconds[title], seconds[_DENSE]) if _DENSE in ways else None, 2),
            mebibytes(peaks.get(title)),
        ]
        for title in ways
    ]
    lines = [f"B = {size.batch}, N = {size.num_rows:,}", ""]
    lines += [markdown(["", "ms", "of dense", "extra memory (MiB)"], rows), ""]
    lines += [markdown(["", "at most", "measured", "verdict"], verdicts(size, seconds, peaks)), ""]
    return lines


def verdicts(size: Size, seconds: dict[str, list[float]], peaks: dict[str, int | None]) -> list[list[str]]:
    """What is wanted of a size and what was measured."""
    ours, dense = peaks[_OURS], peaks.get(_DENSE)
    if size.most_of_dense is None:
        share = None if ours is None else ours / 1024**2
        return [verdict("extra memory (MiB)", MOST_BYTES / 1024**2, share)]
    time_share = ratio(seconds[_OURS], seconds[_DENSE])
    share = None if ours is None or not dense else ours / dense
    return [
        verdict("time of dense autograd's", size.most_of_dense, time_share),
        verdict("extra memory of dense autograd's", MOST_OF_DENSE_MEMORY, share),
    ]


def verdict(title: str, limit: float, value: float | None) -> list[str]:
    """A row: title, limit, value, whether it is kept."""
    kept = "not measured" if value is None else "reached" if value <= limit else "missed"
    return [title, f"{limit:g}", number(value, 3), kept]


def device_report(device: torch.device, batch: int, num_rows: int, most_ms: float, turns: int = 20) -> str:
    """The table of one size on a device, and whether a step takes at most so many milliseconds."""
    seconds = time_ways(Step(batch, num_rows, device).ways(), turns, device)
    rows = [[title, number(1e3 * statistics.median(values), 2)] for title, values in seconds.items()]
    found = [verdict("ms, float32", most_ms, 1e3 * statistics.median(seconds[_OURS]))]
    return "\n".join([markdown(["", "ms"], rows), "", markdown(["", "at most", "measured", "verdict"], found)])


def ratio(a: list[float], b: list[float]) -> float:
    """Median of the ratios of one round each: drift cancels."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def mebibytes(size: int | None) -> str:
    """A size in MiB."""
    return NOT_KNOWN if size is None else number(size / 1024**2, 1)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objective", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a run of seconds; its figures mean nothing")
    parser.add_argument("--turns", type=int, default=7, help="runs of each way (7)")
    parser.add_argument("--peak", nargs=3, metavar=("WAY", "B", "N"), help="print the bytes that one call takes")
    options = parser.parse_args(arguments)
    if options.peak:
        title, batch, num_rows = options.peak
        peak = measure_peak(title, int(batch), int(num_rows))
        print("" if peak is None else peak)
        return
    print(f"D = {DIM}, tau = {TAU}, one member, {torch.get_num_threads()} threads; medians, of {options.turns} runs\n")
    for size in QUICK_SIZES if options.quick else SIZES:
        turns = options.turns if size.most_of_dense is not None else min(3, options.turns)
        print("\n".join(report_size(size, 1 if options.quick else turns)))


if __name__ == "__main__":
    main()
