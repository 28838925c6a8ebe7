"""Kills a writer at each of its calls to the file system, one after the other."""

import os
from pathlib import Path

_CALLS = ((os, "fsync"), (os, "open"), (Path, "rename"), (Path, "write_bytes"), (Path, "mkdir"), (Path, "unlink"))


def crash_at_every_call(write, check):
    """Run ``write`` in children that die at the first, second, ... call; ``check`` looks at what each left behind.

    Returns how many children died before one finished.
    """
    for deaths in range(1000):
        child = os.fork()
        if child == 0:
            _die_at(deaths)
            try:
                write()
            except BaseException:
                os._exit(3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9), f"the writer failed by itself after {deaths} calls"
        check()
        if status == 0:
            return deaths
    raise AssertionError("the writer never finished")


def _die_at(number):
    left = [number]

    def dying(original):
        def call(*args, **kwargs):
            if left[0] == 0:
                if original.__name__ == "write_bytes":  # in the middle of the file
                    original(args[0], args[1][: len(args[1]) // 2])
                os._exit(9)
            left[0] -= 1
            return original(*args, **kwargs)

        return call

    for owner, name in _CALLS:
        setattr(owner, name, dying(getattr(owner, name)))
