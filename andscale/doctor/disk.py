"""The run's folder: room, speed, locks and renames; shared memory and open files."""

import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from andscale.doctor.finding import Finding, ok, problem, warning

_GIB = 2**30
_LEAST_ROOM = 2 * _GIB
_GOOD_ROOM = 20 * _GIB
_WRITTEN_BYTES = 64 << 20
_SLOW_BYTES_PER_S = 30e6
_SLOW_SYNC_S = 0.2
_MAX_SKEW_S = 5.0
_LEAST_SHARED = _GIB
_LEAST_FILES = 1024
_ELSEWHERE = "choose a folder on another file system for the run"


def check_folder(folder: Path) -> Iterator[Finding]:
    """The file system that ``folder`` is, or would be, on; what is written there is removed again."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    yield judge_room(place, shutil.disk_usage(place).free)
    trial = place / f".andscale-doctor-{secrets.token_hex(8)}"
    try:
        trial.mkdir()
    except OSError as error:
        yield problem("disk", f"cannot write in {place} ({error.strerror})", "mend its permissions, or choose another")
        return
    try:
        yield _speed(trial)
        yield _renames(trial)
        yield _locks(trial)
        yield _clock(trial)
    except OSError as error:
        yield problem("disk", f"{place} fails: {error.strerror}", _ELSEWHERE)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def judge_room(place: Path, free: int) -> Finding:
    """Bytes that are free against what runs take."""
    text = f"{free / _GIB:,.1f} GiB are free at {place}"
    if free < _LEAST_ROOM:
        return problem("disk room", text, "make room: a small run takes 2 GiB")
    if free < _GOOD_ROOM:
        return warning("disk room", text, "make room: a round of ImageNet takes some 3 GiB with its checkpoints")
    return ok("disk room", text)


def _speed(trial: Path) -> Finding:
    data = os.urandom(1 << 20)
    started = time.monotonic()
    with (trial / "speed").open("wb") as file:
        for _ in range(_WRITTEN_BYTES // len(data)):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        per_s = _WRITTEN_BYTES / (time.monotonic() - started)
        syncs = []
        for _ in range(5):
            started = time.monotonic()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            syncs.append(time.monotonic() - started)
    return judge_speed(per_s, sorted(syncs)[2])


def judge_speed(bytes_per_s: float, sync_s: float) -> Finding:
    """How fast bytes reach the disk, and how long one flush takes."""
    text = f"{bytes_per_s / 1e6:,.0f} MB/s written and flushed, {1e3 * sync_s:.1f} ms a flush"
    if bytes_per_s < _SLOW_BYTES_PER_S or sync_s > _SLOW_SYNC_S:
        return warning("disk speed", text, f"checkpoints will take long: {_ELSEWHERE}")
    return ok("disk speed", text)


def _renames(trial: Path) -> Finding:
    """Publication relies on it: a folder appears by one rename, and never over another that holds something."""
    for name in ("new", "old"):
        (trial / name).mkdir()
        (trial / name / "file").write_text(name)
    descriptor = os.open(trial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        (trial / "new").rename(trial / "old")
        return problem("disk renames", "a folder can be renamed over one that is not empty", _ELSEWHERE)
    (trial / "new").rename(trial / "appeared")
    (trial / "a").write_text("a")
    (trial / "b").write_text("b")
    (trial / "a").rename(trial / "b")
    if (trial / "b").read_text() != "a" or (trial / "new").exists() or not (trial / "appeared" / "file").exists():
        return problem("disk renames", "a rename does not do what it says", _ELSEWHERE)
    os.close(os.open(trial / "only", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(trial / "only", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return problem("disk renames", "a file that must be new can be made twice", _ELSEWHERE)
    return ok("disk renames", "files and folders appear by one rename, and new ones once")


def _locks(trial: Path) -> Finding:
    with (trial / "lock").open("w") as first, (trial / "lock").open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "launch a run from one host at a time"
            return warning("disk locks", f"there are none here ({error.strerror})", fix)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ok("disk locks", "a held lock is respected")
        return warning("disk locks", "a lock can be held twice", "launch a run from one host at a time")


def _clock(trial: Path) -> Finding:
    path = trial / "clock"
    path.write_text("x")
    return judge_clock(path.stat().st_mtime - time.time())


def judge_clock(ahead_s: float) -> Finding:
    """The file system's clock against this machine's."""
    if abs(ahead_s) > _MAX_SKEW_S:
        text = f"the file server's is {ahead_s:+.0f} s off this machine's"
        return warning("clocks", text, "set both by NTP: ages of files are compared between hosts")
    return ok("clocks", "the file system's and this machine's agree")


def check_shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """What ranks of one node exchange data through."""
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return warning("shared memory", f"{place}: {error.strerror}", "mount a tmpfs there")
    return judge_shared_memory(place, usage.total, usage.free)


def judge_shared_memory(place: Path, total: int, free: int) -> Finding:
    """Containers have 64 MiB of it unless told otherwise."""
    text = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free at {place}"
    if free < _LEAST_SHARED:
        return warning("shared memory", text, "NCCL and gloo need more: --shm-size=8g for containers")
    return ok("shared memory", text)


def check_open_files() -> Finding:
    """How many files one process may hold open; a run raises its own limit to the hard one."""
    return judge_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def judge_open_files(hard: int) -> Finding:
    """Shards stay open, each of them once a process."""
    if hard == resource.RLIM_INFINITY:
        return ok("open files", "no limit a process")
    text = f"{hard:,} a process: a data set may have nearly as many shards"
    if hard < _LEAST_FILES:
        fix = f"have the hard limit raised to {_LEAST_FILES * 8} (ulimit -Hn, limits.conf), or prepare larger shards"
        return warning("open files", text, fix)
    return ok("open files", text)
