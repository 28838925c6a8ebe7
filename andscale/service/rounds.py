"""Which round is served: the newest that is whole, swapped in while queries run."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from andscale.audit.subject import rounds_with_tables
from andscale.errors import AndscaleError
from andscale.service.problems import ProblemError
from andscale.service.snapshot import Snapshot, open_snapshot, open_table_only
from andscale.store import artifacts
from andscale.store.neighbourhoods import KIND
from andscale.store.run_layout import RoundLayout, RunLayout

_KEPT_TABLES = 4
_RETRY_S = 600.0
_LONGEST_RETRY_S = 4 * 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Refused:
    """A newer round that could not be opened: why, and how long it is left alone."""

    complaint: str
    since: float
    wait_s: float = _RETRY_S

    def rests(self) -> bool:
        return monotonic() - self.since < self.wait_s


class Rounds:
    """The current snapshot, and tables of other rounds on request.

    A request takes one snapshot and answers from it alone, so no answer mixes two rounds. A snapshot that was replaced
    lives until its last request has ended; its mapped files may be gone from their folder by then.

    Args:
        place: a run, or a folder that ``tools/discover.py`` wrote.
        current: opened already.
        known: see ``open_subject``.
        follows: whether newer rounds take over; false where one round was asked for.
    """

    def __init__(self, place: Path, current: Snapshot, known: Path | None = None, *, follows: bool = True):
        self.place, self.known = place, known
        self.current = current
        self.num_swaps = 0
        self.complaint = ""
        self.on_swap: Callable[[Snapshot], None] = lambda _: None
        self._follows = follows and current.round_number is not None
        self._tables: OrderedDict[int, Snapshot] = OrderedDict()
        self._refused: dict[int, _Refused] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def numbers(self) -> list[int]:
        """The rounds that can be asked for; the current one counts even where its folder is gone."""
        if self.current.round_number is None:
            return []
        return sorted({*rounds_with_tables(self.place), self.current.round_number})

    def take(self, round_number: int | None) -> Snapshot:
        """The current snapshot, or the table of another round; ProblemError where there is none."""
        current = self.current
        if round_number is None or round_number == current.round_number:
            return current
        with self._lock:
            if round_number in self._tables:
                self._tables.move_to_end(round_number)
                return self._tables[round_number]
            if round_number not in self.numbers():
                known = ", ".join(map(str, self.numbers())) or "none: this is one table"
                raise ProblemError(404, f"there is no round {round_number}; rounds: {known}")
            try:
                table = open_table_only(self.place, round_number, current, self.known)
            except AndscaleError as error:
                raise ProblemError(503, f"round {round_number} cannot be read: {error}") from None
            self._tables[round_number] = table
            while len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)
            return table

    def records(self) -> list[dict[str, Any]]:
        """What ``/v1/rounds`` says of each round, from manifests; without those that are damaged or just removed."""
        current, layout, found = self.current, RunLayout(self.place), []
        numbers: list[int | None] = [*self.numbers()]
        for number in numbers or [None]:
            manifest = current.subject.manifest
            if number != current.round_number and number is not None:
                try:
                    manifest = artifacts.load_manifest(layout.round(number).neighbourhoods, KIND)
                except AndscaleError:
                    continue
            figures = {name: manifest.figures.get(name) for name in ("num_samples", "num_neighbours", "num_anchors")}
            found.append({"round": number} | figures | {"created": manifest.created})
        return found

    def look(self) -> None:
        """Swap in the newest whole round if it is newer than the current one.

        One that is refused is tried again after ten minutes, then after twice as long each time, up to four hours:
        reading it costs much, and what refused it (memory, time, a file system) may pass.
        """
        if not self._follows:
            return
        layout, number = RunLayout(self.place), self.current.round_number
        assert number is not None
        gone = not _is_whole(layout.round(number))
        self.complaint = f"the files of round {number} are gone; it is served from what is open" if gone else ""
        newer_ones = [n for n in layout.round_numbers() if n > number and _is_whole(layout.round(n))]
        # one that is not there any more is being made again
        self._refused = {n: refused for n, refused in self._refused.items() if n in newer_ones}
        for newer in reversed(newer_ones):
            before = self._refused.get(newer)
            if before is not None and before.rests():
                self.complaint = before.complaint
                continue
            try:
                snapshot = open_snapshot(self.place, newer, self.known, before=self.current)
            except (AndscaleError, OSError) as error:
                self.complaint = f"round {newer} is not served: {error}"
                _log.warning("%s", self.complaint)
                if isinstance(error, AndscaleError):  # what the operating system says may pass sooner
                    wait_s = _RETRY_S if before is None else min(2 * before.wait_s, _LONGEST_RETRY_S)
                    self._refused[newer] = _Refused(self.complaint, monotonic(), wait_s)
                continue
            self.current, self.num_swaps, self.complaint = snapshot, self.num_swaps + 1, ""
            self.on_swap(snapshot)
            return

    def watch(self, interval_s: float) -> threading.Thread:
        """Look again and again in a thread, until ``close``."""

        def follow() -> None:
            while not self._ended.wait(interval_s):
                started = monotonic()
                try:
                    self.look()
                except Exception as error:  # whatever it was, queries go on and the next look may do better
                    self.complaint = f"newer rounds cannot be looked for: {error}"
                    _log.exception("%s", self.complaint)
                # opening a large round takes long; queries come first
                self._ended.wait(min(monotonic() - started, 60))

        thread = threading.Thread(target=follow, name="andscale-rounds", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """End the watching."""
        self._ended.set()


def _is_whole(folder: RoundLayout) -> bool:
    return artifacts.is_complete(folder.neighbourhoods) and artifacts.is_complete(folder.index)
