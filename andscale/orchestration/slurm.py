"""Steps on Slurm: one job a step, chained by ``afterok``, submitted in one go."""

import shlex
import shutil
import subprocess
import sys
from typing import Any

import submitit
from submitit.slurm.slurm import _convert_mem, _make_sbatch_string

from andscale.config import ResourcesConfig
from andscale.errors import RunError
from andscale.orchestration.jobs import StepJob
from andscale.orchestration.records import read_job_record, write_job_record
from andscale.orchestration.steps import Step, prerequisites
from andscale.store.run_layout import RunLayout

_ANSWER_TIMEOUT_S = 10
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED",
}  # fmt: skip


def controller_answers() -> bool:
    """Whether a Slurm controller answers ``scontrol ping`` from here."""
    if shutil.which("scontrol") is None or shutil.which("sbatch") is None:
        return False
    try:
        ping = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ping.returncode == 0 and "UP" in ping.stdout


def submit_chain(layout: RunLayout, steps: list[Step], resources: ResourcesConfig) -> dict[Step, str]:
    """Submit steps, each behind the jobs whose artefacts it reads; returns their job ids.

    A step whose last job is still pending or running keeps that job.

    Raises:
        RunError: Slurm does not answer or refuses a job.
    """
    if not controller_answers():
        raise RunError("no Slurm controller answers here (scontrol ping): mend that, or launch with --cluster local")
    jobs: dict[Step, str] = {}
    for step in steps:
        live = live_job(layout, step)
        if live is not None:
            jobs[step] = live
            print(f"{step}: job {live} is there already", flush=True)
            continue
        after = [jobs[needed] for needed in prerequisites(step) if needed in jobs]
        jobs[step] = _submit(layout, step, resources, after)
        behind = f", after job {', '.join(after)}" if after else ""
        print(f"{step}: job {jobs[step]}{behind}", flush=True)
    return jobs


def parameters(layout: RunLayout, step: Step, resources: ResourcesConfig, after: list[str]) -> dict[str, Any]:
    """Submitit's parameters of one step's job.

    Index and evaluation jobs share the CPUs of a training job's node out among their own tasks.
    """
    num_nodes, tasks = resources.job_size(step.kind)
    cpus = resources.cpus_per_task
    if cpus is not None and step.kind != "train":
        cpus = max(1, cpus * resources.tasks_per_node // tasks)
    extra: dict[str, Any] = {}
    if after:
        # without kill_on_invalid_dep a job behind a failed one would wait for ever
        extra = {"dependency": "afterok:" + ":".join(after), "kill_on_invalid_dep": "yes"}
    values = {
        "name": f"andscale-{layout.root.name}-{step.kind}-{step.round_number}",
        "timeout_min": resources.timeout_min,
        "nodes": num_nodes,
        "tasks_per_node": tasks,
        "cpus_per_task": cpus,
        "gpus_per_node": resources.gpus_per_node,
        "mem_gb": resources.memory_gb,
        "stderr_to_stdout": True,
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_qos": resources.qos,
        # since Slurm 22.05 srun does not take the count over from sbatch
        "slurm_srun_args": None if cpus is None else [f"--cpus-per-task={cpus}"],
        "slurm_additional_parameters": extra or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def sbatch_script(layout: RunLayout, step: Step, resources: ResourcesConfig, after: list[str]) -> str:
    """The script that would be submitted for a step, for --dry-run; needs no Slurm."""
    names = {"timeout_min": "time", "tasks_per_node": "ntasks_per_node", "name": "job_name", "mem_gb": "mem"}
    given = parameters(layout, step, resources, after)
    renamed = {names.get(n, n.removeprefix("slurm_")): value for n, value in given.items()}
    if "mem" in renamed:
        renamed["mem"] = _convert_mem(renamed["mem"])
    folder = layout.round(step.round_number).logs(step.kind).resolve()
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    script: str = _make_sbatch_string(command=command, folder=folder, **renamed)
    return script


def _submit(layout: RunLayout, step: Step, resources: ResourcesConfig, after: list[str]) -> str:
    folder = layout.round(step.round_number).logs(step.kind).resolve()
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(**parameters(layout, step, resources, after))
    try:
        job = executor.submit(StepJob(layout.root.resolve(), step))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise RunError(f"Slurm refused {step}: {' '.join(str(error).split())}") from None
    write_job_record(layout, step, cluster="slurm", job_id=str(job.job_id))
    return str(job.job_id)


def live_job(layout: RunLayout, step: Step) -> str | None:
    """The step's last Slurm job if it waits or runs; RunError when squeue does not answer."""
    record = read_job_record(layout, step)
    if record is None or record.cluster != "slurm" or not record.job_id.isdecimal():
        return None
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-j", record.job_id, "-o", "%T"],
            capture_output=True,
            text=True,
            timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"squeue does not answer ({error}): try again when Slurm does") from None
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise RunError(f"squeue does not answer: {answer.stderr.strip()}")
    state = answer.stdout.strip()
    return record.job_id if state and state not in _ENDED else None
