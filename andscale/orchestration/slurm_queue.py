"""A run's jobs as Slurm sees them now, found by name and comment; no accounting is asked."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from andscale.errors import RunError
from andscale.orchestration.records import read_job_record
from andscale.orchestration.steps import Step
from andscale.store.files import hash_bytes
from andscale.store.run_layout import RunLayout

ANSWER_TIMEOUT_S = 20
_FORMAT = "%i|%T|%j|%k|%N|%S|%E|%r"
_COMPLETING_S = 60
HELD_REASON = "launch failed requeued held"
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED",
}  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs.

    Attributes:
        state: Slurm's word, ``PENDING``, ``RUNNING``, ``COMPLETING``, ...
        node: where it runs; empty while it waits.
        started_s: seconds since the epoch; None while it waits.
        after: ids of the jobs that it still waits for.
        reason: why it waits, in Slurm's words.
    """

    step: Step
    job_id: str
    state: str
    node: str
    started_s: float | None
    after: tuple[str, ...]
    reason: str

    @property
    def never_starts(self) -> bool:
        """Whether it waits for a job that failed."""
        return self.reason == "DependencyNeverSatisfied"

    @property
    def is_held_after_a_failed_start(self) -> bool:
        """Whether Slurm could not start it on a node, queued it again, and holds it until somebody releases it."""
        return self.reason == HELD_REASON


def controller_answers(timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Whether a Slurm controller answers ``scontrol ping`` from here."""
    if shutil.which("scontrol") is None or shutil.which("sbatch") is None:
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ping.returncode == 0 and "UP" in ping.stdout


def job_name(layout: RunLayout, step: Step) -> str:
    """What a person sees in ``squeue``; runs of the same name in two folders share it."""
    run = re.sub(r"[^A-Za-z0-9_.-]", "_", layout.root.resolve().name)
    return f"andscale-{run}-{step.kind}-{step.round_number}"


def job_comment(layout: RunLayout, step: Step) -> str:
    """What tells the step's job from all others: the run's absolute path, as a digest, and the step."""
    digest = hash_bytes(str(layout.root.resolve()).encode())[:16]
    return f"andscale:{digest}:{step.kind}:{step.round_number}"


def queued_jobs(layout: RunLayout, steps: Iterable[Step], timeout_s: float = ANSWER_TIMEOUT_S) -> list[QueuedJob]:
    """All waiting and running jobs of these steps, running ones first; one call of ``squeue``.

    Raises:
        RunError: squeue does not answer.
    """
    asked = {job_comment(layout, step): step for step in steps}
    # another host may see the run's folder under another path
    records = {step: read_job_record(layout, step) for step in asked.values()}
    recorded = {record.job_id: step for step, record in records.items() if record and record.cluster == "slurm"}
    names = ",".join(sorted({job_name(layout, step) for step in asked.values()}))
    jobs = []
    for line in _squeue(["--name", names], timeout_s):
        job_id, state, _, comment, node, started, dependency, reason = line.split("|", 7)
        step = asked.get(comment) or recorded.get(job_id)
        if step is None or state in _ENDED:
            continue
        jobs.append(
            QueuedJob(
                step=step,
                job_id=job_id,
                state=state,
                node=node,
                started_s=float(started) if state != "PENDING" and started.isdecimal() else None,
                after=tuple(re.findall(r":(\d+)", dependency)),
                reason=reason,
            )
        )
    return sorted(jobs, key=lambda job: (job.state == "PENDING", int(job.job_id)))


def settled_jobs(layout: RunLayout, steps: Iterable[Step]) -> dict[Step, QueuedJob]:
    """The job of each step that has one, once none of them is just ending.

    Raises:
        RunError: squeue does not answer, or a job is still ending after a minute.
    """
    asked, deadline = list(steps), time.monotonic() + _COMPLETING_S
    while True:
        jobs = queued_jobs(layout, asked)
        ending = [job for job in jobs if job.state == "COMPLETING"]
        if not ending:
            return {job.step: job for job in reversed(jobs)}
        if time.monotonic() > deadline:
            raise RunError(
                f"job {ending[0].job_id} of {ending[0].step} has been ending for a minute: launch again later"
            )
        time.sleep(0.5)


def cancel_job(job_id: str) -> None:
    """Cancel one job for good: a step that saves and requeues itself when it is told to end stays away, too.

    Raises:
        RunError: scancel does not answer.
    """
    try:
        subprocess.run(
            ["scontrol", "update", f"JobId={job_id}", "Requeue=0"],
            capture_output=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
        answer = subprocess.run(
            ["scancel", job_id], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"scancel does not answer ({error}): try again when Slurm does") from None
    if answer.returncode and "Invalid job id" not in answer.stderr and "already" not in answer.stderr:
        raise RunError(f"job {job_id} cannot be cancelled: {' '.join(answer.stderr.split())}")


def release_job(job_id: str) -> None:
    """Let a held job start.

    Raises:
        RunError: scontrol does not answer, or refuses.
    """
    try:
        answer = subprocess.run(
            ["scontrol", "release", job_id], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"scontrol does not answer ({error}): try again when Slurm does") from None
    if answer.returncode:
        raise RunError(f"job {job_id}, which Slurm holds, cannot be released: {' '.join(answer.stderr.split())}")


def _squeue(arguments: list[str], timeout_s: float) -> list[str]:
    # the user's own filters and formats would hide jobs
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-o", _FORMAT, *arguments],
            env=environment | {"SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"squeue did not answer within {timeout_s:g} s: try again when Slurm does") from None
    except OSError as error:
        raise RunError(f"squeue cannot be run ({error.strerror}): launch from a machine that has Slurm") from None
    if answer.returncode:
        raise RunError(f"squeue does not answer: {' '.join(answer.stderr.split())}")
    return [line for line in answer.stdout.splitlines() if line.count("|") >= 7]
