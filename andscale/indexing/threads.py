"""Plain threads around compiled functions, which run without the interpreter's lock."""

import itertools
import threading
from collections.abc import Callable


def in_threads(work: Callable[[], None], num_threads: int, on_error: Callable[[], None]) -> None:
    """Call ``work`` once in each of so many threads, this one among them, and raise the first error of any.

    Args:
        work: what each thread does.
        num_threads: at least 1.
        on_error: called by a thread that has failed, to make the others end.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            on_error()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(num_threads - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_turns(work: Callable[[int], None], num_turns: int, num_threads: int) -> None:
    """Call ``work(0)``, ``work(1)``, ... in so many threads, each turn by a thread that is free."""
    # next() of a count is one step under the interpreter's lock
    turns, failed = itertools.count(), threading.Event()

    def take_turns() -> None:
        for turn in turns:
            if turn >= num_turns or failed.is_set():
                return
            work(turn)

    in_threads(take_turns, num_threads, failed.set)
