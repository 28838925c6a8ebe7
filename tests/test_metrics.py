import io
import json

import pytest

from andscale.metrics import PROGRESS_MARK, MetricsLog, Progress, read_metrics
from andscale.orchestration.local import LogFollower


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("andscale.metrics.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("embed", 100, "images", stream=stream) as progress:
        for _ in range(100):
            clock[0] += 0.25
            progress.advance(note="loss 1.5")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "25 seconds: two lines on the way, ten seconds apart, and the last"
    assert lines[0] == f"embed{PROGRESS_MARK} 40 % 40/100 [0:10 < 0:15, 4 images/s, loss 1.5]"
    assert lines[-1] == "embed 100 % 100/100 [0:25 < 0:00, 4 images/s, loss 1.5]"


def test_a_terminal_gets_a_bar_that_is_drawn_in_place(clock):
    stream = _Terminal()
    with Progress("embed", 4, stream=stream) as progress:
        clock[0] += 1
        progress.advance(2)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.startswith("\rembed " + "█" * 14 + "·" * 14)


def test_ranks_that_are_not_the_first_show_nothing():
    stream = io.StringIO()
    with Progress("x", 1, enabled=False, stream=stream) as progress:
        progress.advance()
    assert stream.getvalue() == ""


def test_the_rate_of_an_epoch_that_goes_on_is_that_of_what_is_done_now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("andscale.metrics.time.monotonic", lambda: now[0])
    progress = Progress("train", 1000, "images", stream=io.StringIO(), done=600)
    now[0] += 10
    progress.advance(100)
    assert progress.line() == " 70 % 700/1,000 [0:10 < 0:30, 10 images/s]"


def test_metrics_of_a_cut_epoch_are_dropped_with_a_cut_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for epoch in range(3):
        log.write(epoch=epoch, loss=1.0)
    with log.path.open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert [r["epoch"] for r in read_metrics(log.path)] == [0, 1, 2]
    log.drop_after(2)
    assert [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()] == [0, 1]


def test_a_followed_log_is_shown_line_by_line_without_submitits_own(tmp_path, capsys):
    path = tmp_path / "log"
    follower = LogFollower(path)
    follower.show_new()
    data = f"submitit INFO starting\nround 1\nembed{PROGRESS_MARK}40 %\nwrote é".encode()
    path.write_bytes(data[:-1])  # in the middle of a character
    follower.show_new()
    path.write_bytes(data + b"\n")
    follower.show_new()
    assert capsys.readouterr().out.splitlines() == ["round 1", f"embed{PROGRESS_MARK}40 %", "wrote é"]


def test_on_a_terminal_progress_lines_of_a_followed_log_replace_each_other(tmp_path, monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    path = tmp_path / "log"
    path.write_text(f"a{PROGRESS_MARK}1 %\na{PROGRESS_MARK}2 %\ndone\n")
    LogFollower(path).show_new()
    assert terminal.getvalue() == f"a{PROGRESS_MARK}1 %\r\x1b[Ka{PROGRESS_MARK}2 %\r\x1b[Kdone\n"
