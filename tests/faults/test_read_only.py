"""A run on a file system that may only be read: what reads works, what writes says so in one line."""

import subprocess

import pytest

from andscale.cli import call
from tiny_runs import start_run

ONE = {"optim": {"num_epochs": 1, "global_batch_size": 32}, "method": {"num_rounds": 2}}


@pytest.fixture
def archived(small_disk, digits):
    """A run of one and a half rounds that cannot be written any more."""
    root = start_run(small_disk / "runs" / "archived", digits, **ONE).root
    for step, number in (("train", 0), ("evaluate", 0), ("rebuild", 1)):
        assert call(step, ["--run", str(root), "--round", str(number)]) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return root


def test_an_archived_run_can_be_looked_at_and_says_why_it_cannot_go_on(archived, tmp_path, monkeypatch, capsys):
    before = sorted(archived.rglob("*"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert call("status", ["--run", str(archived)]) == 0
    shown = capsys.readouterr()
    assert "evaluate round 0  done" in shown.out
    assert shown.err == ""
    assert call("inspect", ["--run", str(archived)]) == 0
    assert "purity@1" in capsys.readouterr().out
    for command in (
        ["train", "--run", str(archived), "--round", "1"],
        ["launch", "--run", str(archived), "--round", "1", "--cluster", "local"],
    ):
        assert call(None, command) in (1, 2), command
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if line.startswith("error: ")]) == 1
        assert str(archived) in said[-1], said
    assert sorted(archived.rglob("*")) == before
