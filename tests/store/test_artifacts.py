import json
import mmap
import os
import shutil
import time

import pytest
from blake3 import blake3

from andscale.errors import RunError, UsageError
from andscale.store import artifacts, files
from andscale.store.artifacts import Provenance
from crashing import crash_at_every_call

HERE = Provenance("c" * 64, {"rounds/00/memory": "p" * 64})


def _publish(folder, text="hello"):
    with artifacts.publish(folder, kind="thing", provenance=HERE) as draft:
        draft.path("a.txt").write_text(text)
        draft.add("a.txt", rows=3)
        draft.path("b.bin").write_bytes(b"\0" * 1000)
        draft.add("b.bin")
        draft.figures["answer"] = 42


def test_a_published_artefact_verifies_and_says_what_it_is(tmp_path):
    _publish(tmp_path / "thing")
    manifest = artifacts.verify(tmp_path / "thing", "thing")
    assert [(f.name, f.rows, f.bytes) for f in manifest.files] == [("a.txt", 3, 5), ("b.bin", None, 1000)]
    assert manifest.provenance == HERE
    assert manifest.figures == {"answer": 42}
    assert manifest.num_rows == 3
    assert manifest.seconds >= 0
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_the_digest_names_the_content_and_not_the_time_of_making(tmp_path):
    digests = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        _publish(tmp_path / name, text)
        digests.append(artifacts.load_manifest(tmp_path / name, "thing").digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_writer_killed_at_any_call_leaves_the_artefact_absent_or_complete(tmp_path):
    folder = tmp_path / "thing"

    def check():
        if folder.exists():
            artifacts.verify(folder, "thing")
            shutil.rmtree(folder)

    assert crash_at_every_call(lambda: _publish(folder), check) > 8
    _publish(folder)
    artifacts.verify(folder, "thing")
    assert [p.name for p in tmp_path.iterdir()] == ["thing"], "left-over folders of killed writers are removed"


def test_a_small_file_is_the_old_one_or_the_new_one_whatever_happens(tmp_path):
    path = tmp_path / "run.json"
    files.write_file(path, b"old")

    def check():
        assert path.read_bytes() in (b"old", b"new")

    assert crash_at_every_call(lambda: files.write_file(path, b"new"), check) >= 4
    assert path.read_bytes() == b"new"


def test_a_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), artifacts.publish(tmp_path / "t", kind="thing", provenance=HERE) as draft:
        draft.path("a").write_text("x")
        draft.add("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "a.txt does not have the hash of its record"),
        (lambda p: p.unlink(), "a.txt is missing"),
        (lambda p: os.truncate(p, 2), "a.txt has 2 bytes, its record says 5"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, message):
    _publish(tmp_path / "thing")
    damage(tmp_path / "thing" / "a.txt")
    with pytest.raises(RunError, match=message):
        artifacts.verify(tmp_path / "thing", "thing")


def test_the_existence_of_files_means_nothing(tmp_path):
    _publish(tmp_path / "thing")
    (tmp_path / "thing" / "manifest.json").unlink()
    assert not artifacts.is_complete(tmp_path / "thing")
    with pytest.raises(RunError, match=r"has no manifest.json: it is not complete"):
        artifacts.load_manifest(tmp_path / "thing", "thing")
    with pytest.raises(RunError, match="it is not ours to replace: move it away"):
        _publish(tmp_path / "thing")


def test_an_artefact_is_never_written_over(tmp_path):
    _publish(tmp_path / "thing", "first")
    with pytest.raises(RunError, match="is complete already"):
        _publish(tmp_path / "thing", "second")
    assert (tmp_path / "thing" / "a.txt").read_text() == "first"


def test_of_two_writers_the_one_that_started_last_publishes(tmp_path):
    old = artifacts.begin(tmp_path / "thing")
    _publish(tmp_path / "thing", "new")
    assert not old.exists()
    with pytest.raises((RunError, FileNotFoundError)):
        artifacts.commit(old, tmp_path / "thing", kind="thing", files=[], provenance=HERE, started=time.monotonic())
    assert (tmp_path / "thing" / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "read it with the newer andscale"),
        ({"format": "other"}, "not a manifest of ours"),
        ({"files": [{"name": "../x", "rows": None, "bytes": 1, "blake3": "0"}]}, "outside its folder"),
        ({"files": "no"}, "not a manifest of ours, or it is damaged"),
    ],
)
def test_foreign_and_newer_manifests_are_refused(tmp_path, change, message):
    _publish(tmp_path / "thing")
    path = tmp_path / "thing" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((RunError, UsageError), match=message):
        artifacts.verify(tmp_path / "thing", "thing")


def test_an_artefact_of_another_kind_is_refused(tmp_path):
    _publish(tmp_path / "thing")
    with pytest.raises(RunError, match="holds 'thing', not 'memory'"):
        artifacts.load_manifest(tmp_path / "thing", "memory")


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        files.check_writable(tmp_path / "file" / "x")
    # root may write anywhere but here
    with pytest.raises(UsageError, match="cannot write in /proc"):
        files.check_writable(artifacts.Path("/proc/nowhere"))


@pytest.mark.parametrize("size", [0, 1, mmap.ALLOCATIONGRANULARITY, 3 * mmap.ALLOCATIONGRANULARITY + 5])
def test_a_file_is_hashed_whole_however_many_windows_it_takes(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "_WINDOW_BYTES", mmap.ALLOCATIONGRANULARITY)
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert files.hash_file(tmp_path / "f") == blake3(data).hexdigest()


def test_a_file_that_cannot_be_flushed_is_not_sealed(tmp_path, monkeypatch):
    def full(path):
        raise OSError("no space left on device")

    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(artifacts, "fsync_path", full)
    with pytest.raises(OSError, match="no space left"):
        artifacts.seal(tmp_path / "f")


def test_an_artefact_that_is_discarded_half_way_is_absent_and_made_anew(tmp_path, monkeypatch):
    _publish(tmp_path / "thing")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed there, or NFS keeps an open file
        artifacts.discard(tmp_path / "thing")
    assert not (tmp_path / "thing").exists()
    _publish(tmp_path / "thing", "again")
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]
