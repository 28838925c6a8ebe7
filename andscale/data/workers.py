"""Jobs run by processes: a bounded number ahead, none left behind when the parent dies."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from andscale.errors import RunError

_JOBS_AHEAD = 2
"""Jobs a process that wait with their samples; more would only take memory."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Iterator[tuple[Job, Result]]:
    """``function`` of each job in ``num_workers`` processes (1: in this one), as they finish.

    Raises:
        RunError: a process died.
    """
    if num_workers == 1:
        for job in jobs:
            yield job, function(job)
        return
    pending: dict[Future[Result], Job] = {}
    pool = ProcessPoolExecutor(num_workers, _process_context(), _follow_parent, (os.getpid(),))
    try:
        for job in jobs:
            pending[pool.submit(function, job)] = job
            if len(pending) >= _JOBS_AHEAD * num_workers:
                yield from _take_finished(pending)
        while pending:
            yield from _take_finished(pending)
    except BrokenProcessPool:
        raise RunError(
            "a working process died, perhaps for want of memory: start again, with fewer workers if need be; finished "
            "shards are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _take_finished(pending: dict[Future[Result], Job]) -> Iterator[tuple[Job, Result]]:
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        yield pending.pop(future), future.result()


def _process_context() -> Any:
    """Fork starts at once, but a forked child of a process with threads may wait for locks that nobody will release."""
    can_fork = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if can_fork else "spawn")


def _follow_parent(parent: int) -> None:
    """End with the parent, even a killed one; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def no_more_than(num_workers: int, num_samples: int, samples_per_job: int) -> int:
    """No more processes than jobs."""
    return max(1, min(num_workers, -(-num_samples // samples_per_job)))


def num_cores() -> int:
    """Cores that this process may use; Slurm and containers narrow them."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
