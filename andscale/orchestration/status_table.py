"""A run's status for eyes: a table, and lines for a log."""

from typing import Any

from andscale.orchestration.status import RunStatus, StepStatus

_HEADER = ("step", "state", "job", "node", "done", "rate", "left", "")


def status_table(status: RunStatus) -> str:
    """One line a step, what could not be seen above it."""
    rows = [_HEADER, *(_row(step) for step in status.steps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths[:-1]))
    notes = [f"launching now: {status.holder}"] if status.holder else []
    notes += [status.unseen] if status.unseen else []
    return "\n".join([str(status.root), *notes, *lines])


def status_line(step: StepStatus) -> str:
    """One step in one line, without columns."""
    return " ".join(" ".join(cell for cell in _row(step) if cell).split())


def _row(step: StepStatus) -> tuple[str, ...]:
    return (
        str(step.step),
        step.state,
        step.job or "",
        step.node or "",
        "" if step.fraction is None else f"{100 * step.fraction:.0f} %",
        step.rate or "",
        "" if step.seconds_left is None else _duration(step.seconds_left),
        _note(step),
    )


def _note(step: StepStatus) -> str:
    match step.state:
        case "waiting":
            return f"for {step.waits_for}" + (f": {step.why}" if step.why else "")
        case "running":
            return ", ".join(part for part in (step.since and f"since {step.since}", step.doing) if part)
        case "done":
            figures = "".join(f", {name} {_figure(value)}" for name, value in (step.figures or {}).items())
            return f"{step.since}, {_duration(step.seconds or 0)}{figures}"
        case _:
            return (step.why or "") + (f" (log: {step.log})" if step.log else "")


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
