"""Steps on Slurm: one job a step, chained by ``afterok``, submitted in one go."""

import re
import secrets
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _convert_mem, _make_sbatch_string

from andscale.config import RunConfig
from andscale.errors import RunError
from andscale.orchestration.holding import Hold
from andscale.orchestration.jobs import StepJob
from andscale.orchestration.records import read_job_record, write_job_record
from andscale.orchestration.slurm_queue import (
    QueuedJob,
    cancel_job,
    job_comment,
    job_name,
    queued_jobs,
    release_job,
)
from andscale.orchestration.steps import Step, prerequisites
from andscale.store.run_layout import RunLayout

_SUBMIT_TIMEOUT_S = 120


def submit_chain(
    layout: RunLayout, steps: list[Step], config: RunConfig, queued: dict[Step, QueuedJob], hold: Hold
) -> dict[Step, str]:
    """Submit steps, each behind the jobs whose artefacts it reads; returns their job ids.

    A step's waiting or running job is kept, unless it waits for another job than the one that it needs now.

    Args:
        layout: the run.
        steps: what is not done, looked up *after* ``queued``: a job that ended in between has left its artefacts.
        config: the resources and Slurm settings of this launch.
        queued: the steps' jobs.
        hold: this launcher's hold on the run.

    Raises:
        RunError: Slurm does not answer or refuses a job.
    """
    jobs: dict[Step, str] = {}
    for step in steps:
        after = [jobs[needed] for needed in prerequisites(step) if needed in jobs]
        job = queued.get(step)
        if job is not None and not job.never_starts and set(after) <= set(job.after):
            _adopt(layout, step, job, config)
            jobs[step] = job.job_id
            print(f"{step}: job {job.job_id} is there already", flush=True)
            if job.is_held_after_a_failed_start:
                release_job(job.job_id)
                print(f"{step}: job {job.job_id} was held by Slurm after it could not be started: released", flush=True)
            continue
        hold.check()
        if job is not None:
            cancel_job(job.job_id)
            print(f"{step}: job {job.job_id} was behind a job that is gone: cancelled", flush=True)
        jobs[step] = _submit(layout, step, config, after)
        behind = f", after job {', '.join(after)}" if after else ""
        print(f"{step}: job {jobs[step]}{behind}", flush=True)
    return jobs


def parameters(layout: RunLayout, step: Step, config: RunConfig, after: list[str]) -> dict[str, Any]:
    """What submitit's script of one step's job is made from."""
    num_nodes, tasks = config.resources.job_size(step.kind)
    site = config.slurm.of_step(step.kind, config.resources)
    additional: dict[str, Any] = {**(site.additional or {}), "requeue": True}
    if after:
        # without kill-on-invalid-dep a job behind a failed one would wait for ever
        additional |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    # since Slurm 22.05 srun does not take the count over from sbatch
    cpus = [] if site.cpus_per_task is None else [f"--cpus-per-task={site.cpus_per_task}"]
    values = {
        "job_name": job_name(layout, step),
        "comment": job_comment(layout, step),
        "time": site.timeout_min,
        "nodes": num_nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": site.cpus_per_task,
        "gpus_per_node": site.gpus_per_node,
        "mem": None if site.memory_gb is None else _convert_mem(site.memory_gb),
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "setup": site.setup,
        # a rank that failed, or gave up one that hangs, ends them all; the site's own arguments come last and count
        "srun_args": ["--kill-on-bad-exit=1", *cpus, *(site.srun_args or [])],
        "stderr_to_stdout": True,
        "additional_parameters": additional,
    }
    return {name: value for name, value in values.items() if value is not None}


def sbatch_script(layout: RunLayout, step: Step, config: RunConfig, after: list[str]) -> str:
    """The script that is submitted for a step, and shown by --dry-run; needs no Slurm."""
    folder = _folder(layout, step)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    script: str = _make_sbatch_string(command=command, folder=folder, **parameters(layout, step, config, after))
    return script


def _submit(layout: RunLayout, step: Step, config: RunConfig, after: list[str]) -> str:
    """Submit one job; when sbatch's answer is lost, the job is looked for before anything is given up."""
    folder = _folder(layout, step)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f".submission-{secrets.token_hex(8)}.sh"
    script.write_text(sbatch_script(layout, step, config, after), encoding="utf-8")
    before = {job.job_id for job in queued_jobs(layout, [step])}
    job_id, said = _sbatch(script)
    if job_id is None:
        came = [job for job in queued_jobs(layout, [step]) if job.job_id not in before]
        if not came:
            script.unlink()
            raise RunError(f"Slurm refused {step}: {said}")
        job_id = came[0].job_id
        print(f"{step}: sbatch's answer was lost ({said}), but job {job_id} is there", flush=True)
    _complete(layout, step, job_id, config)
    script.rename(folder / f"{job_id}_submission.sh")
    return job_id


def _sbatch(script: Path) -> tuple[str | None, str]:
    """The job's id, or None and what is known of the reason."""
    try:
        answer = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True,
            text=True,
            timeout=_SUBMIT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"sbatch did not answer within {_SUBMIT_TIMEOUT_S} s"
    except OSError as error:
        return None, f"sbatch cannot be run: {error.strerror}"
    found = re.fullmatch(r"(\d+)(;.*)?", answer.stdout.strip())
    if answer.returncode or found is None:
        return None, " ".join(f"{answer.stderr} {answer.stdout}".split()) or f"exit code {answer.returncode}"
    return found[1], ""


def _adopt(layout: RunLayout, step: Step, job: QueuedJob, config: RunConfig) -> None:
    """Make up for what a launcher that was cut off right after sbatch left undone."""
    record = read_job_record(layout, step)
    known = record is not None and record.cluster == "slurm" and record.job_id == job.job_id
    if not known or not _pickle(layout, step, job.job_id).exists():
        _complete(layout, step, job.job_id, config)


def _complete(layout: RunLayout, step: Step, job_id: str, config: RunConfig) -> None:
    """Give a submitted job what it runs, which it waits a minute for, and record it."""
    limit = config.slurm.of_step(step.kind, config.resources).timeout_min or config.resources.timeout_min
    call = submitit.helpers.DelayedSubmission(StepJob(layout.root.resolve(), step, launched=config))
    call.set_timeout(limit, config.resources.max_requeues)
    path = _pickle(layout, step, job_id)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    call.dump(temporary)
    temporary.rename(path)
    write_job_record(layout, step, cluster="slurm", job_id=job_id)


def _pickle(layout: RunLayout, step: Step, job_id: str) -> Path:
    return _folder(layout, step) / f"{job_id}_submitted.pkl"


def _folder(layout: RunLayout, step: Step) -> Path:
    return layout.round(step.round_number).logs(step.kind).resolve()
