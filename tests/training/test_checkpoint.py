import shutil

import numpy as np
import pytest
import torch

import reference
from andscale.distributed import World
from andscale.store.artifacts import Provenance
from andscale.training.checkpoint import Position, load_checkpoint, save_checkpoint
from andscale.training.memory_bank import MemoryBank
from crashing import crash_at_every_call

HERE = Provenance("c", {"dataset": "d"})


def _save(folder, epoch, rows, step=0):
    bank = MemoryBank(World(), len(rows), torch.from_numpy(rows))
    save_checkpoint(
        folder, Position(epoch, step), {"model": {"w": torch.full((3,), float(epoch))}}, bank, World(), HERE
    )


def test_the_newest_checkpoint_comes_back_and_two_are_kept(tmp_path, rng):
    rows = [reference.unit_rows(rng, 10, 4) for _ in range(4)]
    for epoch in (1, 2, 3):
        _save(tmp_path, epoch, rows[epoch])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0002", "epoch-0003"]
    checkpoint = load_checkpoint(tmp_path, World(), HERE)
    assert checkpoint.position.epoch == 3
    np.testing.assert_array_equal(checkpoint.memory, rows[3])
    assert checkpoint.state["model"]["w"].tolist() == [3, 3, 3]


def test_checkpoints_are_ordered_by_epoch_and_step_and_the_last_two_whole_ones_are_kept(tmp_path, rng):
    rows = reference.unit_rows(rng, 10, 4)
    for epoch, step in ((9998, 0), (9998, 999_999), (9998, 1_000_000), (9999, 0), (10_000, 0), (10_000, 7)):
        _save(tmp_path, epoch, rows, step)
        checkpoint = load_checkpoint(tmp_path, World(), HERE)
        assert (checkpoint.position.epoch, checkpoint.position.step) == (epoch, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-10000", "epoch-10000-step-000007"]
    (tmp_path / "epoch-10000-step-000007" / "state.pt").unlink()
    _save(tmp_path, 10_000, rows, 9)
    names = ["epoch-10000", "epoch-10000-step-000007", "epoch-10000-step-000009"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names, "the one with a missing file does not count"


def test_a_checkpoint_that_was_written_before_there_were_positions_is_gone_on_with(tmp_path, rng):
    rows = reference.unit_rows(rng, 10, 4)
    with pytest.MonkeyPatch.context() as patch:
        save = torch.save
        patch.setattr(torch, "save", lambda state, path: save({"model": state["model"], "next_epoch": 3}, path))
        _save(tmp_path, 3, rows)
    assert load_checkpoint(tmp_path, World(), HERE).position == Position(3)


def test_there_is_none_at_the_start(tmp_path):
    assert load_checkpoint(tmp_path / "none", World(), HERE) is None


def test_killed_at_any_call_of_saving_the_one_before_or_the_new_one_is_there(tmp_path, rng):
    rows = {epoch: reference.unit_rows(rng, 10, 4) for epoch in (1, 2, 3)}
    _save(tmp_path, 1, rows[1])
    _save(tmp_path, 2, rows[2])

    def check():
        checkpoint = load_checkpoint(tmp_path, World(), HERE)
        assert checkpoint.position.epoch in (2, 3)
        np.testing.assert_array_equal(checkpoint.memory, rows[checkpoint.position.epoch])
        shutil.rmtree(tmp_path / "epoch-0003", ignore_errors=True)

    assert crash_at_every_call(lambda: _save(tmp_path, 3, rows[3]), check) > 8


def test_a_damaged_checkpoint_is_set_aside_and_not_deleted(tmp_path, rng, capsys):
    rows = reference.unit_rows(rng, 10, 4)
    _save(tmp_path, 1, rows)
    _save(tmp_path, 2, rows)
    (tmp_path / "epoch-0002" / "state.pt").write_bytes(b"")
    assert load_checkpoint(tmp_path, World(), HERE).position.epoch == 1
    assert "state.pt has 0 bytes" in capsys.readouterr().err
    assert [p.name[:19] for p in tmp_path.iterdir() if p.name.startswith(".")] == [".damaged-epoch-0002"]
    _save(tmp_path, 2, rows)
    assert load_checkpoint(tmp_path, World(), HERE).position.epoch == 2
