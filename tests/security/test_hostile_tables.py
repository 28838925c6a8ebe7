"""Records and tables that were made to harm: manifest, dataset.json, catalogue, features, neighbourhoods, config."""

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from andscale.config_file import load_config
from andscale.data.order import chunk_cuts
from andscale.data.raw import MAX_IMAGE_BYTES
from andscale.data.samples import SampleSource, Shards
from andscale.data.shards import CATALOGUE_KIND, load_catalogue, open_dataset
from andscale.errors import AndscaleError, RunError, UsageError
from andscale.store import artifacts
from andscale.store.features import read_features, write_features
from andscale.store.files import MAX_RECORD_BYTES, hash_file
from andscale.store.foreign import read_foreign_features
from andscale.store.neighbourhoods import read_table
from andscale.store.parquet import schema_metadata
from andscale.store.run_record import load_run

DEEP = "[" * 100_000


def manifest(folder, **changes):
    """An artefact with one file, its manifest changed."""
    with artifacts.publish(folder, kind="memory", provenance=artifacts.Provenance("c")) as draft:
        draft.path("a.parquet").write_bytes(b"x")
        draft.add("a.parquet", 1)
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        if key in record:
            record[key] = value
        else:
            record["files"][0][key] = value
    path.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../a.parquet"}, {"name": "/etc/passwd"}, {"name": ".."}, {"name": ""}, {"name": "a\0b"},
        {"name": "manifest.json"}, {"name": 5}, {"rows": -1}, {"rows": 1 << 63}, {"rows": 1.5}, {"rows": True},
        {"bytes": -1}, {"bytes": None}, {"bytes": "1"}, {"blake3": None}, {"files": {}}, {"files": ["x"]},
        {"files": None}, {"parents": 5}, {"figures": [1]}, {"format_version": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_lies_is_refused_by_name(tmp_path, changes):
    folder = manifest(tmp_path / "memory", **changes)
    with pytest.raises(RunError, match=r"manifest\.json|a\.parquet|holds no|no features") as error:
        read_features(folder)
    assert str(folder) in str(error.value)


def test_a_manifest_that_names_a_file_twice_is_refused(tmp_path):
    folder = manifest(tmp_path / "memory")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    record = json.loads((folder / "manifest.json").read_text()) | {"files": files * 2}
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"manifest\.json names a file twice"):
        artifacts.load_manifest(folder, "memory")


@pytest.mark.parametrize("kind", ["nested", "pipe", "huge", "digits"])
@pytest.mark.timeout(20)
def test_a_record_that_would_never_end_is_refused(tmp_path, kind):
    readers = {
        "manifest.json": lambda: artifacts.load_manifest(tmp_path, "memory"),
        "dataset.json": lambda: open_dataset(tmp_path),
        "run.json": lambda: load_run(tmp_path),
        "x.toml": lambda: load_config(tmp_path / "x.toml"),
    }
    for name, read in readers.items():
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(MAX_RECORD_BYTES + 1)
        else:
            path.write_text(("a = " if name == "x.toml" else "") + (DEEP if kind == "nested" else "9" * 10_000))
        with pytest.raises(AndscaleError, match=name):
            read()


@pytest.mark.parametrize(
    "text",
    [
        '[data]\ndataset = "x"\n[model]\nbackbone = "../../etc/passwd"',
        '[data]\ndataset = "x"\n[model]\nbackbone = "timm:../x"',
        '[data]\ndataset = "x"\n[model]\nbackbone = "timm:hf-hub:stranger/net"',
        '[data]\ndataset = "x"\n[method]\nname = "../and"',
    ],
)
def test_a_path_where_a_config_has_a_name_is_refused(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match=r"x\.toml: (model\.backbone|method\.name)"):
        load_config(tmp_path / "x.toml")


def dataset_with(tmp_path, digits, edit):
    record = json.loads((digits.root / "dataset.json").read_text())
    edit(record)
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("shards", "name", "../train-000000.tar"), ("shards", "name", "/etc/passwd"), ("shards", "name", "a/b.tar"),
        ("shards", "name", "pipe:id"), ("shards", "bytes", -1), ("shards", "rows", 1 << 70),
        ("shards", "blake3", "../x"), ("shards", "blake3", 7), ("catalogue", "name", "../../x.parquet"),
        ("catalogue", "rows", 10**12),
        ("split", "num_samples", 10**12), ("split", "num_samples", 1437.0),
        ("split", "image_sizes", {"min_height": -8, "max_height": -8, "min_width": -8, "max_width": -8}),
        ("split", "image_sizes", {"min_height": 1e9, "max_height": 1e9, "min_width": 8, "max_width": 8}),
        ("split", "image_sizes", 5), ("record", "classes", "abc"), ("record", "classes", [1]), ("record", "splits", 1),
    ],
)  # fmt: skip
def test_a_data_set_whose_record_lies_is_refused_by_name(tmp_path, digits, part, key, value):
    def edit(record):
        split = record["splits"]["train"]
        {"shards": split["shards"][0], "catalogue": split["catalogue"], "split": split, "record": record}[part][key] = (
            value
        )

    with pytest.raises(RunError, match=r"dataset\.json"):
        open_dataset(dataset_with(tmp_path, digits, edit))


def catalogue_with(tmp_path, digits, **columns):
    """The digits' data set with its training catalogue's columns replaced, and hashes that fit."""
    record = digits.splits["train"]
    table = pq.read_table(digits.root / record.catalogue.name)
    for name, values in columns.items():
        table = table.set_column(table.schema.names.index(name), name, pa.array(values))
    path = tmp_path / record.catalogue.name
    pq.write_table(table.replace_schema_metadata(schema_metadata(CATALOGUE_KIND)), path)
    catalogue = replace(record.catalogue, bytes=path.stat().st_size, blake3=hash_file(path))
    return replace(digits, root=tmp_path, splits={"train": replace(record, catalogue=catalogue)})


@pytest.mark.parametrize(
    "columns",
    [
        {"offset": np.full(1437, -1)}, {"offset": np.full(1437, 1 << 62)}, {"length": np.full(1437, -5)},
        {"length": np.full(1437, (1 << 63) - 1)}, {"shard": ["../x.tar"] * 1437}, {"shard": np.arange(1437)},
        {"key": np.arange(1437)}, {"offset": ["x"] * 1437}, {"offset": np.zeros(1437)}, {"label": np.full(1437, 10)},
        {"sample_id": np.zeros(1437, np.int64)}, {"length": [[1, 2]] * 1437}, {"key": [{"a": 1}] * 1437},
        {"offset": [None] * 1437},
    ],
    ids=lambda columns: f"{next(iter(columns))}={str(next(iter(columns.values())))[:20]}",
)  # fmt: skip
def test_a_catalogue_that_lies_is_refused_by_name(tmp_path, digits, columns):
    with pytest.raises(RunError, match=r"train\.parquet"):
        load_catalogue(catalogue_with(tmp_path, digits, **columns), "train")


def test_an_image_of_terabytes_in_a_catalogue_is_refused_before_memory_is_taken(tmp_path, digits):
    dataset = catalogue_with(tmp_path, digits, length=np.full(1437, MAX_IMAGE_BYTES + 1))
    shards = tuple(replace(shard, bytes=1 << 50) for shard in dataset.splits["train"].shards)
    dataset = replace(dataset, splits={"train": replace(dataset.splits["train"], shards=shards)})
    with pytest.raises(RunError, match=r"train\.parquet: the image of sample 0 has \d+ bytes, which no image has"):
        load_catalogue(dataset, "train")


def test_an_image_that_is_not_of_the_recorded_size_is_named_and_not_spread_over_it(digits):
    catalogue = load_catalogue(digits, "train")
    source = SampleSource(Shards(catalogue), chunk_cuts(len(catalogue.labels), 128), 64, None)
    with pytest.raises(RunError, match=r"train-000000\.tar, sample 0: an image has 8x8 pixels, its record says 16x16"):
        source.decode_all((16, 16), "decode")


def published(folder, kind, table, rows=None):
    with artifacts.publish(folder, kind=kind, provenance=artifacts.Provenance("c")) as draft:
        pq.write_table(table.replace_schema_metadata(schema_metadata(kind)), draft.path("x.parquet"))
        draft.add("x.parquet", len(table) if rows is None else rows)
    return folder


def lists(values, width=None, dtype=None):
    kind = pa.list_(dtype or pa.float32(), width or -1)
    return pa.array(values, kind)


FEATURES = {
    "lists of lists": {"feature": pa.array([[[1.0]], [[1.0]]])},
    "texts": {"feature": pa.array([["a"], ["b"]])},
    "structs": {"feature": pa.array([{"a": 1}, {"a": 2}])},
    "no list": {"feature": pa.array([1.0, 2.0])},
    "nulls": {"feature": pa.array([[1.0], None])},
    "null numbers": {"feature": lists([[1.0, 0.0], [None, 1.0]])},
    "lengths": {"feature": lists([[1.0], [1.0, 0.0]])},
    "empty": {"feature": lists([[], []])},
    "ids as numbers": {"feature": lists([[1.0], [1.0]]), "sample_id": pa.array([0.0, 1.0])},
    "ids as texts": {"feature": lists([[1.0], [1.0]]), "sample_id": pa.array(["0", "1"])},
    "ids as lists": {"feature": lists([[1.0], [1.0]]), "sample_id": pa.array([[0], [1]])},
    "huge ids": {"feature": lists([[1.0], [1.0]]), "sample_id": pa.array([0, (1 << 63) - 1])},
    "negative ids": {"feature": lists([[1.0], [1.0]]), "sample_id": pa.array([0, -(1 << 63)])},
}


@pytest.mark.parametrize("columns", FEATURES.values(), ids=FEATURES)
def test_features_of_other_types_are_refused_by_name(tmp_path, columns):
    table = pa.table({"sample_id": pa.array([0, 1])} | columns)
    folder = published(tmp_path / "memory", "memory", table)
    with pytest.raises(RunError, match="memory"):
        read_features(folder)
    with pytest.raises(AndscaleError, match="memory"):
        read_foreign_features(folder, "feature")


def test_features_whose_manifest_says_billions_of_rows_take_no_memory(tmp_path):
    table = pa.table({"sample_id": pa.array([0]), "feature": lists([[1.0]])})
    with pytest.raises(RunError, match="has 1 rows, 1000000000000 were expected"):
        read_features(published(tmp_path / "memory", "memory", table, 10**12))


def test_a_table_of_runs_that_unpack_to_any_memory_is_refused(tmp_path):
    """A hundred million zeros take a few hundred bytes as one run of a dictionary."""
    table = pa.table({"sample_id": np.zeros(50_000_000, np.int64)}, metadata=schema_metadata("memory"))
    table = table.append_column(
        "feature", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(50_000_000, np.float32)), 1)
    )
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", row_group_size=50_000_000)
    assert (tmp_path / "x.parquet").stat().st_size < 1_000_000
    with pytest.raises(RunError, match=r"x\.parquet is refused: it claims \d+ values in \d+ bytes"):
        read_foreign_features(tmp_path / "x.parquet")


def neighbourhood_columns(**changes):
    columns = {
        "sample_id": pa.array([0, 1]),
        "neighbour_ids": lists([[1], [0]], 1, pa.int64()),
        "similarities": lists([[0.5], [0.5]], 1),
        "entropy": pa.array([1.0, 1.0], pa.float32()),
        "is_anchor": pa.array([True, False]),
    }
    return pa.table(columns | changes)


NEIGHBOURHOODS = {
    "flat ids": {"neighbour_ids": pa.array([1, 0])},
    "real ids": {"neighbour_ids": lists([[1.0], [0.0]], 1)},
    "widths": {"similarities": lists([[0.5, 0.4], [0.5, 0.4]], 2)},
    "texts": {"similarities": pa.array([["a"], ["b"]])},
    "anchors as numbers": {"is_anchor": pa.array([2, 3])},
    "entropy lists": {"entropy": lists([[1.0], [1.0]])},
    "huge ids": {"neighbour_ids": lists([[1 << 62], [0]], 1, pa.int64())},
    "negative ids": {"neighbour_ids": lists([[-1], [0]], 1, pa.int64())},
    "ids as numbers": {"sample_id": pa.array([0.0, 1.0])},
    "nulls": {"entropy": pa.array([None, 1.0], pa.float32())},
}


@pytest.mark.parametrize("changes", NEIGHBOURHOODS.values(), ids=NEIGHBOURHOODS)
def test_a_neighbourhood_table_of_other_types_is_refused_by_name(tmp_path, changes):
    folder = published(tmp_path / "neighbourhoods", "neighbourhoods", neighbourhood_columns(**changes))
    with pytest.raises(RunError, match="neighbourhoods"):
        read_table(folder)


def test_a_neighbourhood_table_that_is_right_is_read(tmp_path):
    """So that the refusals above are for what was changed."""
    folder = published(tmp_path / "neighbourhoods", "neighbourhoods", neighbourhood_columns())
    assert read_table(folder)[0].num_neighbours == 1


def test_an_empty_neighbourhood_table_is_refused(tmp_path):
    folder = published(tmp_path / "neighbourhoods", "neighbourhoods", neighbourhood_columns().slice(0, 0))
    with pytest.raises(RunError, match="has no neighbourhoods"):
        read_table(folder)


def npy(path, header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 1)}",
        "__import__('os').system('touch executed')",
        "(" * 90,
        "",
    ],
)
def test_an_npy_header_that_lies_is_refused_by_name(tmp_path, header, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AndscaleError, match=r"f\.npy"):
        read_foreign_features(npy(tmp_path / "f.npy", header, b"\0\0\0\0"))
    assert not (tmp_path / "executed").exists()


def test_an_npy_of_another_length_than_its_header_says_is_refused(tmp_path):
    np.save(tmp_path / "f.npy", np.ones((4, 3), np.float32))
    data = (tmp_path / "f.npy").read_bytes()
    for other in (data[:-4], data + bytes(4)):
        (tmp_path / "f.npy").write_bytes(other)
        with pytest.raises(RunError, match=r"f\.npy cannot be read as \.npy: \d+ bytes follow a header of float32"):
            read_foreign_features(tmp_path / "f.npy")


def test_a_pickled_array_and_an_archive_of_arrays_are_no_features(tmp_path):
    np.save(tmp_path / "f.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"f\.npy cannot be read"):
        read_foreign_features(tmp_path / "f.npy")
    np.savez(tmp_path / "g.npz", x=np.ones((2, 2)))
    (tmp_path / "g.npz").rename(tmp_path / "g.npy")
    with pytest.raises(RunError, match=r"g\.npy cannot be read"):
        read_foreign_features(tmp_path / "g.npy")


def test_a_column_whose_name_is_no_text_is_refused_by_name(tmp_path):
    with artifacts.publish(tmp_path / "memory", kind="memory", provenance=artifacts.Provenance("c")) as draft:
        path = draft.path("a.parquet")
        write_features(path, np.arange(8), np.eye(8, dtype=np.float32))
        schema, place, chunks = path.read_bytes().rpartition(b"sample_id")  # the last is that of the column's chunk
        assert place
        path.write_bytes(schema + b"sampl\x80_id" + chunks)
        draft.add("a.parquet", 8)
    with pytest.raises(RunError, match=r"a\.parquet cannot be read as Parquet: .* can't decode byte 0x80"):
        read_features(tmp_path / "memory")
