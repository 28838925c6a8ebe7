"""Stopping by a signal: noted by whichever rank it hits, agreed on by all ranks between two steps."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from andscale.distributed import World, start_all_reduce_max
from andscale.errors import RunError


class Request(IntEnum):
    """What a signal asks for; where ranks heard different ones, the largest counts."""

    GO_ON = 0
    STOP = 1
    REQUEUE = 2


_MEANINGS = {
    signal.SIGTERM: Request.STOP,
    signal.SIGINT: Request.STOP,
    signal.SIGUSR2: Request.REQUEUE,  # Slurm's warning before the time limit or a preemption
}


class StoppedError(RunError):
    """Training was stopped by a signal; all ranks have saved a checkpoint.

    Attributes:
        request: what the signal asked for.
    """

    def __init__(self, where: str, request: Request):
        super().__init__(f"stopped at {where}; the same command goes on from there")
        self.request = request


class StopSignals:
    """What this rank heard; its handlers note it and do nothing else."""

    def __init__(self) -> None:
        self.heard = Request.GO_ON

    def install(self) -> None:
        """Handle the signals from here on, instead of whoever did: submitit saves in a handler, on rank 0 alone."""
        for number in _MEANINGS:
            signal.signal(number, self._note)

    @contextmanager
    def installed(self) -> Iterator["StopSignals"]:
        """Handle the signals within the block."""
        before = {number: signal.getsignal(number) for number in _MEANINGS}
        self.install()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.heard = max(self.heard, _MEANINGS[signal.Signals(number)])


class StepBoundary:
    """What all ranks do between two steps: go on, save, or save and stop.

    Every rank says at the beginning of a step what it wants, and hears at its end what all of them decided: the message
    travels while the step computes, and nobody waits for it. It travels through gloo, on GPU jobs too, so that a
    rank that died is noticed within a step there as well.

    Args:
        world: this rank.
        signals: what it heard.
        checkpoint_min: minutes between checkpoints, by the clock of rank 0.

    Attributes:
        request: what was decided so far.
    """

    def __init__(self, world: World, signals: StopSignals, checkpoint_min: float):
        self.request = Request.GO_ON
        self._world, self._signals, self._interval_s = world, signals, 60 * checkpoint_min
        self._saved = time.monotonic()

    def start(self) -> None:
        """A step begins."""
        import torch

        is_due = self._world.is_main and time.monotonic() - self._saved >= self._interval_s
        self._message = torch.tensor([self._signals.heard, is_due])
        self._wait = start_all_reduce_max(self._message)

    def end(self) -> bool:
        """The step is over: whether all ranks save now, and then call ``saved``."""
        self._wait()
        request, is_due = self._message.tolist()
        self.request = max(self.request, Request(request))
        return bool(is_due) or self.request is not Request.GO_ON

    def saved(self, place: str) -> None:
        """All ranks have written a checkpoint of ``place``; StoppedError when that is where training ends."""
        self._saved = time.monotonic()
        if self.request is not Request.GO_ON:
            raise StoppedError(place, self.request)
