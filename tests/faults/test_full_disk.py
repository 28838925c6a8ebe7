"""A disk that is full at every stage of every step: one line says so, nothing is half there, and the step goes on."""

import contextlib
import os
import subprocess

from andscale.cli import call
from andscale.store import artifacts
from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RunLayout
from tiny_runs import assert_same_state, start_run, trained_state

ONE = {"optim": {"num_epochs": 1, "global_batch_size": 32}, "method": {"num_rounds": 2}}
STEPS = (("train", 0), ("evaluate", 0), ("rebuild", 1), ("train", 1), ("evaluate", 1))
ROOMS = (0, 4 << 10, 16 << 10, 40 << 10, 400 << 10, 1400 << 10, 2400 << 10, 3200 << 10, 4200 << 10, 5200 << 10)
"""Between them, every step fails in each file that it writes."""


@contextlib.contextmanager
def _room(folder, num_bytes):
    """Leave so many bytes free for the time of the block."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - num_bytes, 1))
    yield
    ballast.unlink()


def _finish(root):
    for step, number in STEPS:
        assert call(step, ["--run", str(root), "--round", str(number)]) == 0


def _artefacts(root):
    """Every artefact of a run, verified."""
    found = {}
    for manifest in root.rglob("manifest.json"):
        if not manifest.parent.name.startswith("."):
            kind = {"epoch": "checkpoint"}.get(manifest.parent.name.split("-")[0], manifest.parent.name)
            found[str(manifest.parent.relative_to(root))] = artifacts.verify(manifest.parent, kind).digest
    return found


def test_a_step_on_a_full_disk_says_so_and_goes_on_when_there_is_room(small_disk, tmp_path, digits, capfd):
    undisturbed = start_run(tmp_path / "run", digits, **ONE)
    _finish(undisturbed.root)
    layout = start_run(small_disk / "run", digits, **ONE)
    failures = dict.fromkeys(STEPS, 0)
    for step, number in STEPS:
        for room in ROOMS:
            before = _artefacts(layout.root)
            with _room(small_disk, room):
                capfd.readouterr()
                code = call(step, ["--run", str(layout.root), "--round", str(number)])
                said = capfd.readouterr().err
            after = _artefacts(layout.root)
            assert before.items() <= after.items() or step == "train", "nothing that was there is lost"
            if code == 0:
                break
            failures[step, number] += 1
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, said
            assert "No space left on device" in errors[0]
            assert str(small_disk) in errors[0]
        else:
            raise AssertionError(f"{step} {number} never had enough room")
    assert failures["train", 0] >= 5, failures
    assert all(count >= 1 for count in failures.values()), failures
    for number in (0, 1):
        assert_same_state(trained_state(undisturbed, number), trained_state(layout, number))
    tables = [read_table(run.round(1).neighbourhoods)[0] for run in (undisturbed, layout)]
    assert (tables[0].neighbour_ids == tables[1].neighbour_ids).all()
    assert (tables[0].entropies == tables[1].entropies).all()
    left_over = [p for p in layout.root.rglob(".*") if ".partial-" in p.name]
    assert left_over == []


def test_a_launch_on_a_full_disk_says_so(small_disk, digits):
    from whole_runs import command, write_config

    config = write_config(small_disk, digits)
    with _room(small_disk, 0):
        answer = subprocess.run(
            command("--round", "0", "--config", config, "--cluster", "local"),
            cwd=small_disk,
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode == 1
    assert "No space left on device" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not RunLayout(small_disk / "runs" / "tiny").record.exists()
