"""Which job was submitted for a step last: ``rounds/NN/jobs/STEP.json``."""

import json
import socket
import time
from dataclasses import asdict, dataclass

from andscale.orchestration.steps import Step
from andscale.store.files import write_file
from andscale.store.run_layout import RunLayout


@dataclass(frozen=True)
class JobRecord:
    """A submitted job.

    Attributes:
        cluster: ``slurm`` or ``local``.
        job_id: Slurm's number, or the controller's process number.
        host: where it was submitted from; a local job runs there.
        submitted_s: seconds since the epoch.
    """

    cluster: str
    job_id: str
    host: str
    submitted_s: float


def write_job_record(layout: RunLayout, step: Step, *, cluster: str, job_id: str) -> None:
    """Record a job that was just submitted."""
    record = JobRecord(cluster, job_id, socket.gethostname(), round(time.time(), 3))
    write_file(layout.round(step.round_number).job_record(step.kind), json.dumps(asdict(record), indent=2).encode())


def read_job_record(layout: RunLayout, step: Step) -> JobRecord | None:
    """The record of a step's last job; None when there is none that can be read."""
    try:
        values = json.loads(layout.round(step.round_number).job_record(step.kind).read_text(encoding="utf-8"))
        return JobRecord(**values)
    except (FileNotFoundError, ValueError, TypeError):
        return None
