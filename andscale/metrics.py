"""Progress that a person can read, and metrics.jsonl that a program can."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from andscale.event_log import EventLog
from andscale.store.files import errors_name, write_file

_BAR_WIDTH = 28
_TERMINAL_INTERVAL_S = 0.1
_LOG_INTERVAL_S = 10.0
PROGRESS_MARK = " ⋯ "
"""Stands in every progress line that a log receives, so that a launcher can show such lines in place."""


class Progress:
    """A bar on a terminal, a line every ten seconds in a log, nothing when ``enabled`` is false; threads may share it.

    Args:
        label: what is being done.
        total: how many units there are.
        unit: what is counted, for the rate (``images``).
        enabled: false on every rank but 0.
        stream: standard error by default; results go to standard output.
        done: units that were done before; the rate is that of the others.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "",
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        done: int = 0,
    ):
        self.label, self.total, self.unit, self.enabled = label, total, unit, enabled
        self.stream = sys.stderr if stream is None else stream
        self.done = self._done_before = done
        self.note = ""
        self._is_terminal = self.stream.isatty()
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units; ``note`` stands at the end of the line."""
        with self._lock:
            self.done += count
            self.note = note or self.note
            now = time.monotonic()
            if now - self._shown >= (_TERMINAL_INTERVAL_S if self._is_terminal else _LOG_INTERVAL_S):
                self._shown = now
                self._show()

    def close(self) -> None:
        """Show the end state."""
        if self.done:
            self._show(last=True)

    def line(self) -> str:
        """The current state as one line."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        fraction = min(self.done / self.total, 1.0) if self.total else 1.0
        per_s = (self.done - self._done_before) / elapsed
        left = max(self.total - self.done, 0) / per_s if per_s > 0 else 0.0
        rate = f", {per_s:,.0f} {self.unit}/s" if self.unit else ""
        when = f"{_clock(elapsed)} < {_clock(left)}"
        note = f", {self.note}" if self.note else ""
        return f"{100 * fraction:3.0f} % {self.done:,}/{self.total:,} [{when}{rate}{note}]"

    def _show(self, *, last: bool = False) -> None:
        if not self.enabled:
            return
        if self._is_terminal:
            filled = round(_BAR_WIDTH * min(self.done / self.total, 1.0)) if self.total else _BAR_WIDTH
            bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
            self.stream.write(f"\r{self.label} {bar} {self.line()}\x1b[K" + ("\n" if last else ""))
        else:
            mark = " " if last else PROGRESS_MARK
            self.stream.write(f"{self.label}{mark}{self.line()}\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl``; a disabled log writes nothing.

    Every line is written with one call, so a killed job leaves at most one cut line at the end, which ``drop_after``
    removes when the job goes on.

    Args:
        path: ``metrics.jsonl``.
        events: where the numbers of each epoch go besides, as ``training/...``, for TensorBoard.
        enabled: false on every rank but 0.
    """

    def __init__(self, path: Path, events: EventLog | None = None, *, enabled: bool = True):
        self.path, self.events, self.enabled = path, events, enabled

    def write(self, **values: Any) -> None:
        """Append one record; ``time_s`` (seconds since the epoch) is added."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({**values, "time_s": round(time.time(), 3)})
        with errors_name(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.events is not None:
            numbers = {f"training/{name}": value for name, value in values.items() if name not in ("round", "epoch")}
            self.events.scalars(numbers, step=values["epoch"])

    def drop_after(self, epoch: int) -> None:
        """Keep the records of epochs before ``epoch`` only: those of a cut epoch are written again."""
        if not self.enabled or not self.path.exists():
            return
        kept = [r for r in read_metrics(self.path) if type(r.get("epoch")) is int and r["epoch"] < epoch]
        write_file(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        if self.events is not None:
            self.events.forget_from(epoch)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` up to the first line that is none: a cut last line is left out."""
    from andscale.store.files import parse_json

    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records
