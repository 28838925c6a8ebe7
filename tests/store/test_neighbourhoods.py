import dataclasses

import numpy as np
import pytest

from andscale.errors import RunError
from andscale.store import artifacts
from andscale.store.neighbourhoods import FILE_NAME, NeighbourhoodTable, read_table, write_table_file
from andscale.store.parquet import write_table


def _table(n=10, k=2):
    ids = (np.arange(n)[:, None] + np.arange(1, k + 1)) % n
    similarities = np.tile(np.linspace(0.9, 0.5, k, dtype=np.float32), (n, 1))
    return NeighbourhoodTable(ids, similarities, np.linspace(0, 1, n, dtype=np.float32), np.arange(n) < 3)


def _publish(folder, table):
    with artifacts.publish(folder, kind="neighbourhoods", provenance=artifacts.Provenance("c")) as draft:
        write_table_file(draft.path(FILE_NAME), table)
        draft.add(FILE_NAME, rows=len(table))


def test_a_table_comes_back_as_it_was_written(tmp_path):
    _publish(tmp_path / "t", _table())
    table, manifest = read_table(tmp_path / "t")
    for field in dataclasses.fields(NeighbourhoodTable):
        np.testing.assert_array_equal(getattr(table, field.name), getattr(_table(), field.name))
    assert table.neighbour_ids.dtype == np.int64
    assert table.is_anchor.dtype == bool
    assert manifest.num_rows == 10


def test_rows_in_any_order_and_file_are_read_by_id(tmp_path):
    table, order = _table(), np.random.default_rng(0).permutation(10)
    with artifacts.publish(tmp_path / "t", kind="neighbourhoods", provenance=artifacts.Provenance("c")) as draft:
        for part, rows in enumerate(np.array_split(order, 2)):
            columns = {
                "sample_id": rows,
                "neighbour_ids": table.neighbour_ids[rows],
                "similarities": table.similarities[rows],
                "entropy": table.entropies[rows],
                "is_anchor": table.is_anchor[rows],
            }
            write_table(draft.path(f"{part}.parquet"), columns, "neighbourhoods")
            draft.add(f"{part}.parquet", rows=len(rows))
    read, _ = read_table(tmp_path / "t")
    np.testing.assert_array_equal(read.neighbour_ids, table.neighbour_ids)
    np.testing.assert_array_equal(read.is_anchor, table.is_anchor)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("neighbour_ids", [4, 5], "sample 4 has itself as a neighbour"),
        ("neighbour_ids", [6, 6], "sample 4 has a repeated neighbour"),
        ("neighbour_ids", [6, 10], "sample 4 has a neighbour out of range"),
        ("neighbour_ids", [6, -1], "sample 4 has a neighbour out of range"),
        ("similarities", [np.nan, 0.1], "sample 4 has a similarity that is not finite"),
        ("similarities", [0.1, 0.2], "sample 4 has similarities that are not in falling order"),
        ("entropies", np.inf, "sample 4 has an entropy that is not finite"),
    ],
)
def test_broken_promises_are_refused_with_the_sample_id(tmp_path, column, value, message):
    table = _table()
    getattr(table, column)[4] = value
    with pytest.raises(RunError, match=message):
        write_table_file(tmp_path / "t.parquet", table)
    assert list(tmp_path.iterdir()) == []


def _with_stderr():
    return dataclasses.replace(_table(), entropy_stderr=np.linspace(0, 0.1, 10, dtype=np.float32))


def test_standard_errors_of_entropies_come_back(tmp_path):
    _publish(tmp_path / "t", _with_stderr())
    table, _ = read_table(tmp_path / "t")
    np.testing.assert_array_equal(table.entropy_stderr, _with_stderr().entropy_stderr)
    assert table.entropy_stderr.dtype == np.float32


def test_a_table_of_exact_entropies_has_no_column_for_their_errors(tmp_path):
    import pyarrow.parquet as pq

    write_table_file(tmp_path / "exact.parquet", _table())
    write_table_file(tmp_path / "estimated.parquet", _with_stderr())
    exact, estimated = (pq.read_schema(tmp_path / f"{name}.parquet").names for name in ("exact", "estimated"))
    assert estimated == [*exact, "entropy_stderr"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_impossible_standard_errors_are_refused(tmp_path, value):
    table = _with_stderr()
    table.entropy_stderr[4] = value
    with pytest.raises(RunError, match="sample 4 has a standard error of its entropy that is negative or not finite"):
        write_table_file(tmp_path / "t.parquet", table)


def test_standard_errors_in_some_files_only_are_refused(tmp_path):
    with artifacts.publish(tmp_path / "t", kind="neighbourhoods", provenance=artifacts.Provenance("c")) as draft:
        for name, table in (("a.parquet", _table()), ("b.parquet", _with_stderr())):
            write_table_file(draft.path(name), table)
            draft.add(name, rows=10)
    with pytest.raises(RunError, match="a.parquet has no column 'entropy_stderr'"):
        read_table(tmp_path / "t")
