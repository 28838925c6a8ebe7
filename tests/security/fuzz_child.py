"""Mutates files of some formats and reads them, in a process of its own that a native crash may end.

    PYTHONPATH=.:tests python tests/security/fuzz_child.py GROUP SECONDS SEED FOLDER

Each format has so many seconds. A read must succeed, or raise an AndscaleError of one line that names the file; within
10 s and 6 GiB of addresses. ``FOLDER/case`` holds the bytes of the last case, ``FOLDER/what`` its format.
"""

import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fuzz_formats import Format, make
from fuzz_groups import GROUPS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from andscale.data import array_formats
from andscale.errors import AndscaleError, RunError
from andscale.indexing import faiss_index

_CASE_SECONDS = 10
_CASES = 40
_MEMORY_BYTES = 6 << 30
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]

edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
        st.tuples(
            st.just("put"),
            st.floats(0, 1),
            st.builds(
                lambda number, size, order: (number % (1 << 8 * size)).to_bytes(size, order),
                st.sampled_from(_NUMBERS),
                st.sampled_from([1, 2, 4, 8]),
                st.sampled_from(["little", "big"]),
            ),
        ),
        st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("delete"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 200)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
        st.tuples(st.just("head"), st.floats(0, 0.02), st.binary(min_size=1, max_size=2)),
        st.tuples(st.just("tail"), st.floats(0, 0.05), st.binary(min_size=1, max_size=2)),
    ),
    min_size=1,
    max_size=4,
)


def mutate(data: bytes, changes: list) -> bytes:
    """The bytes with the edits made, one after another."""
    for kind, where, what in changes:
        place = int(where * max(len(data) - 1, 0))
        if kind == "tail":
            place = max(len(data) - 1 - place, 0)
        match kind:
            case "flip":
                data = data[:place] + bytes([(data[place] if place < len(data) else 0) ^ 1 << what]) + data[place + 1 :]
            case "put" | "head" | "tail":
                data = data[:place] + what + data[place + len(what) :]
            case "insert":
                data = data[:place] + what + data[place:]
            case "delete":
                data = data[:place] + data[place + what :]
            case "repeat":
                data = data[: place + what] + data[place:]
            case "cut":
                data = data[:place]
    return data


def forked_rehearsal(reader: str, path: Path, *arguments: str, where: str | None = None, room_bytes: int = 0) -> None:
    """``rehearse`` without the start of an interpreter: the same reader, in a fork of this process."""
    module, _, name = reader.partition(":")
    function = getattr(import_module(module), name)
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(_CASE_SECONDS)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            function(str(path), *arguments)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RunError(f"{where or path} is refused by its rehearsal")


def check(form: Format, data: bytes) -> None:
    """Read one case; AssertionError when what comes is neither success nor a refusal of one line with the name."""
    form.path.write_bytes(data)
    signal.alarm(_CASE_SECONDS)
    try:
        form.read()
    except AndscaleError as error:
        text = str(error)
        assert form.named in text, f"the file is not named: {text}"
        assert len(text) < 5000, f"{len(text)} characters"
    finally:
        signal.alarm(0)


def fuzz(form: Format, original: bytes, case: Path, seconds: float, first_seed: int) -> int:
    """Mutate and read for so long; returns how many cases there were."""
    count = 0
    ends = time.monotonic() + seconds

    def run(changes: list) -> None:
        nonlocal count
        if time.monotonic() > ends:
            return
        count += 1
        data = mutate(original, changes)
        case.write_bytes(data)
        check(form, data)

    number = first_seed
    while time.monotonic() < ends:
        profile = settings(
            max_examples=_CASES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        once: Callable[[], None] = seed(number)(profile(given(edits)(run)))
        once()
        number += 1
    return count


def main(group: str, seconds: str, first_seed: str, folder: str) -> None:
    """Fuzz the formats of a group, one after another."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    array_formats.rehearse = forked_rehearsal
    faiss_index.rehearse = forked_rehearsal
    work = Path(folder)
    for name in GROUPS[group]:
        form = make(name, work / name.replace(" ", "_"))
        original = form.path.read_bytes()
        form.read()  # as it is, it can be read
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + _MEMORY_BYTES, resource.RLIM_INFINITY))
        (work / "what").write_text(name)
        count = fuzz(form, original, work / "case", float(seconds), int(first_seed))
        print(f"{name}: {count} cases", flush=True)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        shutil.rmtree(work / name.replace(" ", "_"))


if __name__ == "__main__":
    main(*sys.argv[1:])
