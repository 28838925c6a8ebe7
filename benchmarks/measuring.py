"""Starts a process a peer, runs them in turn, and keeps what they answered."""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.worker import Call

_ROOT = Path(__file__).resolve().parents[1]


class PeerError(Exception):
    """A peer cannot be imported, failed, or took too long; the text says which."""


@dataclass(frozen=True)
class Job:
    """What one row of a table measures.

    Attributes:
        title: of the row.
        peer: name in ``all_peers``, or RANKED.
        k: neighbours.
        num_threads: of each process.
        num_ranks: processes that share the samples.
    """

    title: str
    peer: str
    k: int = 1
    num_threads: int = 1
    num_ranks: int = 1


@dataclass
class Measurement:
    """What the calls of one job gave.

    Attributes:
        seconds: of each call, by the number of the round in which it ran.
        peak_bytes: of the first call, above what lay in memory before it; None: not known.
        ids: of the rows asked for; None from peers that find none.
        entropies: nats, likewise.
        problem: why there is no (further) figure.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    ids: list[list[int]] | None = None
    entropies: list[float] | None = None
    problem: str = ""

    @property
    def median(self) -> float | None:
        """Seconds; None without a call."""
        return statistics.median(self.seconds.values()) if self.seconds else None


def ratio(a: Measurement, b: Measurement) -> float | None:
    """Median over the rounds in which both ran of the seconds of ``a`` over those of ``b``: drift cancels."""
    ratios = [a.seconds[turn] / b.seconds[turn] for turn in sorted(a.seconds.keys() & b.seconds.keys())]
    return statistics.median(ratios) if ratios else None


class Worker:
    """The process, or the ranks, of one peer; starts at once, is ready after ``wait``.

    Args:
        job: which peer, how many threads and ranks; its k is not used.
        features: a ``.npy`` file.
        limit_s: seconds that a call may take; then the peer is ended.
    """

    def __init__(self, job: Job, features: Path, limit_s: float):
        self.limit_s = limit_s
        self.log = features.with_name(f"{job.peer}-{job.num_threads}-{job.num_ranks}.log")
        port = _free_port()
        self.processes = [self._start(job, features, rank, port) for rank in range(job.num_ranks)]

    def _start(self, job: Job, features: Path, rank: int, port: int) -> "subprocess.Popen[str]":
        threads = str(job.num_threads)
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        ranks = {"RANK": rank, "WORLD_SIZE": job.num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | dict.fromkeys(variables, threads) | {name: str(v) for name, v in ranks.items()}
        # the same comparison on a machine with a GPU
        environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "benchmarks.worker", job.peer, str(features)]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command,
                env=environment,
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        """Until it has imported and compiled what it needs.

        Raises:
            PeerError: it cannot.
        """
        self._replies()

    def run(self, call: Call) -> dict[str, Any]:
        """The answer to one call: of rank 0, with the seconds and the peak of the largest.

        Raises:
            PeerError: it failed, or took longer than the limit.
        """
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                print(call.to_json(), file=_pipe(process.stdin), flush=True)
        replies = self._replies()
        answer = dict(replies[0])
        for key in ("seconds", "peak_bytes"):
            answer[key] = max((reply[key] for reply in replies if reply[key] is not None), default=None)
        return answer

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def _replies(self) -> list[dict[str, Any]]:
        timer = threading.Timer(self.limit_s, lambda: [process.kill() for process in self.processes])
        started = time.monotonic()
        timer.start()
        try:
            lines = [_pipe(process.stdout).readline() for process in self.processes]
        finally:
            timer.cancel()
        if not all(lines):
            if time.monotonic() - started >= self.limit_s:
                raise PeerError(f"ended after {self.limit_s:.0f} s without an answer")
            raise PeerError(f"its process ended: {self._last_words()}")
        replies = [json.loads(line) for line in lines]
        for reply in replies:
            if "problem" in reply:
                raise PeerError(reply["problem"])
        return replies

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def workers_of(jobs: Sequence[Job], features: Path, limit_s: float) -> Iterator[dict[Job, Worker | str]]:
    """A started and warm worker for each job, or why there is none; jobs that differ in k alone share one.

    Args:
        jobs: what will be measured.
        features: a ``.npy`` file.
        limit_s: seconds that a call may take.
    """
    keys = {job: (job.peer, job.num_threads, job.num_ranks) for job in jobs}
    started: dict[Any, Worker] = {}
    try:
        # all at once: they import and compile beside each other
        for job, key in keys.items():
            if key not in started:
                started[key] = Worker(job, features, limit_s)
        problems = {}
        for key, worker in started.items():
            try:
                worker.wait()
            except PeerError as error:
                problems[key] = str(error)
        yield {job: problems.get(key, started[key]) for job, key in keys.items()}
    finally:
        for worker in started.values():
            worker.close()


def measure(worker: Worker | str, call: Call, into: Measurement, turn: int) -> None:
    """One call in round ``turn``; a problem is kept and ends the peer's measurement."""
    if isinstance(worker, str):
        into.problem = worker
    if into.problem:
        return
    assert isinstance(worker, Worker)
    try:
        answer = worker.run(call)
    except PeerError as error:
        into.problem = str(error)
        return
    if not into.seconds:
        into.peak_bytes, into.ids, into.entropies = (answer[key] for key in ("peak_bytes", "ids", "entropies"))
    into.seconds[turn] = answer["seconds"]


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None, "processes are started with pipes"
    return pipe


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
