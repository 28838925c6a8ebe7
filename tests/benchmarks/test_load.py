import asyncio
import time

from andscale.service.snapshot import open_snapshot
from benchmarks.load import put_load
from benchmarks.service_run import bring, make_run


async def _against(answers, **load):
    """Put a load on a server that gives each request the next of ``answers``."""
    waiting = iter(answers)

    async def serve(reader, writer):
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            status, body = next(waiting, (200, b'{"round": 1}'))
            if status is None:
                break
            if status == "slow":
                time.sleep(body)  # the whole server stalls
                status, body = 200, b'{"round": 2}'
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        return await put_load(address, lambda n: b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n, **load)


def test_refusals_and_lost_connections_are_errors_and_rounds_are_counted():
    answers = [(200, b'{"round": 3, "x": 1}'), (503, b""), (None, b""), (200, b'{"round":4}')]
    load = asyncio.run(_against(answers, duration_s=0.3, connections=1, rate=100))
    assert (load.statuses[503], load.statuses[0], load.num_errors) == (1, 1, 2)
    assert (load.rounds[3], load.rounds[4]) == (1, 1)


def test_those_who_wait_for_a_server_that_stalls_are_counted_from_when_they_were_due():
    load = asyncio.run(_against([("slow", 0.5)], duration_s=0.6, connections=1, rate=100))
    assert load.statuses.total() == 60
    assert load.milliseconds(0.5) > 100  # half of them were due during the stall


def test_the_run_to_serve_opens_and_its_rounds_come_one_by_one(tmp_path):
    layout = make_run(tmp_path / "bench", 2000, "flat", 2)
    assert layout.round_numbers() == [1]
    first = open_snapshot(layout.root, None)
    bring(layout, 2)
    second = open_snapshot(layout.root, None, before=first)
    assert (first.round_number, second.round_number, len(second)) == (1, 2, 2000)
    assert second.stats["index_kind"] == "flat"
    assert make_run(tmp_path / "bench", 2000, "flat", 2).round_numbers() == [1]


def test_what_a_slow_server_was_never_asked_counts_as_unanswered():
    load = asyncio.run(_against([("slow", 0.1)] * 50, duration_s=0.4, connections=1, rate=100))
    assert load.statuses.total() == 40
    assert load.statuses[0] == load.num_errors >= 30
