import shutil

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import reference
from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.artifacts import Provenance
from andscale.store.features import gather_by_id, read_features, shard_name, write_features
from andscale.store.parquet import write_table
from crashing import crash_at_every_call

N, D = 1000, 16


def _publish(folder, features, order, shards=3):
    with artifacts.publish(folder, kind="memory", provenance=Provenance("c")) as draft:
        for rank, ids in enumerate(np.array_split(order, shards)):
            name = shard_name(rank, shards)
            write_features(draft.path(name), ids, features[ids])
            draft.add(name, rows=len(ids))


def test_features_come_back_by_id_from_any_order_and_number_of_files(tmp_path, rng):
    features = reference.unit_rows(rng, N, D)
    _publish(tmp_path / "memory", features, rng.permutation(N))
    read, manifest = read_features(tmp_path / "memory")
    np.testing.assert_array_equal(read, features)
    assert read.dtype == np.float32
    assert manifest.num_rows == N


def test_the_parquet_schema_is_the_promised_one(tmp_path, rng):
    features = reference.unit_rows(rng, N, D)
    write_features(tmp_path / "f.parquet", np.arange(N), features)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert str(file.schema_arrow.field("sample_id")) == "pyarrow.Field<sample_id: int64 not null>"
    feature = file.schema_arrow.field("feature")
    assert (str(feature.type.value_type), feature.type.list_size) == ("float", D)
    assert file.schema_arrow.metadata[b"andscale.schema_version"] == b"1"
    column = file.metadata.row_group(0).column(1)
    assert column.compression == "UNCOMPRESSED"
    assert not column.has_dictionary_page
    path = str(tmp_path / "f.parquet")
    assert duckdb.sql(f"select count(*), sum(sample_id) from '{path}'").fetchall() == [(N, N * (N - 1) // 2)]
    assert duckdb.sql(f"select feature[3] from '{path}' where sample_id = 5").fetchall() == [(features[5, 2],)]
    np.testing.assert_array_equal(np.stack(pd.read_parquet(tmp_path / "f.parquet").feature), features)


def test_row_groups_hold_65536_rows(tmp_path):
    features = np.tile(np.float32([1, 0]), (65_537, 1))
    write_features(tmp_path / "f.parquet", np.arange(len(features)), features)
    metadata = pq.ParquetFile(tmp_path / "f.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [65_536, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zero length"), (3.0, "instead of 1")],
)
def test_bad_features_are_refused_with_their_ids_and_not_written(tmp_path, rng, value, message):
    features = reference.unit_rows(rng, 20, D)
    features[[4, 9]] = value
    with pytest.raises(RunError, match=rf"features of 2 samples have .*{message}.*sample ids 104, 109"):
        write_features(tmp_path / "f.parquet", np.arange(100, 120), features)
    assert list(tmp_path.iterdir()) == []


def _write_raw(path, ids, features):
    write_table(path, {"sample_id": ids, "feature": features}, "memory")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2, 2], "sample id 2 stands there 2 times"),
        ([0, 1, 2, 4], "sample ids outside 0..3"),
        ([0, 1, 2, -1], "sample ids outside 0..3"),
    ],
)
def test_every_sample_id_must_be_there_exactly_once(tmp_path, rng, ids, message):
    _write_raw(tmp_path / "f.parquet", np.array(ids), reference.unit_rows(rng, 4, D))
    with pytest.raises(RunError, match=message):
        gather_by_id([tmp_path / "f.parquet"], 4)


def test_missing_rows_are_noticed(tmp_path, rng):
    _write_raw(tmp_path / "f.parquet", np.arange(3), reference.unit_rows(rng, 3, D))
    with pytest.raises(RunError, match="has 3 rows, 4 were expected"):
        gather_by_id([tmp_path / "f.parquet"], 4)


def test_files_of_another_kind_or_dimension_are_refused(tmp_path, rng):
    write_table(tmp_path / "a.parquet", {"sample_id": np.arange(2), "feature": np.eye(2, dtype=np.float32)}, "other")
    with pytest.raises(RunError, match="is not a memory file"):
        gather_by_id([tmp_path / "a.parquet"], 2)
    _write_raw(tmp_path / "b.parquet", np.array([0]), np.float32([[1, 0]]))
    _write_raw(tmp_path / "c.parquet", np.array([1]), np.float32([[1, 0, 0]]))
    with pytest.raises(RunError, match="features of length 3, not 2"):
        gather_by_id([tmp_path / "b.parquet", tmp_path / "c.parquet"], 2)


def test_one_flipped_byte_is_refused(tmp_path, rng):
    _publish(tmp_path / "memory", reference.unit_rows(rng, N, D), np.arange(N))
    path = tmp_path / "memory" / shard_name(1, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="features-00001-of-00003.parquet does not have the hash"):
        read_features(tmp_path / "memory")


def test_a_writer_of_features_killed_at_any_call_leaves_nothing_or_all(tmp_path, rng):
    features = reference.unit_rows(rng, 30, D)
    folder = tmp_path / "memory"

    def check():
        if folder.exists():
            np.testing.assert_array_equal(read_features(folder)[0], features)
            shutil.rmtree(folder)

    assert crash_at_every_call(lambda: _publish(folder, features, np.arange(30)), check) > 8
