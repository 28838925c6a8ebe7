"""Prepared data sets: damage is found and named, hostile records are refused, every row is checked."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import synthetic_sources as synthetic
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.shard_stream import stream_samples
from andscale.data.shards import load_catalogue, open_dataset, verify_dataset
from andscale.errors import RunError, UsageError
from andscale.store.files import hash_file


@pytest.fixture
def dataset(tmp_path):
    synthetic.image_folder(tmp_path / "images")
    return prepare("image-folder", tmp_path / "images", tmp_path / "out", PrepareOptions(3, 1))


def edit_record(root, edit):
    path = root / "dataset.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["train-000001.tar", "val-000000.tar", "train.parquet"])
def test_verify_names_a_flipped_byte(dataset, name):
    assert verify_dataset(dataset.root) == dataset
    path = dataset.root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=rf"{name} does not have the hash.*1 of 6 files"):
        verify_dataset(dataset.root)


def test_verify_counts_bad_files_and_names_the_first(dataset):
    (dataset.root / "train-000000.tar").unlink()
    with (dataset.root / "val-000000.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RunError, match=r"train-000000.tar is missing.*2 of 6 files"):
        verify_dataset(dataset.root)


def test_what_is_not_prepared_is_told_how_to_be(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"is not a prepared data set: make it with tools/prepare_shards\.py"):
            open_dataset(root)


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/passwd", "pipe:ls", "a/b.tar", "..", "", "a\0b", ".x"])
@pytest.mark.parametrize("kind", ["shard", "catalogue"])
def test_names_outside_the_folder_are_refused(dataset, name, kind):
    def edit(record):
        split = record["splits"]["train"]
        (split["shards"][0] if kind == "shard" else split["catalogue"])["name"] = name

    edit_record(dataset.root, edit)
    with pytest.raises(RunError, match="outside its folder"):
        open_dataset(dataset.root)


DAMAGES = {
    "other format": (lambda r: r.update(format="elsewhere"), "another program"),
    "newer version": (lambda r: r.update(format_version=2), "format version 2"),
    "no splits": (lambda r: r.pop("splits"), "damaged"),
    "no val": (lambda r: r["splits"].pop("val"), "damaged"),
    "splits a list": (lambda r: r.update(splits=[]), "damaged"),
    "negative bytes": (lambda r: r["splits"]["train"]["shards"][0].update(bytes=-1), "damaged"),
    "text as rows": (lambda r: r["splits"]["train"]["shards"][0].update(rows="3"), "damaged"),
    "number as name": (lambda r: r["splits"]["train"]["shards"][0].update(name=3), "damaged"),
    "other count": (lambda r: r["splits"]["train"].update(num_samples=8), "counts of samples differ"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_are_refused(dataset, damage):
    edit, message = DAMAGES[damage]
    edit_record(dataset.root, edit)
    with pytest.raises(RunError, match=message):
        open_dataset(dataset.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_record_that_is_no_object_is_refused(dataset, text):
    (dataset.root / "dataset.json").write_text(text)
    with pytest.raises(RunError, match=r"dataset\.json"):
        open_dataset(dataset.root)


def rewrite_catalogue(dataset, edit):
    """Replace the catalogue's columns and its record; returns the data set that says so."""
    record = dataset.splits["train"]
    path = dataset.root / record.catalogue.name
    table = pq.read_table(path)
    columns = table.to_pydict()
    edit(columns)
    pq.write_table(pa.table(columns, schema=table.schema), path)
    catalogue = replace(record.catalogue, bytes=path.stat().st_size, blake3=hash_file(path))
    return replace(dataset, splits={**dataset.splits, "train": replace(record, catalogue=catalogue)})


def put(column, row, value):
    def edit(columns):
        columns[column][row] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("sample_id", 4, 5), "sample id 5 stands there 2 times"),
        (put("sample_id", 4, 9), "sample id 9 is not in"),
        (put("offset", 4, -1), "sample 4 lies outside"),
        (put("offset", 4, 2**62), "sample 4 lies outside"),
        (put("length", 4, 0), "sample 4 lies outside"),
        (put("length", 4, 2**63 - 1), "sample 4 lies outside"),
        (put("label", 4, 2), "label outside"),
        (put("label", 4, -2), "label outside"),
        (put("shard", 4, "../x.tar"), "nulls"),
        (put("shard", 4, "train-000000.tar"), "lists 4 images in train-000000"),
    ],
)
def test_rows_that_cannot_be_are_refused(dataset, edit, message):
    with pytest.raises(RunError, match=message):
        load_catalogue(rewrite_catalogue(dataset, edit), "train")


def test_rows_in_another_order_are_the_same_catalogue(dataset):
    expected = load_catalogue(dataset, "train")

    def shuffle(columns):
        order = np.random.default_rng(0).permutation(len(columns["key"]))
        for name, values in columns.items():
            columns[name] = [values[i] for i in order]

    got = load_catalogue(rewrite_catalogue(dataset, shuffle), "train")
    for name in ("shard_numbers", "offsets", "lengths", "labels", "keys", "sources"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_an_altered_catalogue_is_refused(dataset):
    path = dataset.root / "train.parquet"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"train\.parquet does not have the hash"):
        load_catalogue(dataset, "train")


def test_the_first_samples_alone_are_a_prefix(dataset):
    whole, cut = load_catalogue(dataset, "train"), load_catalogue(dataset, "train", 4)
    assert cut.keys == whole.keys[:4]
    assert cut.sources == whole.sources[:4]
    assert cut.shards == whole.shards
    for name, dtype in (
        ("shard_numbers", np.int32),
        ("offsets", np.int64),
        ("lengths", np.int64),
        ("labels", np.int32),
    ):
        assert getattr(cut, name).dtype == dtype
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:4])
    assert len(load_catalogue(dataset, "train", 1000).keys) == 9
    bare = load_catalogue(dataset, "train", 4, texts=False)
    assert (bare.keys, bare.sources) == ([], [])
    assert bare.labels.tolist() == cut.labels.tolist()
    assert bare.offsets.tolist() == cut.offsets.tolist()


def test_catalogue_and_data_set_go_to_other_processes(dataset):
    catalogue = pickle.loads(pickle.dumps(load_catalogue(dataset, "val")))
    assert catalogue.labels.tolist() == load_catalogue(dataset, "val").labels.tolist()
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_unknown_splits_are_refused(dataset):
    with pytest.raises(UsageError, match="train, val"):
        load_catalogue(dataset, "test")
    with pytest.raises(UsageError, match="train, val"):
        next(stream_samples(dataset, "test"))


def test_a_cut_shard_ends_the_stream_with_an_error(dataset):
    path = dataset.root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RunError, match="verify the data set"):
        list(stream_samples(dataset, "train"))


def test_a_shard_named_like_a_command_is_opened_as_a_file(dataset, tmp_path):
    """The stream hands webdataset open files: an address that it would run is only a file that is not there."""
    record = dataset.splits["train"]
    hostile = replace(record, shards=(replace(record.shards[0], name=f"pipe:touch {tmp_path / 'witness'}"),))
    with pytest.raises(RunError):
        list(stream_samples(replace(dataset, splits={"train": hostile}), "train"))
    assert not (tmp_path / "witness").exists()
