import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing.discover import DiscoverRequest, as_mode, discover_features
from andscale.store import artifacts
from andscale.store.neighbourhoods import KIND, read_table

REQUEST = DiscoverRequest(num_neighbours=3, temperature=0.1)


def _lists(features, kind):
    match kind:
        case "list":
            return pa.array(list(features))
        case "fixed":
            return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        case "large":
            return pa.array(list(features), pa.large_list(pa.float32()))


def test_twenty_thousand_foreign_vectors_equal_a_float64_brute_force(tmp_path, rng):
    n, k, tau = 20_000, 2, 0.1
    foreign = (reference.unit_rows(rng, n, 64, clusters=50) * rng.uniform(0.5, 9, (n, 1))).astype(np.float32)
    foreign[17] = foreign[4]
    np.save(tmp_path / "features.npy", foreign)
    discover_features(tmp_path / "features.npy", tmp_path / "out", DiscoverRequest(k, tau, 1, 4))
    table, _ = read_table(tmp_path / "out")

    exact = foreign.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    for start in range(0, n, 2_000):
        scores = exact[start : start + 2_000] @ exact.T
        logits = scores / tau
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        h = -(p * np.log(p)).sum(1)
        np.testing.assert_allclose(table.entropies[start : start + 2_000], h, atol=1e-4)
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        best = -np.sort(-scores, axis=1)[:, :k]
        mine = np.take_along_axis(scores, table.neighbour_ids[start : start + 2_000], 1)
        np.testing.assert_allclose(mine, best, atol=1e-6)
        np.testing.assert_allclose(table.similarities[start : start + 2_000], best, atol=1e-6)
    assert table.neighbour_ids[17, 0] == 4
    assert table.is_anchor.sum() == 5_000
    assert table.entropies[table.is_anchor].max() <= table.entropies[~table.is_anchor].min()


@pytest.mark.parametrize("kind", ["list", "fixed", "large"])
def test_parquet_of_every_list_type_gives_the_table_of_the_npy(tmp_path, rng, kind):
    features = reference.unit_rows(rng, 90, 6)
    np.save(tmp_path / "f.npy", features)
    expected = discover_features(tmp_path / "f.npy", tmp_path / "a", REQUEST)
    folder = tmp_path / "parts"
    folder.mkdir()
    order = rng.permutation(90)  # any order, any number of files: ids decide
    for part, rows in enumerate(np.array_split(order, 3)):
        columns = {"name": pa.array([f"x{i}" for i in rows]), "sample_id": pa.array(rows)}
        pq.write_table(pa.table({**columns, "embedding": _lists(features[rows], kind)}), folder / f"{part}.parquet")
    found = discover_features(folder, tmp_path / "b", REQUEST)
    np.testing.assert_array_equal(found.neighbour_ids, expected.neighbour_ids)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-6)
    assert not found.is_anchor.any()


def test_duckdb_and_pandas_read_the_table(tmp_path, rng):
    np.save(tmp_path / "f.npy", reference.unit_rows(rng, 50, 6))
    table = discover_features(tmp_path / "f.npy", tmp_path / "out", REQUEST)
    files = str(tmp_path / "out" / "*.parquet")
    rows = duckdb.sql(f"select sample_id, neighbour_ids[1], entropy from '{files}' order by sample_id").fetchall()
    assert [r[1] for r in rows] == table.neighbour_ids[:, 0].tolist()
    frame = pd.read_parquet(tmp_path / "out" / "neighbourhoods-00000-of-00001.parquet")
    assert list(frame.columns) == ["sample_id", "neighbour_ids", "similarities", "entropy", "is_anchor"]
    np.testing.assert_array_equal(np.stack(frame.neighbour_ids), table.neighbour_ids)


def _save(tmp_path, values):
    np.save(tmp_path / "f.npy", values)
    return tmp_path / "f.npy"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 features have NaN or infinity .sample ids 3."),
        (np.inf, "NaN or inf"),
        (0, "zero length .sample ids 3"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, rng, value, message):
    features = reference.unit_rows(rng, 20, 4)
    features[3] = value
    with pytest.raises(RunError, match=message):
        discover_features(_save(tmp_path, features), tmp_path / "out", REQUEST)
    assert [p.name for p in tmp_path.iterdir()] == ["f.npy"]


@pytest.mark.parametrize(
    "values", [np.zeros(5), np.zeros((2, 2, 2)), np.array([["a", "b"]]), np.zeros((4, 2), complex)]
)
def test_wrong_shapes_and_types_are_refused(tmp_path, values):
    with pytest.raises(UsageError, match="real numbers are needed"):
        discover_features(_save(tmp_path, values), tmp_path / "out", REQUEST)


def test_a_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "f.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"f.npy cannot be read as .npy"):
        discover_features(tmp_path / "f.npy", tmp_path / "out", REQUEST)


def test_ambiguous_columns_ask_for_a_name(tmp_path, rng):
    features = reference.unit_rows(rng, 20, 4)
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": _lists(features, "list"), "b": _lists(-features, "list")}), path)
    with pytest.raises(UsageError, match="list columns a, b: name one with --column"):
        discover_features(path, tmp_path / "out", REQUEST)
    discover_features(path, tmp_path / "out", DiscoverRequest(3, 0.1, column="b"))
    with pytest.raises(RunError, match="has no column 'c'; it has a, b"):
        discover_features(path, tmp_path / "out2", DiscoverRequest(3, 0.1, column="c"))


def test_what_is_there_is_never_written_over(tmp_path, rng):
    path = _save(tmp_path, reference.unit_rows(rng, 20, 4))
    discover_features(path, tmp_path / "out", REQUEST)
    with pytest.raises(RunError, match="is complete already"):
        discover_features(path, tmp_path / "out", REQUEST)
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="it is not ours to replace"):
        discover_features(path, tmp_path / "mine", REQUEST)


def test_missing_and_ragged_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="no features at"):
        discover_features(tmp_path / "none.npy", tmp_path / "out", REQUEST)
    with pytest.raises(UsageError, match="no features at"):
        discover_features(tmp_path / "none.parquet", tmp_path / "out", REQUEST)
    pq.write_table(pa.table({"a": pa.array([[1.0, 2.0], [1.0]])}), tmp_path / "r.parquet")
    with pytest.raises(RunError, match="lists of column 'a' have different lengths"):
        discover_features(tmp_path / "r.parquet", tmp_path / "out", REQUEST)
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match=r"junk.parquet cannot be read as Parquet"):
        discover_features(tmp_path / "junk.parquet", tmp_path / "out", REQUEST)


def test_round_and_rounds_belong_together(tmp_path, rng):
    path = _save(tmp_path, reference.unit_rows(rng, 20, 4))
    with pytest.raises(UsageError, match="--round and --rounds belong together"):
        discover_features(path, tmp_path / "out", DiscoverRequest(1, 0.1, round_number=1))


def test_the_mode_can_be_chosen_and_stands_in_the_table_and_its_hash(tmp_path, rng):
    path = _save(tmp_path, reference.unit_rows(rng, 400, 8, clusters=4))
    found = {}
    for mode in ("auto", "exact", "approximate"):
        discover_features(path, tmp_path / mode, DiscoverRequest(3, 0.1, mode=mode))
        found[mode] = artifacts.load_manifest(tmp_path / mode, KIND)
    assert [manifest.figures["mode"] for manifest in found.values()] == ["exact", "exact", "approximate"]
    assert len({manifest.digest for manifest in found.values()}) == 3
    with pytest.raises(UsageError, match="--mode 'fast': choose one of auto, exact, approximate"):
        as_mode("fast")
