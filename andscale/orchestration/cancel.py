"""Ending a run's jobs: those that wait for others first, so that none starts in between."""

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from andscale.errors import RunError
from andscale.orchestration.jobs_view import local_jobs
from andscale.orchestration.records import read_job_record
from andscale.orchestration.slurm_queue import cancel_job, queued_jobs
from andscale.orchestration.steps import Step, steps_of_round
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run

_GONE_S = 120
_LOCAL_GRACE_S = 20
_POLL_S = 0.5


def cancel_run(root: Path) -> list[str]:
    """Cancel all waiting and running jobs of a run and wait until they are gone.

    Returns:
        What was cancelled, a line each; nothing where nothing ran.

    Raises:
        UsageError: it is not a run. RunError: Slurm does not answer, or a job does not end within two minutes.
    """
    method, layout = load_run(root).config.method, RunLayout(root)
    numbers = sorted({*range(method.last_round + 1), *layout.round_numbers()})
    steps = [step for number in numbers for step in steps_of_round(number, method)]
    return [*_cancel_on_slurm(layout, steps), *_cancel_here(layout, steps)]


def _cancel_on_slurm(layout: RunLayout, steps: list[Step]) -> list[str]:
    records = [read_job_record(layout, step) for step in steps]
    if not any(record and record.cluster == "slurm" for record in records) and shutil.which("squeue") is None:
        return []
    cancelled: dict[str, str] = {}
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            jobs = queued_jobs(layout, steps)
        except RunError:
            if any(record and record.cluster == "slurm" for record in records):
                raise
            return []  # Slurm is installed but not in use here
        if not jobs:
            return list(cancelled.values())
        if time.monotonic() > deadline:
            left = ", ".join(f"job {job.job_id} ({job.state})" for job in jobs)
            raise RunError(f"{left} of {layout.root} did not end within {_GONE_S} s: squeue and scancel tell more")
        # again and again: a job may have put itself back into the queue, a launcher may have submitted one more
        for job in sorted(jobs, key=lambda job: steps.index(job.step), reverse=True):
            if job.state != "COMPLETING":
                cancel_job(job.job_id)
                cancelled[job.job_id] = f"cancelled {job.step}: job {job.job_id}"
        time.sleep(_POLL_S)


def _cancel_here(layout: RunLayout, steps: Iterable[Step]) -> list[str]:
    cancelled = []
    for step, job in local_jobs(layout, steps).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            controller = psutil.Process(int(job.job_id))
            family = [*controller.children(recursive=True), controller]
            controller.terminate()  # it passes the signal on to the ranks
            _, alive = psutil.wait_procs(family, timeout=_LOCAL_GRACE_S)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=_LOCAL_GRACE_S)
        cancelled.append(f"cancelled {step}: process {job.job_id} on this machine")
    return cancelled
