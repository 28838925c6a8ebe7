"""Where every step of a run stands: a function of what is on disk and of the jobs that are seen. Writes nothing."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from andscale.errors import AndscaleError
from andscale.evaluation.record import read_evaluation
from andscale.orchestration.holding import holder_of
from andscale.orchestration.jobs_view import JobsView, LiveJob, see_jobs
from andscale.orchestration.logs import failure_reason, is_queued_again, last_progress, newest_logs
from andscale.orchestration.reasons import culprit
from andscale.orchestration.records import read_job_record
from andscale.orchestration.slurm_queue import HELD_REASON
from andscale.orchestration.steps import (
    Step,
    damage,
    has_all_outputs,
    outputs,
    prerequisites,
    stale_parent,
    steps_of_round,
)
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run

State = Literal["absent", "waiting", "running", "done", "failed", "stale"]
_RECENT_S = 120
_SLURM_TIMEOUT_S = 5
_FIGURES = ("num_epochs", "num_anchors", "recall_at_1")


@dataclass(frozen=True)
class StepStatus:
    """One step; what does not belong to its state is None.

    Attributes:
        job: the job that lives, or did last, in words.
        node: where it runs.
        since: when it began to run, or was done: ISO 8601, local time.
        waits_for: of a waiting step: the steps before it, or Slurm's reason.
        doing: of a running step: what its log says that it does.
        fraction: how far, of the whole step in training.
        rate: with its unit.
        seconds_left: to the end of what ``fraction`` measures.
        seconds: that the finished step took.
        figures: of the finished step.
        why: of a failed, stale or absent step: what happened, one line.
        log: of the newest job's rank 0, or of the rank that said why.
    """

    step: Step
    state: State
    job: str | None = None
    node: str | None = None
    since: str | None = None
    waits_for: str | None = None
    doing: str | None = None
    fraction: float | None = None
    rate: str | None = None
    seconds_left: float | None = None
    seconds: float | None = None
    figures: Mapping[str, Any] | None = None
    why: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class RunStatus:
    """All steps; ``unseen`` says what could not be seen, ``holder`` who launches at the moment."""

    root: Path
    steps: tuple[StepStatus, ...]
    unseen: str | None
    holder: str | None

    @property
    def is_done(self) -> bool:
        """Whether every step is done."""
        return all(status.state == "done" for status in self.steps)

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        steps = [asdict(s) | {"step": s.step.kind, "round": s.step.round_number} for s in self.steps]
        return {"run": str(self.root), "steps": steps, "unseen": self.unseen, "holder": self.holder}


def run_status(root: Path, rounds: range | None = None) -> RunStatus:
    """Look at a run, its processes on this machine, and Slurm, which has five seconds to answer.

    Args:
        root: the run's folder; nothing is written there.
        rounds: which ones; None: all of the curriculum.

    Raises:
        UsageError: it is not a run.
    """
    method, layout = load_run(root).config.method, RunLayout(root)
    rounds = range(method.last_round + 1) if rounds is None else rounds
    steps = [step for number in rounds for step in steps_of_round(number, method)]
    view = see_jobs(layout, steps, _SLURM_TIMEOUT_S)
    # the jobs before the disk: one that ends in between has left its artefacts
    return RunStatus(root, tuple(step_status(layout, step, view) for step in steps), view.unseen, holder_of(root))


def step_status(layout: RunLayout, step: Step, view: JobsView) -> StepStatus:
    """One step, from disk and the jobs that were seen."""
    if has_all_outputs(layout, step):
        return _made(layout, step)
    job = view.jobs.get(step)
    if job is None:
        return _from_disk_alone(layout, step) if step in view.unknown else _ended(layout, step)
    if job.is_running:
        return _running(layout, step, job)
    why = "it waits for a job that failed" if job.never_starts else None
    if job.reason == HELD_REASON:
        why = "Slurm could not start it and holds it: launching again releases it"
    return StepStatus(
        step, "waiting", job=str(job), waits_for=_needed(layout, step) or job.reason or "its turn", why=why
    )


def _made(layout: RunLayout, step: Step) -> StepStatus:
    try:
        why = damage(layout, step)
        if why is not None:
            return StepStatus(step, "failed", why=f"{why}: launch with --rebuild")
        stale = stale_parent(layout, step)
        if stale is not None:
            return StepStatus(step, "stale", why=f"made from another {stale} than the one that is there now")
        return _done(layout, step)
    except AndscaleError as error:
        return StepStatus(step, "failed", why=str(error))


def _done(layout: RunLayout, step: Step) -> StepStatus:
    manifests = [artifacts.load_manifest(layout.root / name, kind) for name, kind in outputs(layout, step).items()]
    figures: dict[str, Any] = {k: m.figures[k] for m in manifests for k in _FIGURES if k in m.figures}
    if step.kind == "evaluate":
        figures = {"accuracy": read_evaluation(layout.round(step.round_number).evaluation)[0]["accuracy"]}
    last = max(manifests, key=lambda manifest: manifest.created)
    return StepStatus(
        step,
        "done",
        since=_local_time(datetime.fromisoformat(last.created).timestamp()),
        seconds=max(manifest.seconds for manifest in manifests),
        figures=figures,
    )


def _running(layout: RunLayout, step: Step, job: LiveJob) -> StepStatus:
    logs = newest_logs(layout, step, job.job_id)
    progress = last_progress(logs[0]) if logs else None
    return StepStatus(
        step,
        "running",
        job=str(job),
        node=job.node or None,
        since=None if job.started_s is None else _local_time(job.started_s),
        doing=None if progress is None else progress.label,
        fraction=None if progress is None else round(progress.fraction, 4),
        rate=None if progress is None else progress.rate,
        seconds_left=None if progress is None else progress.seconds_left,
        log=str(logs[0]) if logs else None,
    )


def _from_disk_alone(layout: RunLayout, step: Step) -> StepStatus:
    """What the step's last job was doing, where nobody says whether it lives."""
    record = read_job_record(layout, step)
    job = None if record is None else LiveJob(record.cluster, record.job_id, True, record.host)
    logs = newest_logs(layout, step, None if job is None else job.job_id)
    if job is not None and logs and is_queued_again(logs[0]):
        return StepStatus(step, "waiting", job=str(job), waits_for="its turn, queued again", log=str(logs[0]))
    if job is None or failure_reason(logs) is not None:
        return _ended(layout, step)
    if not logs:
        return StepStatus(step, "waiting", job=str(job), waits_for=_needed(layout, step) or "its turn, as last known")
    if time.time() - logs[0].stat().st_mtime < _RECENT_S:
        return _running(layout, step, LiveJob(job.cluster, job.job_id, True))
    quiet = f"its log has been silent for {(time.time() - logs[0].stat().st_mtime) / 60:.0f} minutes"
    return StepStatus(step, "failed", job=str(job), why=f"perhaps: {quiet}", log=str(logs[0]))


def _ended(layout: RunLayout, step: Step) -> StepStatus:
    """A step without a job: one that failed has left a log."""
    logs = newest_logs(layout, step)
    record = read_job_record(layout, step)
    job = None if record is None else str(LiveJob(record.cluster, record.job_id, False))
    if not logs:
        why = f"{job} ended before it started" if job else None
        return StepStatus(step, "absent", job=job, why=why)
    why, log = culprit(logs[0].parent, logs[0].name.split("_")[0])
    return StepStatus(step, "failed", job=job, why=why, log=str(log))


def _needed(layout: RunLayout, step: Step) -> str:
    method = load_run(layout.root).config.method
    return ", ".join(
        str(needed)
        for needed in prerequisites(step)
        if needed in steps_of_round(needed.round_number, method) and not has_all_outputs(layout, needed)
    )


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
