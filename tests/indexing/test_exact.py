from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing import candidates
from andscale.indexing.exact import Request, discover


def _assert_equals_reference(features, found, k, tau):
    exact_features = features.astype(np.float64)
    for i in range(len(features)):
        _, similarities = reference.neighbours(exact_features, i, k)
        np.testing.assert_allclose(found.similarities[i], similarities, atol=1e-6)
        mine = [reference.similarity(exact_features[i], exact_features[j]) for j in found.neighbour_ids[i]]
        np.testing.assert_allclose(mine, similarities, atol=1e-7)
        expected = reference.entropy(exact_features[i], exact_features, tau)
        assert found.entropies[i] == pytest.approx(expected, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 19),
    k=st.integers(1, 12),
    tau=st.sampled_from([0.002, 0.02, 0.05, 0.1, 1.0]),
    duplicates=st.integers(0, 20),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_neighbours_and_entropies_equal_the_equations(n, d, k, tau, duplicates, threads, seed):
    rng = np.random.default_rng(seed)
    features = reference.unit_rows(rng, n, d)
    features[rng.integers(0, n, duplicates)] = features[0]
    k = min(k, n - 1)
    _assert_equals_reference(features, discover(features, Request(k, tau, num_threads=threads)), k, tau)


def _dense(features, k, tau):
    """Canonical neighbours, float32 similarities and entropies from the whole float64 matrix."""
    scores = features.astype(np.float64) @ features.T.astype(np.float64)
    logits = scores / tau
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    entropies = -np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=1)
    rounded = scores.astype(np.float32)
    np.fill_diagonal(rounded, -np.inf)
    ids = np.argsort(-rounded, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(rounded, ids, 1), entropies


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(400, 2100),
    d=st.sampled_from([1, 2, 5, 64, 130]),
    k=st.sampled_from([1, 7, 128]),
    tau=st.sampled_from([0.02, 0.07, 0.3, 1.0]),
    copies=st.sampled_from([0, 3, 150]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_several_blocks_equal_the_dense_matrix(n, d, k, tau, copies, threads, seed):
    rng = np.random.default_rng(seed)
    features = reference.unit_rows(rng, n, d, clusters=max(2, n // 50)).astype(np.float32)
    features[rng.integers(0, n, copies)] = features[n // 2]
    found = discover(features, Request(k, tau, num_threads=threads))
    _, similarities, entropies = _dense(features, k, tau)
    np.testing.assert_allclose(found.entropies, entropies, atol=1e-4)
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-6)
    rows = np.arange(n)[:, None]
    mine = np.einsum("nd,nkd->nk", features.astype(np.float64), features[found.neighbour_ids].astype(np.float64))
    np.testing.assert_allclose(mine, similarities, atol=1e-6)
    assert not (found.neighbour_ids == rows).any()
    assert all(len(set(row)) == k for row in found.neighbour_ids.tolist())
    # the canonical order: falling similarities, equal ones by rising ids
    falls = np.diff(found.similarities, axis=1) < 0
    assert (falls | (np.diff(found.neighbour_ids, axis=1) > 0) & (np.diff(found.similarities, axis=1) == 0)).all()


def test_the_neighbours_are_the_canonical_ones(rng):
    features = reference.unit_rows(rng, 1500, 24, clusters=20)
    features[rng.integers(0, 1500, 300)] = features[:300]
    found = discover(features, Request(9, 0.1))
    ids, similarities, _ = _dense(features, 9, 0.1)
    # float32 of two float64 sums in different orders: equal but for the last bit, seldom
    np.testing.assert_allclose(found.similarities, similarities, atol=1e-7)
    assert (found.neighbour_ids == ids).mean() > 0.999


def test_neighbours_exclude_the_sample_by_id_even_when_duplicated():
    features = np.tile(np.float32([[1, 0]]), (30, 1))
    found = discover(features, Request(3, 0.1))
    assert not (found.neighbour_ids == np.arange(30)[:, None]).any()
    # all are equally similar: the smallest other ids win
    np.testing.assert_array_equal(found.neighbour_ids[0], [1, 2, 3])
    np.testing.assert_array_equal(found.neighbour_ids[1], [0, 2, 3])
    np.testing.assert_array_equal(found.neighbour_ids[29], [0, 1, 2])
    np.testing.assert_allclose(found.entropies, np.log(30), atol=1e-5)


def test_ties_go_to_the_smaller_id_when_they_reach_beyond_the_candidates(rng):
    features = reference.unit_rows(rng, 1300, 16)
    features[700:800] = features[1250]  # a run of ties longer than the candidates kept, in two blocks
    found = discover(features, Request(2, 0.1))
    np.testing.assert_array_equal(found.neighbour_ids[1250], [700, 701])
    np.testing.assert_array_equal(found.neighbour_ids[700], [701, 702])
    assert found.num_searched_again >= 101


def test_rows_are_searched_again_only_where_float32_cannot_decide(rng):
    assert discover(reference.unit_rows(rng, 2000, 64, clusters=40), Request(5, 0.1)).num_searched_again < 10


def test_the_answer_does_not_depend_on_threads_or_on_how_columns_are_packed(rng, monkeypatch):
    # ten blocks: one thread packs two at a time
    features = reference.unit_rows(rng, 4500, 32, clusters=5)
    first = discover(features, Request(5, 0.1, num_threads=1))
    monkeypatch.setattr("andscale.indexing.cpu_sweep._PANEL_BYTES", 1)
    for threads in (1, 2, 5):
        other = discover(features, Request(5, 0.1, num_threads=threads))
        np.testing.assert_array_equal(first.neighbour_ids, other.neighbour_ids)
        np.testing.assert_array_equal(first.similarities, other.similarities)
        np.testing.assert_array_equal(first.entropies, other.entropies)


@pytest.mark.parametrize("shape", [(8, 4, 3), (4, 8, 3), (16, 6, 2)])
def test_tiles_for_other_machines_give_the_same_answer(rng, monkeypatch, shape):
    from andscale.indexing import cpu_sweep
    from andscale.indexing.tile_kernel import TileShape

    features = reference.unit_rows(rng, 1100, 33, clusters=9)
    first = discover(features, Request(5, 0.1))
    monkeypatch.setattr(cpu_sweep, "host_tile_shape", lambda: TileShape(*shape))
    other = discover(features, Request(5, 0.1))
    np.testing.assert_array_equal(first.neighbour_ids, other.neighbour_ids)
    np.testing.assert_allclose(first.entropies, other.entropies, atol=2e-6)


def test_compiled_sweeps_are_made_anew_when_the_tile_changes(tmp_path, monkeypatch):
    """Numba keeps them on disk, by their own file and the numbers that they hold."""
    from andscale.indexing import row_sweep, tile_kernel
    from andscale.indexing.cpu_kernels import build_kernel, kernel_stamp
    from andscale.indexing.tile_kernel import host_tile_shape

    def numbers(kernel):
        return [cell.cell_contents for cell in kernel.py_func.__closure__]

    shape, before = host_tile_shape(), kernel_stamp()
    assert before in numbers(build_kernel(shape, 480, 1.0))
    assert before in numbers(row_sweep._compiled.__wrapped__(shape))
    changed = tmp_path / "tile_kernel.py"
    changed.write_text(Path(tile_kernel.__file__).read_text() + "# changed")
    monkeypatch.setattr(tile_kernel, "__file__", str(changed))
    assert kernel_stamp() != before


def test_two_samples_are_each_others_neighbours():
    found = discover(np.eye(2, dtype=np.float32), Request(1, 0.1))
    assert found.neighbour_ids.tolist() == [[1], [0]]


def test_sharp_temperatures_are_searched_in_float64(rng):
    features = reference.unit_rows(rng, 200, 8)
    found = discover(features, Request(2, 0.001))
    assert found.engine == "cpu float64"
    _assert_equals_reference(features, found, 2, 0.001)
    assert discover(features, Request(2, 0.02)).engine == "cpu float32"


def test_a_mistake_in_a_thread_ends_the_sweep(rng, monkeypatch):
    def fail(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(candidates, "_add_rows", fail)
    with pytest.raises(MemoryError, match="no room"):
        discover(reference.unit_rows(rng, 2000, 8), Request(1, 0.1, num_threads=3))
    monkeypatch.undo()
    monkeypatch.setattr("andscale.indexing.cpu_sweep.PairSweep.score", fail)
    with pytest.raises(MemoryError, match="no room"):
        discover(reference.unit_rows(rng, 2000, 8), Request(1, 0.1, num_threads=3))


@pytest.mark.parametrize(
    ("k", "tau", "message"),
    [
        (5, 0.1, "k = 5 neighbours cannot be had from 5 samples: k must be at most 4"),
        (0, 0.1, "at least one neighbour"),
        (1, 0.0, "temperature = 0.0: it must be a positive number"),
        (1, -1.0, "must be a positive number"),
        (1, float("nan"), "must be a positive number"),
        (1, float("inf"), "must be a positive number"),
    ],
)
def test_impossible_requests_are_refused(k, tau, message):
    with pytest.raises(UsageError, match=message):
        discover(np.eye(5, dtype=np.float32), Request(k, tau))


@pytest.mark.parametrize(
    "features", [np.eye(5), np.eye(5, dtype=np.float16), np.ones(5, np.float32), np.ones((5, 1, 1), np.float32)]
)
def test_other_types_and_shapes_are_refused(features):
    with pytest.raises(UsageError, match=r"float32 of shape \(N, D\) is needed"):
        discover(features, Request(1, 0.1))


def test_one_sample_has_no_neighbours():
    with pytest.raises(UsageError, match="cannot be had from 1 samples"):
        discover(np.ones((1, 1), np.float32), Request(1, 0.1))


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zero length"), (2.0, "len")]
)
def test_features_that_are_not_finite_and_of_unit_length_are_refused_with_their_ids(value, message):
    features = np.eye(5, dtype=np.float32)
    features[3] = features[3] * 0 + value if value != 2.0 else features[3] * 2
    with pytest.raises(RunError, match=rf"{message}.*sample ids 3\)"):
        discover(features, Request(1, 0.1))
