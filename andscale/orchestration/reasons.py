"""Why a job failed, in one line, from the logs of its ranks."""

from pathlib import Path

ERROR_MARK = "andscale error: "
"""Starts the line of a rank's log that says why the job failed."""
LOST_MARK = "andscale lost a rank: "
"""Starts the line of a rank that was well, and ended because another one was gone or did not answer."""

WITHOUT_A_WORD = "it ended without a word"
"""Begins the reason where no rank's log says one: killed from outside, or done, and not seen to be so yet."""

_START = "Starting with JobEnvironment("
"""Submitit's first line of every attempt; logs are appended to."""


def why_it_failed(folder: Path, job_id: str) -> str:
    """What ``culprit`` finds, as one line."""
    reason, log = culprit(folder, job_id)
    return f"{reason} (log: {log})"


def culprit(folder: Path, job_id: str) -> tuple[str, Path]:
    """The reason of the rank that failed first, not of those that lost it; and its log.

    Args:
        folder: of the step's logs.
        job_id: Slurm's number, or the local controller's process number.
    """
    logs = sorted(folder.glob(f"{job_id}_*_log.out"), key=_rank)
    attempts = {path: _last_attempt(path) for path in logs}
    for path, lines in attempts.items():
        said = _last_marked(lines, ERROR_MARK)
        if said is not None:
            return said, path
    lost = {path: said for path, lines in attempts.items() if (said := _last_marked(lines, LOST_MARK)) is not None}
    silent = [path for path in logs if path not in lost]
    if lost and silent:
        names = ", ".join(str(_rank(path)) for path in silent)
        words = next(iter(lost.values()))
        return f"rank {names} was killed, or hung, without a word (is memory short?); {words}", silent[0]
    if lost:
        path, said = next(iter(lost.items()))
        return said, path
    first = folder / f"{job_id}_0_log.out"
    spoken = (line for line in reversed(attempts.get(first, [])) if line.strip() and not line.startswith("submitit "))
    last = next(spoken, None)
    return WITHOUT_A_WORD + (f", the last was: {last}" if last else ""), first


def _last_attempt(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if _START in line]
    return lines[starts[-1] :] if starts else lines


def _last_marked(lines: list[str], mark: str) -> str | None:
    return next((line.removeprefix(mark) for line in reversed(lines) if line.startswith(mark)), None)


def _rank(log: Path) -> int:
    return int(log.name.split("_")[-2])
