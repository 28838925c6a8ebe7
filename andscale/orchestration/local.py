"""Steps on this machine, chained by waiting; jobs outlive a killed launcher and are found again."""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import submitit

from andscale.config_resources import ResourcesConfig
from andscale.errors import RunError
from andscale.metrics import PROGRESS_MARK
from andscale.orchestration.jobs import ERROR_MARK, StepJob
from andscale.orchestration.records import write_job_record
from andscale.orchestration.steps import Step, is_done
from andscale.store.run_layout import RunLayout

_POLL_S = 0.1


def run_steps(layout: RunLayout, steps: list[Step], resources: ResourcesConfig) -> None:
    """Run steps one after the other, showing their logs; the first that fails ends the chain.

    Raises:
        RunError: a step failed; the text says why and where its log is.
    """
    for step in steps:
        started = time.monotonic()
        job = find_live_job(layout, step)
        if job is None:
            job = _submit(layout, step, resources)
        else:
            print(f"{step}: found running (process {job.pid})", flush=True)
        _wait(layout, step, job)
        if not is_done(layout, step):
            raise RunError(f"{step} failed: {_reason(layout, step, job)}")
        print(f"{step}: done in {time.monotonic() - started:.1f} s", flush=True)


def _submit(layout: RunLayout, step: Step, resources: ResourcesConfig) -> psutil.Process:
    executor = submitit.AutoExecutor(folder=_log_folder(layout, step), cluster="local")
    _, num_tasks = resources.job_size(step.kind)
    executor.update_parameters(
        name=f"andscale-{step.kind}-{step.round_number}",
        timeout_min=resources.timeout_min,
        tasks_per_node=num_tasks,
        gpus_per_node=resources.gpus_per_node or 0,
        stderr_to_stdout=True,
    )
    job = executor.submit(StepJob(layout.root.resolve(), step, _free_port(), _cuda_devices(resources.gpus_per_node)))
    write_job_record(layout, step, cluster="local", job_id=str(job.job_id))
    return psutil.Process(int(job.job_id))


def _cuda_devices(gpus_per_node: int | None) -> str | None:
    """CUDA_VISIBLE_DEVICES of a job: all that the launcher sees, or the first so many of them; None: not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus_per_node is None:
        return visible
    chosen = visible.split(",") if visible else [str(number) for number in range(gpus_per_node)]
    return ",".join(chosen[:gpus_per_node])


def find_live_job(layout: RunLayout, step: Step) -> psutil.Process | None:
    """The controller of the step's job on this host, if one runs: found by its command line, which names the folder.

    No record is needed, so a launcher killed right after it started the job loses nothing.
    """
    folder = str(_log_folder(layout, step))
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "submitit.local._local" in arguments and arguments[-1] == folder and _is_running(process):
            return process
    return None


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
        # submitit's tasks pass SIGTERM over; finished epochs are kept, so nothing is lost by a plain end
        for task in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                task.kill()
        raise
    shown.show_new()
    layout.round(step.round_number).job_record(step.kind).unlink(missing_ok=True)


class LogFollower:
    """Shows what a job's log gains; on a terminal, progress lines replace each other."""

    def __init__(self, path: Path):
        self.path, self._position, self._rest = path, 0, b""
        self._in_place = False

    def show_new(self) -> None:
        """Print the complete lines that came since the last call, without submitit's own."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in (part.decode(errors="replace") for part in lines):
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
        for line in reversed(content):  # process numbers come again, and logs are appended to
            if line.startswith(ERROR_MARK):
                return f"{line.removeprefix(ERROR_MARK)} (log: {path})"
    last = next((line for line in reversed(lines.get(first, [])) if line.strip()), "it ended without a word")
    return f"{last} (log: {first})"


def _log_path(layout: RunLayout, step: Step, process: psutil.Process, rank: int) -> Path:
    return _log_folder(layout, step) / f"{process.pid}_{rank}_log.out"


def _log_folder(layout: RunLayout, step: Step) -> Path:
    return layout.round(step.round_number).logs(step.kind).resolve()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
