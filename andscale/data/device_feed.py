"""How arrays and batches reach a device without the host waiting for it, and without the device waiting for them."""

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Label = TypeVar("Label")


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device; the host goes on at once.

    From ordinary memory the host would wait until the stream has come to the copy, behind all that was queued before:
    a step's products. From pinned memory it does not.

    Args:
        values: any shape and number type.
        device: on the CPU the tensor shares the array's memory.
    """
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def one_ahead(
    items: Iterator[tuple[Label, Tensor, Tensor]], stream: torch.cuda.Stream
) -> Iterator[tuple[Label, Tensor, Tensor]]:
    """The items of an iterator, each made on a stream of its own while the one before it is used.

    Args:
        items: all that making one of them queues on the device is queued within its ``next``.
        stream: where they are made; they are handed to the stream that is current where they are asked for.
    """
    ready: tuple[tuple[Label, Tensor, Tensor], torch.cuda.Event] | None = None
    while True:
        before, ready = ready, None
        with torch.cuda.stream(stream):
            for item in islice(items, 1):
                ready = item, stream.record_event()
        if before is not None:
            item, made = before
            user = torch.cuda.current_stream(stream.device)
            user.wait_event(made)
            for tensor in item[1:]:
                tensor.record_stream(user)  # its memory is given out again once the user's stream is through with it
            yield item
        if ready is None:
            return
