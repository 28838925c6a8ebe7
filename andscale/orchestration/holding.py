"""One launcher a run: who holds it, on this host or another, without any lock of the file system's.

``launcher/000007.json`` is made by the seventh holder with O_EXCL, so by one alone; the highest number holds the run.
A holder writes a heartbeat into its file, and "released" at its end. Who finds it released, or gone, makes the next
number. Nobody takes a live file away, so a late look can at worst make a number that was passed already; whoever did
that sees the higher one and withdraws.

Gone is: on the same host, no such process; on another one, a heartbeat that did not change for ``GONE_S`` on the
clock of the one who looks. What the two hosts' clocks show does not matter.
"""

import contextlib
import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from andscale.errors import RunError, UsageError
from andscale.store.run_layout import RunLayout

HEARTBEAT_S = 2.0
GONE_S = 30.0
_LOOK_S = 0.2
_RELEASED = "released"


class Hold:
    """This process's hold on a run; ``check`` it before anything that two launchers must not both do."""

    def __init__(self, path: Path, descriptor: int, values: dict[str, Any]):
        self.path, self._descriptor, self._values = path, descriptor, values
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Hold":
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._write(_RELEASED)
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise RunError when another launcher took this one for gone, after it was suspended for long."""
        if _newest(self.path.parent) != self.path:
            raise RunError(f"{self.path.parent.parent} was taken over while this launcher stood still: launch again")

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(HEARTBEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # a full or absent file system may come back
                self._write(beat)

    def _write(self, beat: int | str) -> None:
        # in place, by the descriptor: a file that was cleared away stays away; padded, so that no length changes
        text = json.dumps(self._values | {"heartbeat": beat}).ljust(1023) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)


@contextlib.contextmanager
def hold_run(layout: RunLayout) -> Iterator[Hold]:
    """Hold the run for this launcher; one on another host is watched for up to ``GONE_S`` before it counts as gone.

    Raises:
        RunError: another launcher holds it; the text says who, where and since when.
        UsageError: nothing can be written there.
    """
    folder = layout.root / "launcher"
    with _take(folder, layout.root) as hold:
        for old in _numbered(folder):
            if old < hold.path:
                old.unlink(missing_ok=True)
        yield hold


def holder_of(root: Path) -> str | None:
    """Who holds a run, in words, as its file says and without waiting; None where nobody does."""
    newest = _newest(root / "launcher")
    values = None if newest is None else _read(newest)
    if not values or values.get("heartbeat") == _RELEASED or _is_gone_here(values):
        return None
    return describe_holder(values)


def describe_holder(values: dict[str, Any]) -> str:
    """``process 12 on HOST by USER since ...``, as far as it is known."""
    if "pid" not in values:
        return "it has not said who it is yet"
    job = f", Slurm job {values['slurm_job']}" if values.get("slurm_job") else ""
    return f"process {values['pid']} on {values['host']} by {values['user']}{job} since {values['since']}"


def _take(folder: Path, root: Path) -> Hold:
    while True:
        newest = _newest(folder)
        if newest is not None:
            _wait_until_free(newest, root)
        number = 1 if newest is None else int(newest.stem) + 1
        path = folder / f"{number:06d}.json"
        try:
            folder.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            continue  # another one was faster: see who it is
        except OSError as error:
            raise UsageError(
                f"cannot write in {folder} ({error.strerror}): launch where the run can be written"
            ) from None
        if _newest(folder) == path:
            return Hold(path, descriptor, _identity())
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _wait_until_free(path: Path, root: Path) -> None:
    """Return once the holder is gone or has released; RunError as soon as it is known to live."""
    first, deadline = _read(path), time.monotonic() + GONE_S
    while True:
        values = _read(path)
        if values is None or values.get("heartbeat") == _RELEASED or _is_gone_here(values):
            return
        if _lives_here(values) or values.get("heartbeat") != (first or {}).get("heartbeat"):
            raise RunError(f"{root} is held by another launcher: {describe_holder(values)}")
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_S)


def _identity() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started_s": psutil.Process().create_time(),
        "user": _user(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%F %T"),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return f"user {os.getuid()}"


def _machine() -> str:
    """What process numbers are unique in: a boot of a machine and, in containers, the process name space."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _process_here(values: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(values["pid"])
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None


def _is_gone_here(values: dict[str, Any]) -> bool:
    return values.get("machine") == _machine() and _process_here(values) is None


def _lives_here(values: dict[str, Any]) -> bool:
    """Whether it certainly lives; a number that was given anew, or a clock that was set, leaves it to the heartbeat."""
    process = _process_here(values) if values.get("machine") == _machine() else None
    return process is not None and abs(process.create_time() - values["started_s"]) < 1


def _read(path: Path) -> dict[str, Any] | None:
    """What the holder wrote; {} where it has written nothing yet, None where the file is gone."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.stem.isdecimal()]


def _newest(folder: Path) -> Path | None:
    return max(_numbered(folder), key=lambda path: int(path.stem), default=None)
