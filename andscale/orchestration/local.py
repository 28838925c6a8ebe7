"""Steps on this machine, chained by waiting; jobs outlive a killed launcher and are found again."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import submitit

from andscale.config import ResourcesConfig
from andscale.errors import RunError, UsageError
from andscale.metrics import PROGRESS_MARK
from andscale.orchestration.jobs import ERROR_MARK, StepJob
from andscale.orchestration.steps import Step, is_done
from andscale.store.artifacts import write_file
from andscale.store.run_layout import RunLayout

_POLL_S = 0.1


def run_steps(layout: RunLayout, steps: list[Step], resources: ResourcesConfig) -> None:
    """Run steps one after the other, showing their logs; the first that fails ends the chain.

    Raises:
        UsageError: more than one node was asked for. RunError: a step failed; the text says why and where its log is.
    """
    if resources.num_nodes > 1:
        raise UsageError("resources.num_nodes is above 1: a run on this machine alone has one node")
    for step in steps:
        started = time.monotonic()
        job = _find_live_job(layout, step)
        if job is None:
            job = _submit(layout, step, resources)
        else:
            print(f"{step}: found running (process {job.pid})", flush=True)
        _wait(layout, step, job)
        if not is_done(layout, step):
            raise RunError(f"{step} failed: {_reason(layout, step, job)}")
        print(f"{step}: done in {time.monotonic() - started:.1f} s", flush=True)


def _submit(layout: RunLayout, step: Step, resources: ResourcesConfig) -> psutil.Process:
    logs = layout.round(step.round_number).logs(step.kind)
    executor = submitit.AutoExecutor(folder=logs, cluster="local")
    num_tasks = resources.tasks_per_node if step.kind == "train" else 1
    executor.update_parameters(
        name=f"andscale-{step.kind}-{step.round_number}",
        timeout_min=resources.timeout_min,
        tasks_per_node=num_tasks,
        gpus_per_node=resources.gpus_per_node or 0,
        stderr_to_stdout=True,
    )
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") if resources.gpus_per_node is None else "unchanged"
    job = executor.submit(StepJob(layout.root.resolve(), step, _free_port(), devices))
    process = psutil.Process(int(job.job_id))
    record = {
        "cluster": "local",
        "job_id": job.job_id,
        "host": socket.gethostname(),
        "started": process.create_time(),
        "submitted_s": time.time(),
    }
    write_file(layout.round(step.round_number).job_record(step.kind), json.dumps(record, indent=2).encode())
    return process


def _find_live_job(layout: RunLayout, step: Step) -> psutil.Process | None:
    """The process of the step's last local job, if that very process still runs on this host."""
    path = layout.round(step.round_number).job_record(step.kind)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["cluster"] != "local" or record["host"] != socket.gethostname():
            return None
        process = psutil.Process(int(record["job_id"]))
        # process numbers are used again; the time of birth tells them apart
        same = abs(process.create_time() - record["started"]) < 1
    except (FileNotFoundError, ValueError, KeyError, psutil.Error):
        return None
    return process if same and _is_running(process) else None


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait(layout: RunLayout, step: Step, process: psutil.Process) -> None:
    log = _log_path(layout, step, process, rank=0)
    shown = LogFollower(log)
    try:
        while _is_running(process):
            shown.show_new()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        process.terminate()
        psutil.wait_procs([process], timeout=10)
        raise
    shown.show_new()


class LogFollower:
    """Shows what a job's log gains; on a terminal, progress lines replace each other."""

    def __init__(self, path: Path):
        self.path, self._position, self._rest = path, 0, ""
        self._in_place = False

    def show_new(self) -> None:
        """Print the complete lines that came since the last call, without submitit's own."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            if line.strip() and not line.startswith("submitit "):
                self._show(line)

    def _show(self, line: str) -> None:
        out = sys.stdout
        if out.isatty():
            is_progress = PROGRESS_MARK in line
            out.write(("\r\x1b[K" if self._in_place else "") + line + ("" if is_progress else "\n"))
            self._in_place = is_progress
        else:
            out.write(line + "\n")
        out.flush()


def _reason(layout: RunLayout, step: Step, process: psutil.Process) -> str:
    """Why a job failed: the marked line of any rank's log, or the last line of the first one; and the log's path."""
    first = _log_path(layout, step, process, rank=0)
    logs = sorted(first.parent.glob(f"{process.pid}_*_log.out"))
    lines = {path: path.read_text(encoding="utf-8", errors="replace").splitlines() for path in logs}
    for path, content in lines.items():
        for line in content:
            if line.startswith(ERROR_MARK):
                return f"{line.removeprefix(ERROR_MARK)} (log: {path})"
    last = next((line for line in reversed(lines.get(first, [])) if line.strip()), "it ended without a word")
    return f"{last} (log: {first})"


def _log_path(layout: RunLayout, step: Step, process: psutil.Process, rank: int) -> Path:
    return layout.round(step.round_number).logs(step.kind) / f"{process.pid}_{rank}_log.out"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
