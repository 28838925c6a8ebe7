import json
import multiprocessing
import os
import signal
import time

import psutil
import pytest

from andscale.errors import RunError, UsageError
from andscale.orchestration import holding
from andscale.orchestration.holding import hold_run, holder_of
from andscale.store.run_layout import RunLayout
from slurm_cluster import wait_for

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path)


def _in_a_process(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def _hold_until(layout, ready, end, host=None):
    if host is not None:
        holding.socket.gethostname = lambda: host
    with hold_run(layout):
        ready.set()
        end.wait(60)


def _held_elsewhere(layout, host=None):
    """A live holder in another process; set ``end`` to let it go."""
    ready, end = FORK.Event(), FORK.Event()
    process = _in_a_process(_hold_until, layout, ready, end, host)
    assert ready.wait(20)
    return process, end


def test_a_second_launcher_is_told_who_holds_the_run_and_the_next_one_may(layout):
    process, end = _held_elsewhere(layout)
    with pytest.raises(RunError, match=rf"is held by another launcher: process {process.pid} on .* by .* since 20"):
        hold_run(layout).__enter__()
    assert f"process {process.pid} on" in holder_of(layout.root)
    end.set()
    process.join()
    assert holder_of(layout.root) is None
    with hold_run(layout):
        assert f"process {os.getpid()} on" in holder_of(layout.root)
    assert len(list((layout.root / "launcher").iterdir())) == 1, "old numbers are cleared away"


def test_a_killed_holder_on_this_host_is_gone_at_once(layout):
    process, _ = _held_elsewhere(layout)
    os.kill(process.pid, signal.SIGKILL)
    # not reaped yet: a zombie holds nothing
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "the end of the holder")
    started = time.monotonic()
    with hold_run(layout):
        assert time.monotonic() - started < 5


def test_a_stopped_holder_on_this_host_still_holds(layout, monkeypatch):
    monkeypatch.setattr(holding, "GONE_S", 0.5)
    process, end = _held_elsewhere(layout)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunError, match="is held by"):
            hold_run(layout).__enter__()
    finally:
        os.kill(process.pid, signal.SIGCONT)
        end.set()


def test_a_holder_on_another_host_holds_while_its_heartbeat_changes(layout, monkeypatch):
    monkeypatch.setattr(holding, "HEARTBEAT_S", 0.1)
    process, end = _held_elsewhere(layout, host="elsewhere")
    with pytest.raises(RunError, match=f"process {process.pid} on elsewhere by"):
        hold_run(layout).__enter__()
    end.set()
    process.join()
    with hold_run(layout):
        pass


@pytest.mark.parametrize("skew_s", [-86_400, 86_400])
def test_a_dead_holder_on_another_host_is_gone_after_the_bound_whatever_its_clock_says(layout, monkeypatch, skew_s):
    monkeypatch.setattr(holding, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(holding, "GONE_S", 1.0)
    process, _ = _held_elsewhere(layout, host="elsewhere")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (path,) = (layout.root / "launcher").iterdir()
    os.utime(path, (time.time() + skew_s,) * 2)
    started = time.monotonic()
    with hold_run(layout):
        assert 1 <= time.monotonic() - started < 10


def test_a_process_number_that_was_given_anew_does_not_hold(layout, monkeypatch):
    monkeypatch.setattr(holding, "GONE_S", 0.5)
    (layout.root / "launcher").mkdir()
    values = holding._identity() | {"started_s": 1.0, "heartbeat": 3}
    (layout.root / "launcher" / "000004.json").write_text(json.dumps(values))
    with hold_run(layout) as hold:
        assert hold.path.name == "000005.json"


def test_a_holder_killed_before_it_said_who_it_is_is_gone_after_the_bound(layout, monkeypatch):
    monkeypatch.setattr(holding, "GONE_S", 0.5)
    (layout.root / "launcher").mkdir()
    (layout.root / "launcher" / "000001.json").touch()
    with hold_run(layout):
        pass


def test_a_launcher_that_was_taken_for_gone_notices(layout):
    with hold_run(layout) as hold:
        hold.check()
        (layout.root / "launcher" / "000002.json").touch()
        with pytest.raises(RunError, match="was taken over while this launcher stood still"):
            hold.check()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(holding.os, "open", refuse)
    with pytest.raises(UsageError, match="cannot write in .*launcher .Permission denied.: launch where"):
        hold_run(RunLayout(tmp_path)).__enter__()


def _race(root, barrier, inside, result):
    """A hundred tries to be in the critical section, all racers at once."""
    for _ in range(100):
        barrier.wait(60)
        try:
            with hold_run(RunLayout(root)):
                with inside.get_lock():
                    inside.value += 1
                    result[0] = max(result[0], inside.value)
                time.sleep(0.002)
                with inside.get_lock():
                    inside.value -= 1
                    result[1] += 1
        except RunError:
            with inside.get_lock():
                result[2] += 1


def test_a_hundred_races_never_have_two_winners_at_once(tmp_path):
    num_launchers = 2
    inside, result = FORK.Value("i", 0), FORK.Array("i", 3)
    barrier = FORK.Barrier(num_launchers)
    racers = [_in_a_process(_race, tmp_path, barrier, inside, result) for _ in range(num_launchers)]
    for racer in racers:
        racer.join(60)
    most, won, refused = result
    assert [racer.exitcode for racer in racers] == [0] * num_launchers
    assert most == 1
    assert won + refused == 100 * num_launchers
    assert won >= 100, "every race has a winner"
    assert refused > 0, "they did meet"


def _die_holding(root, barrier):
    barrier.wait(60)
    try:
        hold_run(RunLayout(root)).__enter__()
    except RunError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path):
    for _ in range(10):
        barrier = FORK.Barrier(4)
        _in_a_process(_die_holding, tmp_path, FORK.Barrier(1)).join()
        inside, result = FORK.Value("i", 0), FORK.Array("i", 3)
        racers = [_in_a_process(_one_race, tmp_path, barrier, inside, result) for _ in range(4)]
        for racer in racers:
            racer.join(60)
        assert result[0] == 1


def _one_race(root, barrier, inside, result):
    barrier.wait(60)
    try:
        with hold_run(RunLayout(root)):
            with inside.get_lock():
                inside.value += 1
                result[0] = max(result[0], inside.value)
            time.sleep(0.05)
            with inside.get_lock():
                inside.value -= 1
    except RunError:
        pass
