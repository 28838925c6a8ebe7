"""Putting the job that this process belongs to into the queue again."""

import os
import re
import subprocess
import sys
from typing import NoReturn

import submitit
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from andscale.errors import RunError

_ANSWER_TIMEOUT_S = 30


def requeue(max_requeues: int) -> NoReturn:
    """Put this job into the queue again and end this rank; rank 0 does it for all.

    A local job is started again by its controller, six times at most.

    Args:
        max_requeues: ``resources.max_requeues``.

    Raises:
        RunError: the job was requeued that often already, or Slurm refuses.
    """
    task = submitit.JobEnvironment()
    if task.cluster == "local":
        sys.exit(LOCAL_REQUEUE_RETURN_CODE)
    if task.global_rank != 0:
        sys.exit(0)  # where a site kills jobs at the first bad exit, rank 0 would not come to its end
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if restarts >= max_requeues:
        raise RunError(
            f"job {task.job_id} was requeued {restarts} times, and resources.max_requeues = {max_requeues}: launch "
            "again to go on, with a longer time limit if it never came far"
        )
    answer = _scontrol("requeue", task.job_id)
    if answer.returncode:
        raise RunError(
            f"job {task.job_id} could not be requeued ({' '.join(answer.stderr.split())}): launch again to go on"
        )
    print(f"job {task.job_id} is queued again", flush=True)
    sys.exit(0)


def is_preempted() -> bool:
    """Whether Slurm is taking this job's nodes away: it says so with SIGTERM where it was not told to send SIGUSR2.

    A job that ends by itself in its time of grace would not be requeued.
    """
    task = submitit.JobEnvironment()
    if task.cluster != "slurm":
        return False
    answer = _scontrol("show", "job", "--oneliner", task.job_id)
    found = re.search(r"\bPreemptTime=(\S+)", answer.stdout)
    return found is not None and found[1] not in ("None", "Unknown")


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 1, "", str(error))
