"""What a service that runs for long holds, reads and says when something fails."""

import shutil
import warnings
from types import SimpleNamespace

import pytest
from service_runs import client

from andscale.errors import RunError
from andscale.service.rounds import Rounds
from andscale.store.run_layout import RunLayout


@pytest.fixture
def copied(served_run, tmp_path):
    """A copy of the run to take apart."""
    shutil.copytree(served_run.root, tmp_path / "copied")
    return RunLayout(tmp_path / "copied")


def test_rounds_of_one_data_set_hold_its_catalogue_once(copied, tmp_path):
    copied.round(2).root.rename(tmp_path / "aside")
    with client(copied.root) as calling:
        rounds = calling.service.rounds
        first = rounds.current
        (tmp_path / "aside").rename(copied.round(2).root)
        rounds.look()
        assert (first.round_number, rounds.current.round_number) == (1, 2)
        assert rounds.current.subject.catalogue is first.subject.catalogue
        assert rounds.take(1).subject.catalogue is first.subject.catalogue


def test_rounds_are_listed_without_reading_their_tables(copied, monkeypatch):
    with client(copied.root) as calling:
        before = calling.get("/v1/rounds").json()
        assert [r["num_neighbours"] for r in before["rounds"]] == [3, 3]
        assert all(r["num_samples"] == 143 and r["num_anchors"] > 0 and r["created"] for r in before["rounds"])
        (table,) = copied.round(1).neighbourhoods.glob("*.parquet")
        table.unlink()
        assert calling.get("/v1/rounds").json() == before
        (copied.round(1).neighbourhoods / "manifest.json").write_text("{}")
        assert [r["round"] for r in calling.get("/v1/rounds").json()["rounds"]] == [2]


def test_a_failure_of_the_service_is_a_problem_too(served_run, monkeypatch):
    with client(served_run.root) as calling:
        monkeypatch.setattr(Rounds, "records", lambda _: 1 / 0)
        answer = calling.get("/v1/rounds")
        assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
        assert "ZeroDivisionError" in answer.json()["detail"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_look_that_fails_is_told_and_the_next_one_works(copied, tmp_path, monkeypatch):
    copied.round(2).root.rename(tmp_path / "aside")
    with client(copied.root) as calling:
        rounds = calling.service.rounds
        look, looks = rounds.look, []

        def fails_once():
            looks.append(rounds.complaint)
            if len(looks) == 1:
                (tmp_path / "aside").rename(copied.round(2).root)
                raise MemoryError("no room")
            look()
            rounds.close()

        monkeypatch.setattr(rounds, "look", fails_once)
        rounds.watch(0.01).join(60)
        assert looks == ["", "newer rounds cannot be looked for: no room"]
        assert calling.get("/healthz").json() == {"status": "ok", "round": 2, "complaint": None}


def test_a_bound_that_no_entropy_can_have_is_an_ordinary_number(served_run):
    with client(served_run.root) as calling, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calling.get("/v1/samples?entropy_max=1e300").json()["total"] == 143
        assert calling.get("/v1/samples?entropy_min=1e300").json()["total"] == 0


def test_what_the_operating_system_says_may_pass(copied, tmp_path, monkeypatch):
    copied.round(2).root.rename(tmp_path / "aside")
    with client(copied.root) as calling:
        (tmp_path / "aside").rename(copied.round(2).root)
        with monkeypatch.context() as patch:
            patch.setattr("andscale.service.rounds.open_snapshot", _input_error)
            calling.service.rounds.look()
            assert "round 2 is not served: [Errno 5] gone for a while" in calling.get("/healthz").text
        calling.service.rounds.look()
        assert calling.get("/healthz").json()["round"] == 2


def test_a_round_that_was_refused_is_tried_again_later_and_later(tmp_path, monkeypatch):
    """A child that took too long, or was killed for memory, refuses a round that is whole."""
    now, tried = [0.0], []

    def refuse(*_, **__):
        tried.append(now[0] / 60)
        raise RunError("index.faiss is refused: reading it takes more than 120 s")

    monkeypatch.setattr("andscale.service.rounds.monotonic", lambda: now[0])
    monkeypatch.setattr("andscale.service.rounds.open_snapshot", refuse)
    monkeypatch.setattr("andscale.service.rounds._is_whole", lambda _: True)
    for number in (1, 2):
        (tmp_path / "rounds" / f"{number:02d}").mkdir(parents=True)
    rounds = Rounds(tmp_path, SimpleNamespace(round_number=1))
    for now[0] in range(0, 12 * 3600, 300):
        rounds.look()
        assert rounds.complaint == "round 2 is not served: index.faiss is refused: reading it takes more than 120 s"
    assert tried == [0, 10, 30, 70, 150, 310, 550]
    whole = SimpleNamespace(round_number=2)
    monkeypatch.setattr("andscale.service.rounds.open_snapshot", lambda *_, **__: whole)
    now[0] += 4 * 3600
    rounds.look()
    assert (rounds.current, rounds.complaint) == (whole, "")


def _input_error(*_, **__):
    raise OSError(5, "gone for a while")
