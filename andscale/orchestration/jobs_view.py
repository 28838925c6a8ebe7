"""A run's jobs that live now, on Slurm and on this machine, as far as they can be seen from here."""

import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from andscale.errors import RunError
from andscale.orchestration.records import JobRecord, read_job_record
from andscale.orchestration.slurm_queue import ANSWER_TIMEOUT_S, queued_jobs
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout


@dataclass(frozen=True)
class LiveJob:
    """A job that waits or runs.

    Attributes:
        cluster: ``slurm`` or ``local``.
        job_id: Slurm's number, or the controller's process number.
        is_running: false while it waits.
        node: where it runs.
        started_s: seconds since the epoch.
        reason: why it waits, in Slurm's words.
        never_starts: it waits for a job that failed.
    """

    cluster: str
    job_id: str
    is_running: bool
    node: str = ""
    started_s: float | None = None
    reason: str = ""
    never_starts: bool = False

    def __str__(self) -> str:
        return f"{'job' if self.cluster == 'slurm' else 'process'} {self.job_id}"


@dataclass(frozen=True)
class JobsView:
    """Who was seen; ``unseen`` says in one line what could not be, and of which steps nothing is known for that."""

    jobs: dict[Step, LiveJob] = field(default_factory=dict)
    unseen: str | None = None
    unknown: frozenset[Step] = frozenset()


def see_jobs(layout: RunLayout, steps: Iterable[Step], timeout_s: float = ANSWER_TIMEOUT_S) -> JobsView:
    """Look for the jobs of these steps: one look at this machine's processes, one call of ``squeue``."""
    asked = list(steps)
    jobs = local_jobs(layout, asked)
    records = {step: record for step in asked if (record := read_job_record(layout, step)) is not None}
    unseen, unknown = _elsewhere(records)
    on_slurm = {step for step, record in records.items() if record.cluster == "slurm"}
    if on_slurm or shutil.which("squeue"):
        try:
            for job in reversed(queued_jobs(layout, asked, timeout_s)):
                is_running = job.state not in ("PENDING", "REQUEUED", "CONFIGURING")
                jobs[job.step] = LiveJob(
                    "slurm", job.job_id, is_running, job.node, job.started_s, job.reason, job.never_starts
                )
        except RunError as error:
            if on_slurm:
                unseen, unknown = f"Slurm's view is missing, this is from disk alone: {error}", unknown | on_slurm
    return JobsView(jobs, unseen, frozenset(unknown - jobs.keys()))


def local_jobs(layout: RunLayout, steps: Iterable[Step]) -> dict[Step, LiveJob]:
    """The jobs of these steps on this host, found by their controllers' command lines."""
    folders = {str(layout.round(step.round_number).logs(step.kind).resolve()): step for step in steps}
    jobs = {}
    for process in psutil.process_iter(["cmdline", "create_time", "status"]):
        arguments = process.info["cmdline"] or []
        is_ours = "submitit.local._local" in arguments and arguments[-1] in folders
        if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            job = LiveJob("local", str(process.pid), True, socket.gethostname(), process.info["create_time"])
            jobs[folders[arguments[-1]]] = job
    return jobs


def _elsewhere(records: dict[Step, JobRecord]) -> tuple[str | None, set[Step]]:
    here = socket.gethostname()
    away = {step: r.host for step, r in records.items() if r.cluster == "local" and r.host != here}
    if not away:
        return None, set()
    step, host = next(iter(away.items()))
    return f"{step} was started on {host}, whose processes cannot be seen from here", set(away)
