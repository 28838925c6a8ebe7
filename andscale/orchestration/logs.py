"""What the logs of a step's jobs say: how far, and why not further."""

import re
from dataclasses import dataclass
from pathlib import Path

from andscale.orchestration.reasons import ERROR_MARK
from andscale.orchestration.steps import Step
from andscale.store.run_layout import RunLayout

_TAIL_BYTES = 256 * 1024
_PROGRESS = re.compile(
    r"^(?P<label>.*?\S)\s+(?:⋯ +)?(?P<percent>\d+) % (?P<done>[\d,]+)/(?P<total>[\d,]+) "
    r"\[(?P<elapsed>[\d:]+) < (?P<left>[\d:]+)(?:, (?P<rate>[\d,]+ \S+/s))?"
)
_START = "Starting with JobEnvironment("
_QUEUED_AGAIN = re.compile(r"job \d+ is queued again$")
_EPOCH = re.compile(r"epoch (\d+)/(\d+)")


@dataclass(frozen=True)
class StepProgress:
    """The last progress line of a log.

    Attributes:
        label: what is being done.
        fraction: of the whole training in training, of what ``label`` says elsewhere.
        rate: with its unit, ``1,234 images/s``; None where none is given.
        seconds_left: of what ``fraction`` is a fraction of.
    """

    label: str
    fraction: float
    rate: str | None
    seconds_left: float


def newest_logs(layout: RunLayout, step: Step, job_id: str | None = None) -> list[Path]:
    """The logs of all ranks of one job, rank 0's first; of the job that wrote last where none is named."""
    paths = list(layout.round(step.round_number).logs(step.kind).glob(f"{job_id or '*'}_*_log.out"))
    if not paths:
        return []
    newest = job_id or max(paths, key=lambda path: path.stat().st_mtime).name.split("_")[0]
    of_job = [path for path in paths if path.name.startswith(f"{newest}_")]
    return sorted(of_job, key=lambda path: int(path.name.split("_")[1]))


def last_progress(path: Path) -> StepProgress | None:
    """How far a job is, as its log says."""
    for line in reversed(_tail(path)):
        found = _PROGRESS.match(line)
        if found is None:
            continue
        done, total = (int(found[name].replace(",", "")) for name in ("done", "total"))
        fraction = min(done / total, 1.0) if total else 1.0
        left = _seconds(found["left"])
        epoch = _EPOCH.search(found["label"])
        if epoch is not None:
            number, last = int(epoch[1]), int(epoch[2])
            left += (last - number) * (_seconds(found["elapsed"]) + left)
            fraction = (number - 1 + fraction) / last
        return StepProgress(found["label"], fraction, found["rate"], left)
    return None


def failure_reason(paths: list[Path]) -> str | None:
    """The line of any rank's log that says why the job failed; None where none does."""
    for path in paths:
        for line in reversed(_tail(path)):
            if line.startswith(ERROR_MARK):
                return line.removeprefix(ERROR_MARK)
    return None


def is_queued_again(path: Path) -> bool:
    """Whether the last thing that a job said is that it put itself back into the queue."""
    return any(_QUEUED_AGAIN.match(line) for line in _tail(path)[-5:])


def _tail(path: Path) -> list[str]:
    """The end of a log, of the last attempt only: a job that is queued again writes on."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    starts = [number for number, line in enumerate(lines) if _START in line]
    return lines[starts[-1] :] if starts else lines


def _seconds(clock: str) -> float:
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds
