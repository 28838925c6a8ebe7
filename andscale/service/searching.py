"""Concurrent searches reach FAISS together: one thread takes what has come and searches it at once."""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from andscale.service.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class _Wanted:
    snapshot: Snapshot
    queries: np.ndarray
    num_neighbours: int
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[tuple[np.ndarray, np.ndarray]]"

    def goes_with(self, other: "_Wanted") -> bool:
        """Whether its answer is the same when both are searched for the larger K."""
        if self.snapshot is not other.snapshot:
            return False
        return self.snapshot.has_flat_index or self.num_neighbours == other.num_neighbours


class BatchedSearch:
    """Searches in batches.

    What is waiting when the thread is free goes together, as long as it is for the same snapshot. So a batch is as
    large as the load, and a lone query does not wait for others. Kinds of index other than ``flat`` search harder for
    a larger K; of those, what goes together asks for the same K, or an answer would depend on who else asks.

    Args:
        most_queries: of a batch.
        observe: called with the number of queries of each batch.
    """

    def __init__(self, most_queries: int, observe: Callable[[int], None] = lambda _: None):
        self._most, self._observe = most_queries, observe
        self._queue: queue.SimpleQueue[_Wanted | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="andscale-search", daemon=True)
        self._thread.start()

    async def search(
        self, snapshot: Snapshot, queries: np.ndarray, num_neighbours: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The K most similar samples of each query.

        Args:
            snapshot: which round; it has an index.
            queries: (Q, D) float32.
            num_neighbours: K.

        Returns:
            (Q, K) float32 similarities; (Q, K) int64 ids.
        """
        loop = asyncio.get_running_loop()
        wanted = _Wanted(snapshot, queries, num_neighbours, loop, loop.create_future())
        self._queue.put(wanted)
        return await wanted.answer

    def close(self) -> None:
        """End the thread behind what is waiting."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[_Wanted] = []
        while True:
            if not waiting:
                first = self._queue.get()
                if first is None:
                    return
                waiting.append(first)
            while not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)
                    break
                waiting.append(more)
            together, waiting = self._split(waiting)
            self._answer(together)

    def _split(self, waiting: list[_Wanted]) -> tuple[list[_Wanted], list[_Wanted]]:
        """Those that are searched now, and the others in their order."""
        together: list[_Wanted] = []
        others: list[_Wanted] = []
        count = 0
        for wanted in waiting:
            fits = count + len(wanted.queries) <= self._most or not together
            # the first is always among them, so nothing that is overtaken waits for ever
            if wanted.goes_with(waiting[0]) and fits:
                together.append(wanted)
                count += len(wanted.queries)
            else:
                others.append(wanted)
        return together, others

    def _answer(self, together: list[_Wanted]) -> None:
        most = max(wanted.num_neighbours for wanted in together)
        queries = np.concatenate([wanted.queries for wanted in together])
        self._observe(len(queries))
        try:
            similarities, ids = together[0].snapshot.search(queries, most)
        except Exception as error:  # whoever waits gets it
            for wanted in together:
                wanted.loop.call_soon_threadsafe(_fail, wanted.answer, error)
            return
        start = 0
        for wanted in together:
            rows, count = slice(start, start + len(wanted.queries)), wanted.num_neighbours
            start = rows.stop
            found = similarities[rows, :count], ids[rows, :count]
            wanted.loop.call_soon_threadsafe(_succeed, wanted.answer, found)


def _succeed(answer: "asyncio.Future[tuple[np.ndarray, np.ndarray]]", found: tuple[np.ndarray, np.ndarray]) -> None:
    if not answer.done():  # the client may be gone
        answer.set_result(found)


def _fail(answer: "asyncio.Future[tuple[np.ndarray, np.ndarray]]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
