import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing.exact import Discovery, check_against_float64, discover, find_neighbours

TILE = 1 << 20


def _assert_equals_reference(features, found, k, tau):
    exact = features.astype(np.float64)
    for i in range(len(features)):
        _, similarities = reference.neighbours(exact, i, k)
        np.testing.assert_allclose(found.similarities[i], similarities, atol=1e-6)
        mine = [reference.similarity(exact[i], exact[j]) for j in found.neighbour_ids[i]]
        np.testing.assert_allclose(mine, similarities, atol=1e-7)
        assert found.entropies[i] == pytest.approx(reference.entropy(exact[i], exact, tau), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 12),
    k=st.integers(1, 12),
    tau=st.sampled_from([0.002, 0.02, 0.05, 0.1, 1.0]),
    duplicates=st.integers(0, 20),
    tile=st.sampled_from([1, 700, 1 << 20]),
    seed=st.integers(0, 2**31),
)
def test_neighbours_and_entropies_equal_the_equations(n, d, k, tau, duplicates, tile, seed):
    rng = np.random.default_rng(seed)
    features = reference.unit_rows(rng, n, d)
    features[rng.integers(0, n, duplicates)] = features[0]
    k = min(k, n - 1)
    _assert_equals_reference(features, discover(features, k, tau, tile), k, tau)


def test_neighbours_exclude_the_sample_by_id_even_when_duplicated():
    features = np.tile(np.float32([[1, 0]]), (30, 1))
    found = discover(features, 3, 0.1, TILE)
    assert not (found.neighbour_ids == np.arange(30)[:, None]).any()
    # all are equally similar: the smallest other ids win
    np.testing.assert_array_equal(found.neighbour_ids[0], [1, 2, 3])
    np.testing.assert_array_equal(found.neighbour_ids[1], [0, 2, 3])
    np.testing.assert_array_equal(found.neighbour_ids[29], [0, 1, 2])
    np.testing.assert_allclose(found.entropies, np.log(30), atol=1e-5)


def test_ties_go_to_the_smaller_id_when_they_reach_beyond_the_candidates(rng):
    features = reference.unit_rows(rng, 300, 16)
    features[100:200] = features[250]  # a run of ties longer than FAISS is asked for
    found = discover(features, 2, 0.1, TILE)
    np.testing.assert_array_equal(found.neighbour_ids[250], [100, 101])
    np.testing.assert_array_equal(found.neighbour_ids[100], [101, 102])


class _Reversed:
    """An exact index whose ties come in falling order of ids, as a library may give them."""

    def __init__(self, features):
        self.features = features

    def search(self, queries, k):
        scores = queries @ self.features.T
        order = np.lexsort((np.broadcast_to(-np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("ties", [4, 100])
def test_ties_are_canonical_whatever_order_the_library_gives(rng, monkeypatch, ties):
    features = reference.unit_rows(rng, 300, 16)
    features[100 : 100 + ties] = features[250]
    monkeypatch.setattr("andscale.indexing.exact.to_gpu", lambda index: _Reversed(features))
    ids, _ = find_neighbours(features, None, 2, TILE)
    np.testing.assert_array_equal(ids[250], [100, 101])
    np.testing.assert_array_equal(ids[101], [100, 102])


def test_the_answer_does_not_depend_on_the_block_size(rng):
    features = reference.unit_rows(rng, 500, 32, clusters=5)
    whole, tiny = discover(features, 5, 0.1, TILE), discover(features, 5, 0.1, 1)
    np.testing.assert_array_equal(whole.neighbour_ids, tiny.neighbour_ids)
    np.testing.assert_array_equal(whole.similarities, tiny.similarities)
    np.testing.assert_allclose(whole.entropies, tiny.entropies, atol=2e-6)


def test_two_samples_are_each_others_neighbours():
    found = discover(np.eye(2, dtype=np.float32), 1, 0.1, TILE)
    assert found.neighbour_ids.tolist() == [[1], [0]]


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
        discover(np.eye(5, dtype=np.float32), k, tau, TILE)


def _found(rng):
    features = reference.unit_rows(rng, 60, 8)
    return features, discover(features, 3, 0.1, TILE)


def test_the_float64_check_accepts_a_right_answer(rng):
    features, found = _found(rng)
    check_against_float64(features, found, 0.1, np.arange(60))


@pytest.mark.parametrize("damage", ["neighbour", "similarity", "entropy", "order"])
def test_the_float64_check_refuses_a_wrong_answer(rng, damage):
    features, found = _found(rng)
    ids, similarities, entropies = (a.copy() for a in (found.neighbour_ids, found.similarities, found.entropies))
    worst = int(np.argmin(features @ features[7]))
    match damage:
        case "neighbour":
            ids[7, 2] = worst
        case "similarity":
            similarities[7, 0] += 1e-3
        case "entropy":
            entropies[7] += 2e-4
        case "order":
            ids[7] = ids[7, ::-1]
    damaged = Discovery(ids, similarities, entropies, found.index)
    with pytest.raises(RunError, match="disagrees with float64.* of sample 7 "):
        check_against_float64(features, damaged, 0.1, np.arange(60))
