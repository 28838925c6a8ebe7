"""What a GPU's streams are told, on stand-ins for them: no GPU is needed to get their order wrong."""

import contextlib

import numpy as np
import torch

from andscale.data import device_feed


class Recorded:
    """A tensor, or a stream, that writes down what it is asked."""

    def __init__(self, name, calls):
        self.name, self.calls, self.device = name, calls, "cuda:0"

    def record_stream(self, stream):
        self.calls.append(f"{self.name} is kept for {stream.name}")

    def record_event(self):
        made = sum(call.startswith("make") for call in self.calls) - 1
        return f"event {made}"

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for {event}")


def test_a_batch_is_made_on_the_side_stream_and_waited_for_where_it_is_used(monkeypatch):
    calls, current = [], ["main"]
    side, main = Recorded("side", calls), Recorded("main", calls)

    @contextlib.contextmanager
    def on(stream):
        current.append(stream.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)

    def batches():
        for number in range(3):
            calls.append(f"make {number} on {current[-1]}")
            yield number, Recorded(f"ids {number}", calls), Recorded(f"images {number}", calls)

    for number, _, _ in device_feed.one_ahead(batches(), side):
        calls.append(f"use {number} on {current[-1]}")
    handed = [
        [f"main waits for event {n}", f"ids {n} is kept for main", f"images {n} is kept for main", f"use {n} on main"]
        for n in range(3)
    ]
    made = [f"make {n} on side" for n in range(3)]
    assert calls == [*made[:2], *handed[0], made[2], *handed[1], *handed[2]]


def test_on_the_cpu_an_array_is_not_copied():
    values = np.arange(3)
    assert device_feed.to_device(values, torch.device("cpu")).data_ptr() == values.ctypes.data
