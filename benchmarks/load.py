"""A load on an HTTP server: requests at a fixed rate, or as many as go, over connections that are kept."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_ROUND = re.compile(rb'^\{"round": ?(\d+)')


@dataclass
class Load:
    """What came of it.

    Attributes:
        seconds: of each answer, from when it was due, so that a server that stalls pays for those who wait.
        statuses: answers by status; 0: none came.
        rounds: answers by the round that they are from.
        took_s: the whole.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)
    took_s: float = 0.0

    @property
    def num_errors(self) -> int:
        """Answers other than 200, and none."""
        return sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.statuses[200] / self.took_s

    def milliseconds(self, quantile: float) -> float:
        """A quantile of the seconds, in ms."""
        return float(np.quantile(self.seconds, quantile)) * 1000


async def put_load(
    address: tuple[str, int], request: Callable[[int], bytes], duration_s: float, connections: int, rate: float | None
) -> Load:
    """Send ``request(0)``, ``request(1)``, ... for so many seconds.

    Args:
        address: host and port.
        request: the n-th request, all its bytes.
        duration_s: seconds.
        connections: at a time; each sends its next request when the last one was answered.
        rate: requests a second, evenly spread; None: as many as go.
    """
    load, numbers = Load(), iter(range(1 << 62))
    started = time.perf_counter()
    end = started + duration_s

    async def one_connection() -> None:
        reader, writer = await asyncio.open_connection(*address)
        while True:
            number = next(numbers)
            due = time.perf_counter() if rate is None else started + number / rate
            if due >= end or time.perf_counter() >= end + duration_s:
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            try:
                status, body = await _ask(reader, writer, request(number))
            except (OSError, asyncio.IncompleteReadError):
                load.statuses[0] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(*address)
                continue
            load.seconds.append(time.perf_counter() - due)
            load.statuses[status] += 1
            if found := _ROUND.match(body):
                load.rounds[int(found[1])] += 1
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(connections)))
    load.took_s = time.perf_counter() - started
    if rate is not None:  # a server that is too slow is not waited for for ever
        load.statuses[0] += max(0, int(rate * duration_s) - load.statuses.total())
    return load


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)
