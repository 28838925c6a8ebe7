"""Pickles and torch files that were made to harm: nothing is executed, nothing hangs, nothing fills the memory."""

import io
import os
import pickle
import tarfile
import zipfile

import pytest
import torch

from andscale.data.plain_pickle import load_plain_pickle
from andscale.distributed import World
from andscale.errors import RunError
from andscale.store import artifacts
from andscale.training.checkpoint import KIND, STATE_NAME, _load_state, load_checkpoint

# a tuple that holds the one before twice, sixty times: its hash takes 2^60 steps
HASHED_FOR_EVER = b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
REMEMBERS_TOO_MUCH = b"\x80\x02}r\xff\xff\xff\x7f."
DEEP_KEY = b"\x80\x02}N" + b"\x85" * 200_000 + b"K\x01s."


@pytest.mark.parametrize(
    "data",
    [HASHED_FOR_EVER, DEEP_KEY, b"\x80\x04\x8f(" + HASHED_FOR_EVER[3:-4] + b"\x90."],
    ids=["exponential hash", "deep key", "set"],
)
@pytest.mark.timeout(20)
def test_a_pickle_whose_keys_could_be_hashed_for_ever_is_refused(data):
    with pytest.raises(RunError, match=r"data_batch_1 is (refused: its pickle asks for a|not a pickle of CIFAR)"):
        load_plain_pickle("data_batch_1", data)


@pytest.mark.timeout(20)
def test_a_number_that_a_pickle_remembers_takes_no_memory():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_plain_pickle("data_batch_1", REMEMBERS_TOO_MUCH) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_pickle_cannot_change_the_reader():
    change = b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__(U\x01ax\x86t\x86b."
    with pytest.raises(RunError, match="batch"):
        load_plain_pickle("batch", change)
    built = b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__)s\x86b."
    with pytest.raises(RunError, match="a change of something that is no array"):
        load_plain_pickle("batch", built)


class Bomb:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def write_zip_bomb(path, witness):
    torch.save({"next_epoch": 1, "x": Bomb(witness)}, path)


def write_legacy_bomb(path, witness):
    torch.save({"next_epoch": 1, "x": Bomb(witness)}, path, _use_new_zipfile_serialization=False)


def write_tar_bomb(path, witness):
    data = pickle.dumps(Bomb(witness), protocol=2)
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle", "../outside"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_plain_bomb(path, witness):
    path.write_bytes(pickle.dumps(Bomb(witness)))


def _rewritten(path, change, **options):
    """A good checkpoint's members again, some of them others."""
    torch.save({"next_epoch": 1, "x": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as good:
        members = {name: change(name, good.read(name)) for name in good.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_compressed(path, _):
    _rewritten(path, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)


def write_hash_bomb(path, _):
    _rewritten(path, lambda name, data: HASHED_FOR_EVER if name.endswith("data.pkl") else data)


def test_a_good_checkpoint_written_again_is_read(tmp_path):
    """So that the refusals below are for what was changed."""
    _rewritten(tmp_path / STATE_NAME, lambda _, data: data)
    assert _load_state(tmp_path / STATE_NAME)[0]["next_epoch"] == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "write",
    [write_zip_bomb, write_legacy_bomb, write_tar_bomb, write_plain_bomb],
)
def test_a_checkpoint_that_was_made_to_harm_is_refused_unexecuted(tmp_path, write):
    witness, path = tmp_path / "executed", tmp_path / "round" / "epoch-0001" / STATE_NAME
    path.parent.mkdir(parents=True)
    write(path, witness)
    with pytest.raises(RunError, match=r"state\.pt is not a checkpoint of ours"):
        _load_state(path)
    assert not witness.exists()
    assert not list(tmp_path.glob("outside"))


@pytest.mark.parametrize("write", [write_legacy_bomb, write_tar_bomb, write_compressed, write_hash_bomb])
def test_torch_does_not_see_what_it_could_hash_or_unpack_for_ever(tmp_path, monkeypatch, write):
    """Torch's own reader, weights only, does not come back from the tuples in tuples."""
    path = tmp_path / "round" / "epoch-0001" / STATE_NAME
    path.parent.mkdir(parents=True)
    write(path, tmp_path / "executed")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch saw it"))
    with pytest.raises(RunError, match=r"state\.pt is not a checkpoint of ours"):
        _load_state(path)


def test_a_strangers_checkpoint_with_a_matching_manifest_is_refused_too(tmp_path):
    provenance = artifacts.Provenance("config")
    with artifacts.publish(tmp_path / "epoch-0001", kind=KIND, provenance=provenance) as draft:
        write_zip_bomb(draft.path(STATE_NAME), tmp_path / "executed")
        draft.add(STATE_NAME)
    with pytest.raises(RunError, match=r"state\.pt is not a checkpoint of ours"):
        load_checkpoint(tmp_path, World(), provenance)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("state", [{}, {"position": {"epoch": 1, "turn": 2}}, {"next_epoch": "one"}])
def test_a_checkpoint_without_a_position_is_refused(tmp_path, state):
    torch.save(state, tmp_path / STATE_NAME)
    with pytest.raises(RunError, match=r"state\.pt is not a checkpoint of ours"):
        _load_state(tmp_path / STATE_NAME)
