import shutil
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reference
from andscale.errors import RunError
from andscale.store import artifacts, feature_pages, feature_reader
from andscale.store.artifacts import Provenance
from andscale.store.features import gather_by_id, read_features, shard_name, write_features
from andscale.store.parquet import write_table
from crashing import crash_at_every_call

N, D = 1000, 16


def _publish(folder, features, order, shards=3, dtype="float32"):
    with artifacts.publish(folder, kind="memory", provenance=Provenance("c")) as draft:
        for rank, ids in enumerate(np.array_split(order, shards)):
            name = shard_name(rank, shards)
            write_features(draft.path(name), ids, features[ids], dtype)
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


@pytest.mark.parametrize("dim", [1, 7, 8, 16, 24, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_readers_see_what_was_written(tmp_path, rng, monkeypatch, dim, dtype):
    monkeypatch.setattr(feature_pages, "PAGE_BYTES", 2000)  # many pages, the last not full
    features = reference.unit_rows(rng, 1111, dim)
    order = rng.permutation(1111)
    path = tmp_path / "f.parquet"
    write_features(path, order, features[order], dtype)
    stored = features[order].astype(dtype)
    table = pq.read_table(path, page_checksum_verification=True)
    assert str(table.schema.field("feature").type) == f"fixed_size_list<element: {_arrow(dtype)} not null>[{dim}]"
    np.testing.assert_array_equal(table.column("sample_id").to_numpy(), order)
    np.testing.assert_array_equal(np.stack(table.column("feature").to_numpy()), stored)
    np.testing.assert_array_equal(np.stack(pd.read_parquet(path).feature), stored)
    rows = duckdb.sql(f"select sample_id, feature from '{path}'").fetchall()
    np.testing.assert_array_equal([row[0] for row in rows], order)
    np.testing.assert_array_equal(np.array([row[1] for row in rows], np.float32), stored.astype(np.float32))
    chosen = duckdb.sql(f"select feature[{dim}] from '{path}' where sample_id = 700").fetchall()
    assert chosen == [(features[700, dim - 1].astype(dtype),)]


def _arrow(dtype):
    return {"float32": "float", "float16": "halffloat"}[dtype]


def test_an_empty_shard_is_a_file_without_rows(tmp_path, rng):
    features = reference.unit_rows(rng, 2, D)
    _publish(tmp_path / "memory", features, np.arange(2))
    assert pq.read_table(tmp_path / "memory" / shard_name(2, 3)).num_rows == 0
    assert duckdb.sql(f"select count(*) from '{tmp_path}/memory/*.parquet'").fetchall() == [(2,)]
    with pytest.raises(RunError, match="no features in"):
        gather_by_id([tmp_path / "memory" / shard_name(2, 3)], 0)
    np.testing.assert_array_equal(read_features(tmp_path / "memory")[0], features)


def test_half_precision_takes_half_the_space_and_comes_back_at_unit_length(tmp_path, rng):
    features = reference.unit_rows(rng, N, 128)
    for dtype in ("float32", "float16"):
        _publish(tmp_path / dtype, features, rng.permutation(N), dtype=dtype)
    whole, half = (sum(f.bytes for f in read_features(tmp_path / d)[1].files) for d in ("float32", "float16"))
    assert half < 0.53 * whole
    read, _ = read_features(tmp_path / "float16")
    assert read.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(read.astype(np.float64), axis=1), 1, atol=2e-7)
    stored = features.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(read, stored / np.linalg.norm(stored, axis=1)[:, None], rtol=5e-7)
    assert np.abs(np.linalg.norm(stored, axis=1) - 1).max() > 1e-5, "rounding alone does not keep the length"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["ascending", "shuffled", "rolled"])
def test_a_range_of_rows_is_that_part_of_the_whole(tmp_path, rng, monkeypatch, dtype, order):
    monkeypatch.setattr(feature_pages, "PAGE_BYTES", 2000)
    # one file after the other: what one put in a wrong place is not mended by the next by chance
    monkeypatch.setattr("andscale.store.features.num_usable_cores", lambda: 1)
    features = reference.unit_rows(rng, N, D)
    orders = {"ascending": np.arange(N), "shuffled": rng.permutation(N), "rolled": np.roll(np.arange(N), 333)}
    _publish(tmp_path / "memory", features, orders[order], dtype=dtype)
    whole, _ = read_features(tmp_path / "memory")
    for rows in (
        range(1000),
        range(1),
        range(999, 1000),
        range(300, 340),
        range(334, 667),
        range(250, 950),
        range(5, 5),
    ):
        for share in ((0, 1), (1, 2)):
            part, manifest = read_features(tmp_path / "memory", rows=rows, share=share)
            np.testing.assert_array_equal(part, whole[rows.start : rows.stop])
            assert manifest.num_rows == N
    for rows in (range(0, 10, 2), range(-1, 4), range(990, 1001)):
        with pytest.raises(ValueError, match="of 1000 samples"):
            read_features(tmp_path / "memory", rows=rows)


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_processes_that_share_the_checking_each_verify_their_own_files(tmp_path, rng):
    _publish(tmp_path / "memory", reference.unit_rows(rng, N, D), np.arange(N))
    _flip(tmp_path / "memory" / shard_name(1, 3), 5000)
    with pytest.raises(RunError, match="features-00001-of-00003.parquet does not have the hash"):
        read_features(tmp_path / "memory", rows=range(10), share=(1, 2))
    assert read_features(tmp_path / "memory", rows=range(10), share=(0, 2))[0].shape == (10, D)
    with pytest.raises(RunError, match="features-00001-of-00003.parquet cannot be read"):
        read_features(tmp_path / "memory", rows=range(400, 410), share=(0, 2))
    (tmp_path / "memory" / shard_name(0, 3)).unlink()
    with pytest.raises(RunError, match="features-00000-of-00003.parquet is missing"):
        read_features(tmp_path / "memory", rows=range(700, 710), share=(1, 2))


def test_row_groups_without_wanted_rows_are_not_read(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("andscale.store.feature_writer.ROW_GROUP_ROWS", 100)
    features = reference.unit_rows(rng, N, D)
    path = tmp_path / "memory" / shard_name(0, 1)
    _publish(tmp_path / "memory", features, np.arange(N), shards=1)
    _flip(path, path.stat().st_size // 2)
    for rows in (range(300), range(700, 1000)):
        read, _ = read_features(tmp_path / "memory", rows=rows, share=(1, 2))
        np.testing.assert_array_equal(read, features[rows.start : rows.stop])
    with pytest.raises(RunError, match="cannot be read"):
        read_features(tmp_path / "memory", rows=range(300, 700), share=(1, 2))


def test_ids_of_a_range_must_be_there_exactly_once(tmp_path, rng):
    features = reference.unit_rows(rng, 12, D)
    for name, ids in (("missing", [0, 1, 2, 3, 4, 4]), ("apart", [0, 1, 2, 3, 3, 5])):
        with artifacts.publish(tmp_path / name, kind="memory", provenance=Provenance("c")) as draft:
            write_features(draft.path("f.parquet"), np.array(ids), features[ids])
            draft.add("f.parquet", rows=6)
    assert read_features(tmp_path / "missing", rows=range(1, 4))[0].shape == (3, D)
    with pytest.raises(RunError, match="sample id 4 stands there 2 times"):
        read_features(tmp_path / "missing", rows=range(3, 6))
    with pytest.raises(RunError, match="has 3 rows, 2 were expected"):
        read_features(tmp_path / "apart", rows=range(2, 4))
    with pytest.raises(RunError, match="has 1 rows, 2 were expected"):
        read_features(tmp_path / "apart", rows=range(4, 6))


def test_features_that_are_not_unit_length_are_not_read(tmp_path, rng):
    features = reference.unit_rows(rng, 20, D)
    features[[4, 9]] = 0
    for dtype in (np.float32, np.float16):
        folder = tmp_path / np.dtype(dtype).name
        with artifacts.publish(folder, kind="memory", provenance=Provenance("c")) as draft:
            _write_raw(draft.path("f.parquet"), np.arange(20), features.astype(dtype))
            draft.add("f.parquet", rows=20)
        with pytest.raises(RunError, match="features of 2 samples have zero length .sample ids 4, 9"):
            read_features(folder)
        assert read_features(folder, rows=range(5, 9))[0].shape == (4, D)
        with pytest.raises(RunError, match="features of 1 samples have zero length .sample ids 9"):
            read_features(folder, rows=range(5, 20))


def test_our_own_files_are_read_without_arrow_and_others_with_it(tmp_path, rng, monkeypatch):
    features = reference.unit_rows(rng, N, D)
    write_features(tmp_path / "ours.parquet", np.arange(N), features)
    _write_raw(tmp_path / "theirs.parquet", np.arange(N), features)
    lists = pa.table({"feature": list(features), "sample_id": np.arange(N)})
    pq.write_table(lists.replace_schema_metadata({"andscale.kind": "memory"}), tmp_path / "lists.parquet")
    for name in ("ours", "theirs", "lists"):
        np.testing.assert_array_equal(gather_by_id([tmp_path / f"{name}.parquet"], N), features)
    monkeypatch.setattr(feature_reader, "_read_with_arrow", None)
    np.testing.assert_array_equal(gather_by_id([tmp_path / "ours.parquet"], N), features)
    write_features(tmp_path / "half.parquet", np.arange(N), features, "float16")
    np.testing.assert_allclose(gather_by_id([tmp_path / "half.parquet"], N), features, atol=1e-3)
    with pytest.raises(TypeError):
        gather_by_id([tmp_path / "theirs.parquet"], N)


def test_a_flipped_bit_anywhere_in_a_file_is_never_read_as_features(tmp_path, rng):
    features = reference.unit_rows(rng, 40, 8)
    path = tmp_path / "f.parquet"
    write_features(path, np.arange(40), features)
    whole = path.read_bytes()
    num_refused = 0
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(footer):
        path.write_bytes(whole)
        _flip(path, place)
        try:
            read = gather_by_id([path], 40)
        except RunError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(read, features)
    assert num_refused > 0.95 * footer


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from andscale.store.features import read_features, write_features
from andscale.store import artifacts

def memory(key):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024

def publish(folder, features):
    with artifacts.publish(folder, kind="memory", provenance=artifacts.Provenance("c")) as draft:
        write_features(draft.path("f.parquet"), np.arange(len(features)), features, sys.argv[2])
        draft.add("f.parquet", rows=len(features))

root = Path(sys.argv[1])
publish(root / "small", np.eye(4, dtype=np.float32))
read_features(root / "small")
if sys.argv[3] == "write":
    features = np.zeros((800_000, 64), np.float32)
    features[:, 5] = 1
    before = memory("VmRSS") - features.nbytes
    publish(root / "large", features)
else:
    before = memory("VmRSS")
    features, _ = read_features(root / "large")
print((memory("VmHWM") - before) / features.nbytes)
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_stays_below_twice_the_data(tmp_path, dtype):
    for what in ("write", "read"):
        arguments = [sys.executable, "-c", _PEAK, str(tmp_path), dtype, what]
        shutil.rmtree(tmp_path / "small", ignore_errors=True)
        answer = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert 0.9 < float(answer.stdout) < 2, what
