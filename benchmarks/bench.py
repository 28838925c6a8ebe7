"""What ``make bench`` measures: ours beside its peers in turn, then how time grows with N."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.data import clustered_unit_vectors
from benchmarks.measuring import Job, Measurement, Worker, measure, workers_of
from benchmarks.peers import all_peers, num_threads
from benchmarks.truth import Truth, find_truth
from benchmarks.worker import RANKED, Call

TAU = 0.1
DIM = 128
_MANY = 50
_TARGETS = ("ours", "original", "faiss", "gemm", "ours k=50", "1 rank", "2 ranks")
_GROWING = ("ours", "faiss", "torch", "original")


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        num_rows: N of the comparison.
        sizes: every N of the growth.
        rounds: calls of each peer in turn, as far as the time allows; each has at least one.
        targets_s: seconds for the rounds of the peers that a target names, beyond the first.
        others_s: the same for the other peers.
        growth_s: seconds for the growth; a point that would not fit is not run.
        limit_s: seconds after which a call or a warm-up is ended.
        judged_rows: rows of which recall is measured.
        left_out: peers not measured, and why.
    """

    num_rows: int = 60_000
    sizes: tuple[int, ...] = (10_000, 20_000, 40_000, 80_000, 160_000)
    rounds: int = 3
    targets_s: float = 150
    others_s: float = 60
    growth_s: float = 220
    limit_s: float = 180
    judged_rows: int = 2000
    left_out: dict[str, str] = field(default_factory=dict)


def quick_settings() -> Settings:
    """A run of seconds, to see that everything works; its figures mean nothing."""
    return Settings(
        num_rows=3000, sizes=(1000, 2000, 4000), rounds=2, targets_s=5, others_s=5, growth_s=5, judged_rows=500,
        left_out={"pynndescent": "left out: compiles for 30 s"},
    )  # fmt: skip


@dataclass
class Results:
    """All that was measured.

    Attributes:
        settings: how.
        num_threads: of every peer but the single-threaded ranks.
        jobs: one a row, by a short name.
        measurements: by the same name.
        truth: for the sampled rows.
        growth: seconds by short name and N; None where it was not run.
        took_s: seconds for everything.
    """

    settings: Settings
    num_threads: int
    jobs: dict[str, Job]
    measurements: dict[str, Measurement]
    truth: Truth
    growth: dict[str, dict[int, float | None]]
    took_s: float = 0.0


def run(settings: Settings) -> Results:
    """Measure everything; progress goes to standard output.

    Every peer has a process of its own and runs in turn with the others, so that a machine that slows down slows all.
    """
    started = time.monotonic()
    jobs = make_jobs(num_threads())
    with features_file(max(settings.num_rows, *settings.sizes)) as path:
        say(f"starting {len(all_peers())} peers, {num_threads()} threads each")
        chosen = {name: job for name, job in jobs.items() if job.peer not in settings.left_out}
        with workers_of(list(chosen.values()), path, settings.limit_s) as workers:
            features = np.load(path, mmap_mode="r")
            truth = sampled_truth(np.array(features[: settings.num_rows]), settings)
            measurements = compare(settings, jobs, workers, truth)
            growth = grow(settings, jobs, workers)
    return Results(settings, num_threads(), jobs, measurements, truth, growth, time.monotonic() - started)


def make_jobs(threads: int) -> dict[str, Job]:
    """The rows of the comparison; those that a target names come first."""
    peers = all_peers()
    jobs = {name: Job(peer.title, name, 1, threads) for name, peer in peers.items()}
    jobs["ours k=50"] = Job(f"andscale, k = {_MANY}", "ours", _MANY, threads)
    jobs["1 rank"] = Job("andscale, 1 rank x 1 thread", RANKED)
    jobs["2 ranks"] = Job("andscale, 2 ranks x 1 thread", RANKED, num_ranks=2)
    return {name: jobs[name] for name in (*_TARGETS, *(other for other in jobs if other not in _TARGETS))}


@contextmanager
def features_file(num_rows: int) -> Iterator[Path]:
    """Features in a file that every peer reads."""
    with tempfile.TemporaryDirectory(prefix="andscale-bench-") as folder:
        path = Path(folder) / "features.npy"
        np.save(path, clustered_unit_vectors(num_rows, DIM))
        yield path


def sampled_truth(features: np.ndarray, settings: Settings) -> Truth:
    """Float64 answers of the rows that recall and the error of H are measured on."""
    count = min(settings.judged_rows, len(features))
    rows = np.random.default_rng(1).choice(len(features), count, replace=False)
    return find_truth(features, rows, {1, _MANY}, TAU)


def compare(
    settings: Settings, jobs: dict[str, Job], workers: dict[Job, Worker | str], truth: Truth
) -> dict[str, Measurement]:
    """Every job in turn, round by round: first those that a target names, then ours with the others."""
    measurements = {name: Measurement(problem=settings.left_out.get(job.peer, "")) for name, job in jobs.items()}
    others = ("ours", *(name for name in jobs if name not in _TARGETS))
    for names, budget_s, first_turn in (
        (_TARGETS, settings.targets_s, 0),
        (others, settings.others_s, settings.rounds),
    ):
        deadline = time.monotonic() + budget_s
        for turn in range(first_turn, first_turn + settings.rounds):
            for name in names:
                job, found = jobs[name], measurements[name]
                fits = found.median is None or time.monotonic() + found.median < deadline
                if found.problem or not fits:
                    continue
                rows = () if job.num_ranks > 1 else tuple(truth.rows.tolist())
                call = Call(settings.num_rows, job.k, TAU, rows if found.median is None else ())
                measure(workers[job], call, found, turn)
                say(f"round {turn + 1}, {job.title}: {_outcome(found, turn)}")
    return measurements


def grow(
    settings: Settings, jobs: dict[str, Job], workers: dict[Job, Worker | str]
) -> dict[str, dict[int, float | None]]:
    """Seconds of the exact methods at every size; the median of three where a call takes less than two seconds.

    A point is not run when four times the one before (twice the rows) would not fit into what is left of the budget.
    """
    deadline = time.monotonic() + settings.growth_s
    growth: dict[str, dict[int, float | None]] = {name: {} for name in _GROWING}
    for size in settings.sizes:
        found = {name: Measurement() for name in _GROWING}
        for turn in range(3):
            for name in _GROWING:
                expected = found[name].median or _expected(growth[name], size)
                if (turn and expected > 2) or time.monotonic() + expected > deadline:
                    continue
                measure(workers[jobs[name]], Call(size, 1, TAU), found[name], turn)
                say(f"growth, N = {size:,}, {jobs[name].title}: {_outcome(found[name], turn)}")
        for name, measurement in found.items():
            growth[name][size] = measurement.median
    return growth


def _expected(known: dict[int, float | None], size: int) -> float:
    """Seconds by the square of the rows, from the largest size known; 0 when none is."""
    points = [(n, seconds) for n, seconds in known.items() if seconds is not None]
    return points[-1][1] * (size / points[-1][0]) ** 2 if points else 0.0


def _outcome(found: Measurement, turn: int) -> str:
    return found.problem or f"{found.seconds[turn]:.2f} s"


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def machine() -> str:
    """This machine in a line: processor, cores, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, wide = "unknown processor", ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in lines}
        name = fields.get("model name", name)
        wide = " with AVX-512" if "avx512f" in fields.get("flags", "").split() else ""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{cores} cores of {name}{wide}, {gib:.0f} GiB"
