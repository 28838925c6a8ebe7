"""Which share of a step goes where, from a handful of timed steps an epoch."""

import time
from typing import Any

import torch

PARTS = ("data_wait", "forward", "objective", "backward", "optimizer")
"""In the order in which a step has them; ``optimizer`` includes the memory update. Collectives count where they are:
the gathering of features under ``objective``, the all-reduce of gradients under ``backward``."""

_TIMED_STEPS = 16


class PartClock:
    """Times the parts of some steps of an epoch, each in the middle of its share; on GPUs by events: nothing waits.

    The first step, which starts the reader, would otherwise stand for a sixteenth of a long epoch.

    Args:
        device: where the steps run.
        num_steps: of the epoch.
    """

    def __init__(self, device: torch.device, num_steps: int):
        self._on_gpu = device.type == "cuda"
        self._timed = {num_steps * (2 * i + 1) // (2 * _TIMED_STEPS) for i in range(_TIMED_STEPS)}
        self._spans: list[tuple[str, Any, Any]] = []
        self._last: Any = None

    def start(self, step: int) -> None:
        """The step before ``step`` is over; from here the clock waits for data."""
        self._last = self._now() if step in self._timed else None

    def mark(self, part: str) -> None:
        """A part of the step ends here; micro-batches mark theirs again and again."""
        if self._last is not None:
            now = self._now()
            self._spans.append((part, self._last, now))
            self._last = now

    def fractions(self) -> dict[str, float]:
        """``PART_fraction`` of the timed steps' time, in the order of PARTS; their sum is 1. On GPUs the host waits."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self._spans:
            if self._on_gpu:
                end.synchronize()
            seconds[part] += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
        total = sum(seconds.values()) or 1.0
        return {f"{part}_fraction": round(spent / total, 4) for part, spent in seconds.items()}

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def describe_fractions(fractions: dict[str, float]) -> str:
    """``data wait 4 %, forward 22 %, ...`` for people."""
    names = {f"{part}_fraction": part.replace("_", " ") for part in PARTS}
    return ", ".join(f"{names[key]} {100 * share:.0f} %" for key, share in fractions.items())
