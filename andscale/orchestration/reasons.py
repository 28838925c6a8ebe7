"""Why a job failed, in one line, from the logs of its ranks."""

from pathlib import Path

ERROR_MARK = "andscale error: "
"""Starts the line of a rank's log that says why the job failed."""
LOST_MARK = "andscale lost a rank: "
"""Starts the line of a rank that was well, and ended because another one was gone or did not answer."""

_START = "Starting with JobEnvironment("
"""Submitit's first line of every attempt; logs are appended to."""


def why_it_failed(folder: Path, job_id: str) -> str:
    """The reason of the rank that failed first, not of those that lost it; and the path of its log.

    Args:
        folder: of the step's logs.
        job_id: Slurm's number, or the local controller's process number.
    """
    logs = sorted(folder.glob(f"{job_id}_*_log.out"), key=_rank)
    attempts = {path: _last_attempt(path) for path in logs}
    for path, lines in attempts.items():
        said = _last_marked(lines, ERROR_MARK)
        if said is not None:
            return f"{said} (log: {path})"
    lost = {path: said for path, lines in attempts.items() if (said := _last_marked(lines, LOST_MARK)) is not None}
    silent = [path for path in logs if path not in lost]
    if lost and silent:
        names = ", ".join(str(_rank(path)) for path in silent)
        return (
            f"rank {names} was killed, or hung, without a word (is memory short?); {next(iter(lost.values()))} "
            f"(log: {silent[0]})"
        )
    if lost:
        path, said = next(iter(lost.items()))
        return f"{said} (log: {path})"
    first = folder / f"{job_id}_0_log.out"
    last = next((line for line in reversed(attempts.get(first, [])) if line.strip()), "it ended without a word")
    return f"{last} (log: {first})"


def _last_attempt(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if _START in line]
    return lines[starts[-1] :] if starts else lines


def _last_marked(lines: list[str], mark: str) -> str | None:
    return next((line.removeprefix(mark) for line in reversed(lines) if line.startswith(mark)), None)


def _rank(log: Path) -> int:
    return int(log.name.split("_")[-2])
