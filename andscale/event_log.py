"""TensorBoard's event files, beside the files that are the truth; written where the package tensorboard is there."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from andscale.store.files import errors_name

_FILE_NAME = "events.out.tfevents.andscale"
_VERSION = "brain.Event:2"


class EventLog:
    """Appends to the event file of one folder, which TensorBoard shows as one line of its figures.

    Each call opens, writes and closes the file, so a killed job leaves at most one cut record, which TensorBoard skips,
    and a full disk is an OSError with the file's name. Without the package nothing is written.

    Args:
        folder: ``runs/NAME/tensorboard/NAME-OF-THE-LINE``.
        enabled: false on every rank but 0.
    """

    def __init__(self, folder: Path, *, enabled: bool = True):
        self.path = folder / _FILE_NAME
        self.enabled = enabled and find_spec("tensorboard") is not None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by their tags, ``part/name``."""
        if self.enabled:
            from tensorboard.compat.proto.summary_pb2 import Summary

            tagged = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
            self._append(summary=Summary(value=tagged), step=step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """The distribution of (N,) numbers."""
        if self.enabled:
            from torch.utils.tensorboard.summary import histogram

            drawn = histogram(tag, values, bins=50)  # type: ignore[no-untyped-call]
            self._append(summary=drawn, step=step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """(H, W, 3) uint8."""
        if self.enabled:
            from torch.utils.tensorboard.summary import image

            drawn = image(tag, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
            self._append(summary=drawn, step=step)

    def forget_from(self, step: int) -> None:
        """Let TensorBoard drop what was written for ``step`` and later, because it is about to be written again."""
        if self.enabled and self.path.exists():
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._append(session_log=SessionLog(status=SessionLog.START), step=step)

    def _append(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with errors_name(self.path), self.path.open("ab") as file:
            records = RecordWriter(file)
            if not file.tell():
                records.write(Event(wall_time=now, file_version=_VERSION).SerializeToString())
            records.write(Event(wall_time=now, **content).SerializeToString())
            records.flush()
