"""``prepare``: bytes kept, deterministic, killed at every step and gone on, nothing foreign touched."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

import synthetic_sources as synthetic
from andscale.data import image_check, shard_writer, workers
from andscale.data import prepare as prepare_module
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.shard_stream import stream_samples
from andscale.data.shards import load_catalogue, open_dataset, verify_dataset
from andscale.data.sources import open_source
from andscale.errors import RunError, UsageError

SMALL = PrepareOptions(samples_per_shard=3, num_workers=1)


@pytest.fixture
def images(tmp_path):
    synthetic.image_folder(tmp_path / "images")
    return tmp_path / "images"


def file_hashes(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def catalogue_bytes(dataset, split):
    """The image of each row, cut out of the shards at the catalogue's offsets."""
    catalogue = load_catalogue(dataset, split)
    content = [path.read_bytes() for path in catalogue.shards]
    return [
        content[number][offset : offset + length]
        for number, offset, length in zip(catalogue.shard_numbers, catalogue.offsets, catalogue.lengths, strict=True)
    ]


def test_original_bytes_lie_where_the_catalogue_says(tmp_path, images):
    content = {path.relative_to(images).as_posix(): path.read_bytes() for path in images.rglob("*") if path.is_file()}
    dataset = prepare("image-folder", images, tmp_path / "out", SMALL)
    for split, count in (("train", 9), ("val", 3)):
        catalogue = load_catalogue(dataset, split)
        assert catalogue.sources == sorted(n for n in content if n.startswith(split))
        assert catalogue_bytes(dataset, split) == [content[source] for source in catalogue.sources]
        assert catalogue.labels.tolist() == [int("/bee/" in source) for source in catalogue.sources]
        assert catalogue.keys == [f"{i:09d}" for i in range(count)]
    assert dataset.classes == ("ant", "bee")
    assert [shard.rows for shard in dataset.splits["train"].shards] == [3, 3, 3]


def test_webdataset_reads_the_same_samples(tmp_path, images):
    dataset = prepare("image-folder", images, tmp_path / "out", SMALL)
    for split in ("train", "val"):
        catalogue = load_catalogue(dataset, split)
        expected = list(zip(catalogue.keys, catalogue_bytes(dataset, split), catalogue.labels, strict=True))
        assert list(stream_samples(dataset, split)) == expected


def test_suffixes_follow_the_real_format(tmp_path):
    import tarfile

    for name, data in synthetic.EVERY_KIND.items():
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).write_bytes(data)
    prepare("image-folder", tmp_path / "flat", tmp_path / "out", PrepareOptions(num_workers=1))
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = tar.getmembers()
    real = {"JPEG": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "jpg": "jpg"}
    names = sorted(synthetic.EVERY_KIND)
    expected = [real[n.rpartition(".")[2]] if n != "misnamed.jpg" else "png" for n in names]
    assert [m.name for m in members] == [f"{i:09d}.{suffix}" for i, suffix in enumerate(expected)]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_array_sources_become_lossless_png(tmp_path):
    content = synthetic.fashion_mnist(tmp_path / "idx")
    dataset = prepare("fashion-mnist", tmp_path / "idx", tmp_path / "out", SMALL)
    from andscale.data.images import decode_rgb

    for image, data in zip(content["train"][0], catalogue_bytes(dataset, "train"), strict=True):
        np.testing.assert_array_equal(decode_rgb(data), np.repeat(image[..., None], 3, axis=2))
    assert dataset.splits["train"].uniform_size == (28, 28)


def test_duckdb_and_pandas_read_the_catalogue(tmp_path, images):
    prepare("image-folder", images, tmp_path / "out", SMALL)
    path = tmp_path / "out" / "train.parquet"
    rows = duckdb.sql(f"select count(*), sum(label), min(sample_id), max(sample_id) from '{path}'").fetchall()
    assert rows == [(9, 4, 0, 8)]
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["sample_id", "key", "shard", "offset", "length", "label", "source"]
    types = [str(t) for t in frame.dtypes]
    assert [types[i] for i in (0, 3, 4, 5)] == ["int64", "int64", "int64", "int32"]


def test_two_runs_and_any_number_of_workers_give_the_same_files(tmp_path, images, monkeypatch):
    runs = {"one": SMALL, "again": SMALL, "two": PrepareOptions(3, 2), "spawned": PrepareOptions(3, 2)}
    hashes = {}
    for name, options in runs.items():
        method = "spawn" if name == "spawned" else "fork"
        monkeypatch.setattr(workers, "_process_context", lambda method=method: multiprocessing.get_context(method))
        prepare("image-folder", images, tmp_path / name, options)
        hashes[name] = file_hashes(tmp_path / name)
    assert all(h == hashes["one"] for h in hashes.values())
    assert len(hashes["one"]) == 3 + 1 + 2 + 1


def test_fingerprint_does_not_depend_on_where_the_source_lay(tmp_path, images):
    shutil.copytree(images, tmp_path / "moved")
    fingerprints = {
        prepare("image-folder", source, tmp_path / f"out {source.name}", SMALL).fingerprint
        for source in (images, tmp_path / "moved")
    }
    assert len(fingerprints) == 1
    assert prepare("image-folder", images, tmp_path / "other", PrepareOptions(4, 1)).fingerprint not in fingerprints


def test_killed_at_every_step_it_goes_on_to_the_identical_result(tmp_path, images):
    (images / "train" / "ant" / "bad.jpg").write_bytes(b"no image")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    crasher = Path(__file__).with_name("prepare_crasher.py")
    command = [sys.executable, str(crasher), str(images), str(tmp_path / "work")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    died = [entry for entry in report if entry["died"]]
    undisturbed = [entry for entry in report if not entry["died"]]
    assert len(died) > 20 and undisturbed  # the rename numbers reach past the last one
    assert {entry["code"] for entry in report} == {0}, result.stderr
    assert {entry["digest"] for entry in report} == {undisturbed[0]["digest"]}, died
    assert all(entry["kept"] == entry["finished_before"] for entry in died)
    assert {entry["finished_before"] for entry in died} == {0, 1, 2, 3, 4}


def stop_before_dataset_json(monkeypatch, images, out, options=SMALL):
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_dataset", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare("image-folder", images, out, options)


def test_a_finished_shard_that_was_altered_is_written_again(tmp_path, images, monkeypatch, capsys):
    out = tmp_path / "out"
    stop_before_dataset_json(monkeypatch, images, out)
    data = bytearray((out / "train-000001.tar").read_bytes())
    data[600] ^= 1
    (out / "train-000001.tar").write_bytes(data)
    (out / ".parts" / "val-000000.parquet").write_bytes(b"no parquet")
    capsys.readouterr()
    dataset = prepare("image-folder", images, out, SMALL)
    assert "kept 2 of 4 shards" in capsys.readouterr().err
    verify_dataset(out)
    assert len(catalogue_bytes(dataset, "train")) == 9


@pytest.mark.parametrize("change", ["source", "shard size", "skip_bad"])
def test_going_on_with_other_settings_is_refused(tmp_path, images, monkeypatch, change):
    out = tmp_path / "out"
    options = SMALL
    if change == "skip_bad":
        (images / "train" / "ant" / "bad.jpg").write_bytes(b"no image")
        options = PrepareOptions(3, 1, skip_bad=True)
    stop_before_dataset_json(monkeypatch, images, out, options)
    before = file_hashes_of_all(out)
    if change == "source":
        (images / "val" / "ant" / "more.png").write_bytes(synthetic.encoded())
    other = PrepareOptions(4, 1) if change == "shard size" else SMALL
    with pytest.raises(UsageError, match=f"remove {out}"):
        prepare("image-folder", images, out, other)
    assert file_hashes_of_all(out) == before


def file_hashes_of_all(out):
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def test_what_is_prepared_already_is_returned_or_refused(tmp_path, images, capsys):
    out = tmp_path / "out"
    first = prepare("image-folder", images, out, SMALL)
    before = file_hashes(out)
    (out / ".parts").mkdir()  # as a start that is killed after its last step leaves it
    assert prepare("image-folder", images, out, SMALL) == first
    assert "already prepared" in capsys.readouterr().err
    assert file_hashes(out) == before
    with pytest.raises(UsageError, match="samples_per_shard"):
        prepare("image-folder", images, out, PrepareOptions(5, 1))
    synthetic.fashion_mnist(tmp_path / "idx")
    with pytest.raises(UsageError, match="identity"):
        prepare("fashion-mnist", tmp_path / "idx", out, SMALL)


def test_training_images_are_held_out_evenly_and_never_trained_on(tmp_path, images):
    dataset = prepare("image-folder", images, tmp_path / "out", replace(SMALL, hold_out=3))
    train, val = (load_catalogue(dataset, split) for split in ("train", "val"))
    everything = load_catalogue(prepare("image-folder", images, tmp_path / "all", SMALL), "train").sources
    # of nine in the order of their classes, the middle one of each three
    assert val.sources == [everything[at] for at in (1, 4, 7)]
    assert train.sources == [source for source in everything if source not in val.sources]
    assert catalogue_bytes(dataset, "val") == [(images / source).read_bytes() for source in val.sources]
    assert val.labels.tolist() == [int("/bee/" in source) for source in val.sources]
    assert "3 of its training images held out" in (tmp_path / "out" / "dataset.json").read_text()


def test_another_number_held_out_is_another_data_set(tmp_path, images):
    held = prepare("image-folder", images, tmp_path / "out", replace(SMALL, hold_out=3))
    assert prepare("image-folder", images, tmp_path / "out", replace(SMALL, hold_out=3)) == held
    for other in (SMALL, replace(SMALL, hold_out=2)):
        with pytest.raises(UsageError, match="identity"):
            prepare("image-folder", images, tmp_path / "out", other)


def test_all_images_cannot_be_held_out(tmp_path, images):
    with pytest.raises(UsageError, match="9 images cannot be held out of 9"):
        prepare("image-folder", images, tmp_path / "out", replace(SMALL, hold_out=9))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["notes.txt", "train-000000.tar", ".bashrc", "train.parquet"])
def test_a_folder_with_foreign_files_is_not_touched(tmp_path, images, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=name):
        prepare("image-folder", images, out, SMALL)
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [(name, b"mine")]


def test_a_file_or_a_forbidden_place_as_output_is_refused(tmp_path, images):
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError):
            prepare("image-folder", images, out, SMALL)


def break_images(images):
    (images / "train" / "ant" / "cüt.jpg").write_bytes(synthetic.EVERY_KIND["a.jpg"][:-40])
    (images / "train" / "ant" / "empty.png").write_bytes(b"")
    (images / "val" / "bee" / "line\nbreak.gif").write_bytes(b"GIF89a")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_unreadable_images_stop_the_work_and_are_listed(tmp_path, images, capsys, num_workers):
    break_images(images)
    out = tmp_path / "out"
    with pytest.raises(RunError, match="3 of 15 images cannot be read"):
        prepare("image-folder", images, out, PrepareOptions(3, num_workers))
    told = capsys.readouterr().err
    listed = (out / ".parts" / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 3
    for line in listed:
        assert line in told
    assert listed[0].startswith('"train/ant/cüt.jpg": ')
    assert listed[1] == '"train/ant/empty.png": empty file'
    assert listed[2] == '"val/bee/line\\nbreak.gif": not a JPEG, PNG, WebP or BMP image'
    for path in ("train/ant/cüt.jpg", "train/ant/empty.png", "val/bee/line\nbreak.gif"):
        (images / path).unlink()
    assert prepare("image-folder", images, out, SMALL).splits["train"].num_samples == 9


def test_skipped_images_are_recorded_and_ids_stay_contiguous(tmp_path, images, monkeypatch):
    monkeypatch.setattr(image_check, "_IMAGES_PER_CHECK", 2)
    break_images(images)
    dataset = prepare("image-folder", images, tmp_path / "out", PrepareOptions(4, 1, skip_bad=True))
    catalogue = load_catalogue(dataset, "train")
    assert catalogue.keys == [f"{i:09d}" for i in range(9)]
    assert not any("cüt" in source or "empty" in source for source in catalogue.sources)
    record = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [s["source"] for s in record["skipped"]] == [
        "train/ant/cüt.jpg",
        "train/ant/empty.png",
        "val/bee/line\nbreak.gif",
    ]
    assert [s["split"] for s in record["skipped"]] == ["train", "train", "val"]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_leaves_no_good_image_out(images, monkeypatch, code):
    samples = open_source("image-folder", images).splits["train"].take(np.arange(2))
    whole = type(samples).read

    def failing(self, index):
        if index:
            raise OSError(code, os.strerror(code))
        return whole(self, index)

    monkeypatch.setattr(type(samples), "read", failing)
    job = image_check.CheckJob("train", 0, samples)
    if code in (errno.ENOENT, errno.EACCES, errno.EISDIR):
        assert image_check.check_images(job) == image_check.Checked([(1, os.strerror(code))], [])
        return
    words = rf'"train/ant/.*": the disk failed \({os.strerror(code)}\): start again'
    with pytest.raises(RunError, match=words):
        image_check.check_images(job)
    with pytest.raises(RunError, match=words):
        shard_writer._read_sample(shard_writer.ShardJob(Path("x"), "train", 0, 0, samples), 1)


def test_an_archive_that_is_gone_is_not_taken_for_unreadable_images(tmp_path):
    synthetic.write_imagenet_tars(tmp_path, 2, 1, 1)
    samples = open_source("imagenet", tmp_path).splits["val"]
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(RunError, match=r"the disk failed \(No such file or directory\)"):
        image_check.check_images(image_check.CheckJob("val", 0, samples))


def test_a_record_that_no_reader_would_take_stops_before_anything_is_written(tmp_path, images, monkeypatch):
    monkeypatch.setattr(prepare_module, "MAX_RECORD_BYTES", 20_000)
    options = PrepareOptions(3, 1, skip_bad=True)
    for i in range(200):
        (images / "train" / "bee" / f"bad{i:03d}.png").write_bytes(b"x")
    listed = tmp_path / "out" / ".parts" / "unreadable.txt"
    with pytest.raises(UsageError, match=rf"200 images to leave out .* listed in {listed}\): move them") as caught:
        prepare("image-folder", images, tmp_path / "out", options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".parts"]
    for path in images.glob("train/bee/bad*"):
        path.unlink()
    assert prepare("image-folder", images, tmp_path / "out", options).splits["train"].num_samples == 9
    assert len((tmp_path / "out" / "dataset.json").read_bytes()) < 20_000
    with pytest.raises(UsageError, match="12 shards: .* a larger --samples-per-shard"):
        monkeypatch.setattr(prepare_module, "MAX_RECORD_BYTES", 5_000)
        prepare("image-folder", images, tmp_path / "other", PrepareOptions(1, 1))


def test_the_size_of_the_record_is_foreseen(tmp_path, images, monkeypatch):
    break_images(images)
    foreseen, largest = [], prepare_module._largest_record
    monkeypatch.setattr(prepare_module, "_largest_record", lambda *a: foreseen.append(largest(*a)) or foreseen[-1])
    prepare("image-folder", images, tmp_path / "out", PrepareOptions(1, 1, skip_bad=True))
    assert (tmp_path / "out" / "dataset.json").stat().st_size <= foreseen[0]


def test_more_than_twenty_unreadable_images_are_counted(tmp_path, images, capsys):
    for i in range(25):
        (images / "train" / "bee" / f"bad{i:02d}.png").write_bytes(b"x")
    with pytest.raises(RunError, match="25 of 37"):
        prepare("image-folder", images, tmp_path / "out", SMALL)
    told = capsys.readouterr().err
    assert told.count("unreadable: ") == 20
    assert "and 5 more" in told
    assert len((tmp_path / "out" / ".parts" / "unreadable.txt").read_text().splitlines()) == 25


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(b"x")
    with pytest.raises(RunError, match="none of the training images"):
        prepare("image-folder", tmp_path / "flat", tmp_path / "out", PrepareOptions(num_workers=1, skip_bad=True))


HOSTILE = ["a b.png", "quote'\".png", "line\nbreak.png", "-rf.png", "ünï.png", "$(touch x).png", "pipe:ls.png"]


def test_hostile_names_arrive_in_the_catalogue(tmp_path):
    folder = tmp_path / 'it\'s a "folder"\nreally'
    names = [os.fsencode(name) for name in HOSTILE] + [b"\xff\xfe.png"]
    for klass in (b"cl ass", b"\xffclass"):
        (folder / "train" / os.fsdecode(klass)).mkdir(parents=True)
        for number, name in enumerate(names):
            path = folder / "train" / os.fsdecode(klass) / os.fsdecode(name)
            path.write_bytes(synthetic.encoded(seed=number))
    (folder / "train" / "cl ass" / os.fsdecode(b"bad \xff.png")).write_bytes(b"x")
    out = tmp_path / "out: put"
    dataset = prepare("image-folder", folder, out, PrepareOptions(num_workers=1, skip_bad=True))
    assert dataset.classes == ("cl ass", "\\xffclass")
    sources = load_catalogue(dataset, "train").sources
    assert {f"train/cl ass/{name}" for name in HOSTILE} < set(sources)
    assert "train/\\xffclass/\\xff\\xfe.png" in sources
    assert len(list(stream_samples(dataset, "train"))) == 16
    verify_dataset(out)


def test_unlabelled_images_have_no_class_files(tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(4):
        (tmp_path / "flat" / f"{i}.png").write_bytes(synthetic.encoded(size=(8 + i, 9)))
    dataset = prepare("image-folder", tmp_path / "flat", tmp_path / "out", SMALL)
    assert [label for _, _, label in stream_samples(dataset, "train")] == [-1] * 4
    assert load_catalogue(dataset, "train").labels.tolist() == [-1] * 4
    assert dataset.splits["train"].uniform_size is None
    assert dataset.splits["val"].num_samples == 0
    assert len(load_catalogue(dataset, "val").labels) == 0
    assert list(stream_samples(dataset, "val")) == []
    sizes = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["train"]["image_sizes"]
    assert sizes == {"min_width": 8, "max_width": 11, "min_height": 9, "max_height": 9}


def test_catalogue_rows_come_in_whole_row_groups(tmp_path, images, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(shard_writer, "ROW_GROUP_ROWS", 4)
    dataset = prepare("image-folder", images, tmp_path / "out", SMALL)
    file = pq.ParquetFile(tmp_path / "out" / "train.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 1]
    assert load_catalogue(dataset, "train").keys == [f"{i:09d}" for i in range(9)]


def test_a_full_disk_is_told_in_one_line_and_finished_shards_are_kept(tmp_path, images, monkeypatch, capsys):
    whole, calls = shard_writer._write_tar, []

    def full(job, path):
        calls.append(job.name)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return whole(job, path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_write_tar", full)
        with pytest.raises(RunError, match=r"train-000002\.tar cannot be written \(No space left on device\)"):
            prepare("image-folder", images, tmp_path / "out", SMALL)
    prepare("image-folder", images, tmp_path / "out", SMALL)
    assert "kept 2 of 4 shards" in capsys.readouterr().err
    assert open_dataset(tmp_path / "out").splits["train"].num_samples == 9


def test_a_second_start_is_told_that_the_first_one_works(tmp_path, images):
    with (
        prepare_module._locked(tmp_path / "out" / ".parts"),
        pytest.raises(RunError, match="another process is preparing"),
    ):
        prepare("image-folder", images, tmp_path / "out", SMALL)


def test_the_lock_is_released_before_its_folder_is_removed(tmp_path, images, monkeypatch):
    """NFS renames an open file that is removed, so its folder is not empty and rmdir fails."""
    whole, out = shutil.rmtree, tmp_path / "out"

    def of_nfs(folder, ignore_errors=False):
        opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        if not any(name.startswith(f"{folder}/") for name in opened):
            whole(folder, ignore_errors)
        elif not ignore_errors:
            raise OSError(39, "Directory not empty", str(folder))

    monkeypatch.setattr(shutil, "rmtree", of_nfs)
    prepare("image-folder", images, out, SMALL)
    assert not (out / ".parts").exists()


def test_what_another_start_finished_meanwhile_is_taken(tmp_path, images, monkeypatch):
    out = tmp_path / "out"
    stop_before_dataset_json(monkeypatch, images, out)
    locked = prepare_module._locked

    @contextmanager
    def late(folder):
        monkeypatch.setattr(prepare_module, "_locked", locked)
        prepare("image-folder", images, out, SMALL)
        with locked(folder):
            yield

    monkeypatch.setattr(prepare_module, "_locked", late)
    monkeypatch.setattr(shard_writer, "_write_tar", None)
    assert prepare("image-folder", images, out, SMALL).splits["train"].num_samples == 9
    assert not (out / ".parts").exists()


@pytest.mark.parametrize("values", [{"samples_per_shard": 0}, {"num_workers": 0}, {"hold_out": 0}])
def test_options_out_of_range_are_refused(values):
    with pytest.raises(UsageError, match="at least 1"):
        PrepareOptions(**values)


def test_a_worker_that_dies_is_an_error_of_one_line():
    with pytest.raises(RunError, match="working process died"):
        list(workers.run_jobs(os._exit, [3, 3, 3], 2))


def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import time; from pathlib import Path; from andscale.data import workers\n"
        "import os, sys\n"
        "def work(i): Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(60)\n"
        "list(workers.run_jobs(work, range(2), 2))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_running(int(path.name)) for path in tmp_path.iterdir()))


def wait_until(condition, seconds=10):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_running(pid):
    """Not gone, and not a zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
