"""A run's status, live: in place on a terminal, a line a change in a log."""

import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

from andscale.errors import RunError
from andscale.orchestration.reasons import WITHOUT_A_WORD
from andscale.orchestration.status import RunStatus, StepStatus, run_status
from andscale.orchestration.status_table import status_line, status_table
from andscale.spelling import spelt
from andscale.store.run_layout import RunLayout

_POLL_S = 2.0
_SETTLE_S = 6.0
_SEEN_LATE_S = 75.0
"""NFS remembers for up to a minute that a file was not there: a step may be done elsewhere and not seen to be."""
_INTERRUPTED = 130


def follow(root: Path, rounds: range | None = None, *, accept_stale: bool = False) -> None:
    """Show a run until all of its steps are done; Ctrl-C leaves, and the jobs go on.

    Args:
        root: the run's folder.
        rounds: which ones; None: all that have been launched.
        accept_stale: return when nothing but stale steps is left, too.

    Raises:
        RunError: a step failed, or was cancelled, and nothing goes on.
        SystemExit: Ctrl-C.
    """
    numbers = RunLayout(root).round_numbers()
    rounds = range(max(numbers, default=0) + 1) if rounds is None else rounds
    screen, still_since = Screen(sys.stdout), None
    try:
        while True:
            status = run_status(root, rounds)
            screen.show(status)
            if all(s.state == "done" or (accept_stale and s.state == "stale") for s in status.steps):
                return
            # a job that just ended may show its artefacts later, and a launcher may be at work
            now = time.monotonic()
            still_since = None if goes_on(status) else (still_since or now)
            if still_since is not None and now - still_since >= _time_to_settle(status):
                raise RunError(why_it_stands(status))
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        again = f"{spelt('status')} --run {root} --follow"
        print(f"\nleft; the jobs go on: {again} shows them again", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


def goes_on(status: RunStatus) -> bool:
    """Whether something may still change without the user."""
    if status.unseen or status.holder:
        return True
    return any(s.state == "running" or (s.state == "waiting" and s.why is None) for s in status.steps)


def _time_to_settle(status: RunStatus) -> float:
    silent = any(s.state == "failed" and (s.why or "").startswith(WITHOUT_A_WORD) for s in status.steps)
    return _SEEN_LATE_S if silent else _SETTLE_S


def why_it_stands(status: RunStatus) -> str:
    """The first failure; else what else keeps the run from being done."""
    for step in status.steps:
        if step.state == "failed":
            return f"{step.step} failed: {step.why}" + (f" (log: {step.log})" if step.log else "")
    for step in status.steps:
        if step.state == "stale":
            return f"{step.step} is stale, {step.why}: launch with --rebuild to make it again"
    first = next(step for step in status.steps if step.state != "done")
    return f"nothing runs any more, and {first.step} is not done{f' ({first.why})' if first.why else ''}: launch again"


class Screen:
    """Shows statuses one after the other."""

    def __init__(self, out: TextIO):
        self._out = out
        self._height = 0
        self._shown: dict[str, tuple[object, ...]] = {}
        self._unseen: str | None = None

    def show(self, status: RunStatus) -> None:
        """Draw over the last table, or write what changed."""
        if self._out.isatty():
            width = shutil.get_terminal_size().columns
            lines = [line[: width - 1] for line in status_table(status).splitlines()]
            up = f"\x1b[{self._height}F" if self._height else ""
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            self._height = len(lines)
        else:
            if status.unseen != self._unseen:
                self._out.write((status.unseen or "everything is seen again") + "\n")
                self._unseen = status.unseen
            for step in status.steps:
                if self._shown.get(str(step.step)) != _change(step):
                    self._shown[str(step.step)] = _change(step)
                    self._out.write(status_line(step) + "\n")
        self._out.flush()


def _change(step: StepStatus) -> tuple[object, ...]:
    """What is worth a line in a log: every tenth of a step, too."""
    tenth = None if step.fraction is None else int(10 * step.fraction)
    return step.state, step.job, step.node, step.why, step.waits_for, tenth
