"""Rounds that come and go under a running service, batches, concurrency, the client, the command."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service_runs import QUICK, client, server

from andscale.audit.subject import load_features, open_subject
from andscale.client import NeighbourhoodClient, NeighbourhoodError
from andscale.service.searching import BatchedSearch
from andscale.service.serve import ServeRequest, build_app
from andscale.store.run_layout import RunLayout
from whole_runs import ROOT


@pytest.fixture
def growing(served_run, tmp_path):
    """A copy of the run in which round 2 is not there yet, and a function that publishes it."""
    root = tmp_path / "growing"
    shutil.copytree(served_run.root, root)
    layout = RunLayout(root)
    aside = tmp_path / "aside"
    layout.round(2).root.rename(aside)

    def publish():
        aside.rename(layout.round(2).root)

    return layout, publish


def test_no_answer_mixes_two_rounds_while_one_takes_over(growing, served_run):
    layout, publish = growing
    tables = {number: open_subject(served_run.root, number).table for number in (1, 2)}
    features = {number: load_features(open_subject(served_run.root, number)) for number in (1, 2)}
    similar = {number: f.astype(np.float64) @ f.T for number, f in features.items()}
    seen, ended = set(), threading.Event()

    def ask(url, seed):
        asking, rng, count = NeighbourhoodClient(url), np.random.default_rng(seed), 0
        while not ended.is_set() or count < 20:
            sample_id = int(rng.integers(143))
            few, many = asking.neighbours(sample_id), asking.neighbours(sample_id, k=9)
            (found,) = asking.search(features[2][sample_id], k=3)
            for answer, k in ((few, 3), (many, 9), (found, 3)):
                (number,) = {n.round for n in answer}
                assert len(answer) == k
                for n in answer:
                    assert n.entropy == pytest.approx(float(tables[number].entropies[n.sample_id]))
                seen.add(number)
            (number,) = {n.round for n in many}
            np.testing.assert_allclose(
                [n.similarity for n in many], similar[number][sample_id, [n.sample_id for n in many]], atol=1e-5
            )
            count += 1
        return count

    with server(layout.root, look_s=0.05) as (url, app), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, url, seed) for seed in range(4)]
        time.sleep(0.3)
        publish()
        deadline = time.monotonic() + 60
        while app.service.rounds.current.round_number != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        ended.set()
        assert all(job.result() >= 20 for job in asked)
        assert NeighbourhoodClient(url).stats()["round"] == 2
    assert seen == {1, 2}


def test_a_round_that_is_deleted_is_served_on_and_the_health_says_so(growing):
    layout, _ = growing
    with client(layout.root) as calling:
        before = calling.get("/v1/neighbours/7?k=9").json()
        shutil.rmtree(layout.round(1).root)
        calling.service.rounds.look()
        assert calling.get("/v1/neighbours/7?k=9").json() == before
        assert calling.get("/healthz").json()["complaint"].startswith("the files of round 1 are gone")
        assert calling.get("/v1/rounds").json()["current"] == 1


@pytest.mark.parametrize("what", ["neighbourhoods/*.parquet", "index/index.faiss"])
def test_a_damaged_round_does_not_take_over_and_a_mended_one_does(growing, served_run, what):
    layout, publish = growing
    with client(layout.root) as calling:
        publish()
        (path,) = layout.round(2).root.glob(what)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        for _ in range(2):
            calling.service.rounds.look()
            health = calling.get("/healthz").json()
            assert health["round"] == 1
            assert health["complaint"].startswith("round 2 is not served: ")
            assert path.name in health["complaint"]
        if what.startswith("neighbourhoods"):
            answer = calling.get("/v1/samples/1?round=2")
            assert (answer.status_code, "round 2 cannot be read" in answer.json()["detail"]) == (503, True)
        shutil.rmtree(layout.round(2).root)
        calling.service.rounds.look()
        shutil.copytree(served_run.round(2).root, layout.round(2).root)
        calling.service.rounds.look()
        assert calling.get("/healthz").json() == {"status": "ok", "round": 2, "complaint": None}
        assert "andscale_swaps_total 1.0" in calling.get("/metrics").text


def test_a_round_that_was_asked_for_stays(served_run):
    with client(served_run.root, round_number=1) as calling:
        calling.service.rounds.look()
        assert calling.get("/v1/neighbours/7").json()["round"] == 1


class _Index:
    """A snapshot whose searches can be held up."""

    def __init__(self, has_flat_index=True):
        self.free = threading.Event()
        self.batches = []
        self.counts = []
        self.has_flat_index = has_flat_index

    def search(self, queries, count):
        self.free.wait(20)
        self.batches.append(len(queries))
        self.counts.append(count)
        if np.isnan(queries).any():
            raise RuntimeError("not a number")
        ids = np.tile(np.arange(count), (len(queries), 1)) + queries[:, :1].astype(int) * 1000
        return ids.astype(np.float32), ids


def test_what_waits_is_searched_together_and_each_gets_its_own_answer():
    first, second = _Index(), _Index()
    search = BatchedSearch(8)

    async def ask():
        waiting = [asyncio.create_task(search.search(first, np.float32([[0]]), 2))]
        await asyncio.sleep(0.1)  # the thread is held up by it
        for number, count in ((1, 1), (2, 3), (3, 2)):
            waiting.append(asyncio.create_task(search.search(first, np.float32([[number]] * 2), count)))
        waiting.append(asyncio.create_task(search.search(second, np.float32([[4]]), 1)))
        waiting.append(asyncio.create_task(search.search(first, np.float32([[5]] * 9), 1)))
        await asyncio.sleep(0.1)
        first.free.set()
        second.free.set()
        return await asyncio.gather(*waiting)

    answers = asyncio.run(ask())
    search.close()
    assert first.batches == [1, 6, 9], "more than the bound goes alone"
    assert second.batches == [1], "another round is never in the same batch"
    for (_, ids), (number, rows, count) in zip(
        answers, [(0, 1, 2), (1, 2, 1), (2, 2, 3), (3, 2, 2), (4, 1, 1), (5, 9, 1)], strict=True
    ):
        assert ids.tolist() == [[number * 1000 + place for place in range(count)]] * rows


def test_an_index_whose_effort_goes_by_k_is_never_asked_for_anothers_k():
    index = _Index(has_flat_index=False)
    search = BatchedSearch(8)

    async def ask():
        waiting = [asyncio.create_task(search.search(index, np.float32([[0]]), 2))]
        await asyncio.sleep(0.1)  # the thread is held up by it
        for number, count in ((1, 1), (2, 3), (3, 1), (4, 3)):
            waiting.append(asyncio.create_task(search.search(index, np.float32([[number]]), count)))
        await asyncio.sleep(0.1)
        index.free.set()
        return await asyncio.gather(*waiting)

    answers = asyncio.run(ask())
    search.close()
    assert (index.batches, index.counts) == ([1, 2, 2], [2, 1, 3])
    assert [ids.tolist() for _, ids in answers] == [
        [[number * 1000 + place for place in range(count)]]
        for number, count in ((0, 2), (1, 1), (2, 3), (3, 1), (4, 3))
    ]


def test_a_search_that_fails_fails_for_those_who_asked_and_the_next_one_works():
    index = _Index()
    index.free.set()
    search = BatchedSearch(8)

    async def ask():
        with pytest.raises(RuntimeError, match="not a number"):
            await search.search(index, np.float32([[np.nan]]), 1)
        return await search.search(index, np.float32([[1]]), 1)

    assert asyncio.run(ask())[1].tolist() == [[1000]]
    search.close()


def test_more_requests_than_can_be_answered_are_told_to_come_again(served_run):
    with server(served_run.root, replace(QUICK, concurrency=2)) as (url, app):
        held = threading.Event()
        snapshot = app.service.rounds.current
        app.service.rounds.current = held_up = replace(snapshot)
        object.__setattr__(held_up, "search", lambda queries, k: held.wait(20) and snapshot.search(queries, k))
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(NeighbourhoodClient(url).neighbours, 1, 9) for _ in range(2)]
            while app._in_flight < 2:
                time.sleep(0.01)
            with pytest.raises(NeighbourhoodError, match="2 requests are being answered already: try again") as caught:
                NeighbourhoodClient(url).neighbours(1)
            assert caught.value.status == 503
            held.set()
            assert all(len(job.result()) == 9 for job in asked)
        assert len(NeighbourhoodClient(url).neighbours(1)) == 3


def test_the_client_gives_what_the_service_has(served_run):
    with server(served_run.root, token="t") as (url, _):
        asking = NeighbourhoodClient(url + "/", token="t")
        features = load_features(open_subject(served_run.root, 2))
        assert [n.sample_id for n in asking.search(features[3], k=1)[0]] == [3]
        assert asking.sample(17).round == 2
        assert asking.sample(17, round_number=1).round == 1
        with pytest.raises(NeighbourhoodError, match="422: X-Dim: vectors of 32 numbers"):
            asking.search(np.ones(32))
        total, some = asking.samples(class_name="3", anchor=True, limit=2)
        assert (total >= len(some), {s.class_name for s in some}) == (True, {"3"})
        assert asking.rounds()["current"] == 2
        picture = asking.thumbnail(17, size=32)
        assert picture[:4] == b"RIFF"
        assert len(asking.search_image(picture, k=4)) == 4
        with pytest.raises(NeighbourhoodError, match="404: there is no sample 999"):
            asking.neighbours(999)
        with pytest.raises(NeighbourhoodError, match="401: this service wants a token"):
            NeighbourhoodClient(url).stats()
        asking.close()
        assert asking.stats()["round"] == 2
    with pytest.raises(NeighbourhoodError, match="does not answer"):
        asking.stats()
    with pytest.raises(ValueError, match="expected http://"):
        NeighbourhoodClient("ftp://x")


class _OlderService(NeighbourhoodClient):
    """One that knows no X-Dim: it cuts bytes into vectors of its own dimension, here 128."""

    def _ask(self, method, path, query, body=None, headers=None):
        if path == "/v1/stats":
            return b'{"dim": 128}'
        return json.dumps({"round": 1, "results": [{"neighbours": []}] * (len(body) // 512)}).encode()


def test_the_client_does_not_take_the_answer_to_another_question():
    asking = _OlderService("http://127.0.0.1:1")
    assert asking.search(np.ones((3, 128))) == [[]] * 3
    with pytest.raises(NeighbourhoodError, match="256 numbers a vector were sent, the service's index has 128"):
        asking.search(np.ones(256))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 128\): expected \(Q, D\) or \(D,\)"):
        asking.search(np.ones((2, 3, 128)))


def test_the_client_knows_its_filters():
    with pytest.raises(TypeError, match="entropy_maximum"):
        NeighbourhoodClient("http://127.0.0.1:1").samples(entropy_maximum=2)


def _serve(*arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "ANDSCALE_TOKEN"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "serve.py"), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_the_command_says_where_it_listens_and_ends_at_ctrl_c(served_run, tmp_path):
    serving = _serve("--run", served_run.root, "--port", 0, cwd=tmp_path)
    try:
        line = serving.stdout.readline()
        assert line.endswith("round 2: 143 samples, flat, D = 16\n"), line + serving.stderr.read()
        url = line.split("/ ")[0]
        assert len(NeighbourhoodClient(url).neighbours(1)) == 3
        port = url.rpartition(":")[2]
        second = _serve("--run", served_run.root, "--port", port, cwd=tmp_path)
        _, said = second.communicate(timeout=60)
        assert (second.returncode, said.count("\n")) == (1, 1)
        assert f"error: port {port} of 127.0.0.1 is in use" in said
    finally:
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=30)
    assert (serving.returncode, said) == (0, "")


def test_an_address_for_others_without_a_token_is_refused(served_run, tmp_path):
    refused = _serve("--run", served_run.root, "--host", "0.0.0.0", cwd=tmp_path)
    _, said = refused.communicate(timeout=60)
    assert (refused.returncode, said.count("\n")) == (2, 1)


def test_every_operation_keeps_to_its_description(served_run):
    app, _ = build_app(ServeRequest(place=served_run.root), QUICK, 3600)
    of_this_machine = {"Host": "localhost"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=of_this_machine)
    paths = []
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.append(operation.path)

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def holds(case):
            answer = case.call(headers=of_this_machine)
            assert answer.status_code < 500 and answer.status_code != 403, answer.text
            # which vectors are zero, and which bytes an image, no schema can say
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        holds()
    assert len(paths) == 9
