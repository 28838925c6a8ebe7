"""Steps on this machine, chained by waiting; jobs outlive a killed launcher and are found again."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import submitit

from andscale.config import RunConfig
from andscale.errors import RunError
from andscale.metrics import PROGRESS_MARK
from andscale.orchestration.jobs import StepJob
from andscale.orchestration.reasons import why_it_failed
from andscale.orchestration.records import write_job_record
from andscale.orchestration.steps import Step, is_done
from andscale.store.run_layout import RunLayout

_POLL_S = 0.1
_SAVING_S = 60
"""How long a job that is told to stop may take to save."""


def run_steps(layout: RunLayout, steps: list[Step], config: RunConfig) -> None:
    """Run steps one after the other, showing their logs; the first that fails ends the chain.

    Raises:
        RunError: a step failed; the text says why and where its log is.
    """
    for step in steps:
        started = time.monotonic()
        job = find_live_job(layout, step)
        if job is None:
            job = _submit(layout, step, config)
        else:
            print(f"{step}: found running (process {job.pid})", flush=True)
        _wait(layout, step, job)
        if not is_done(layout, step):
            raise RunError(f"{step} failed: {why_it_failed(_log_folder(layout, step), str(job.pid))}")
        print(f"{step}: done in {time.monotonic() - started:.1f} s", flush=True)


def _submit(layout: RunLayout, step: Step, config: RunConfig) -> psutil.Process:
    resources = config.resources
    executor = submitit.AutoExecutor(folder=_log_folder(layout, step), cluster="local")
    _, num_tasks = resources.job_size(step.kind)
    executor.update_parameters(
        name=f"andscale-{step.kind}-{step.round_number}",
        timeout_min=resources.timeout_min,
        tasks_per_node=num_tasks,
        gpus_per_node=resources.gpus_per_node or 0,
        stderr_to_stdout=True,
    )
    devices = _cuda_devices(resources.gpus_per_node)
    with _handler(signal.SIGINT, signal.SIG_IGN):  # Ctrl-C is the launcher's: it stops the job in good order
        job = executor.submit(StepJob(layout.root.resolve(), step, _free_port(), devices, config))
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
    """Show the log until the job's end; at Ctrl-C or SIGTERM, stop the job and raise KeyboardInterrupt."""
    shown = LogFollower(_log_folder(layout, step) / f"{process.pid}_0_log.out")
    with _handler(signal.SIGTERM, signal.default_int_handler):
        try:
            while _is_running(process):
                shown.show_new()
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            _stop(step, process, shown)
            raise
    shown.show_new()
    layout.round(step.round_number).job_record(step.kind).unlink(missing_ok=True)


def _stop(step: Step, process: psutil.Process, shown: "LogFollower") -> None:
    """Let the job's ranks save and end; a second Ctrl-C, or their taking too long, kills them."""
    if step.kind == "train":
        print(f"{step}: saving a checkpoint, for up to {_SAVING_S} s; Ctrl-C again ends it at once", file=sys.stderr)
    try:
        process.terminate()  # the controller passes it on to its tasks
        deadline = time.monotonic() + _SAVING_S
        while _is_running(process) and time.monotonic() < deadline:
            shown.show_new()
            time.sleep(_POLL_S)
        shown.show_new()
    except (KeyboardInterrupt, psutil.NoSuchProcess):
        pass
    with contextlib.suppress(psutil.NoSuchProcess):
        for task in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                task.kill()


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


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


def _log_folder(layout: RunLayout, step: Step) -> Path:
    return layout.round(step.round_number).logs(step.kind).resolve()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
