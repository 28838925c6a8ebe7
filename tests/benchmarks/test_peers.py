import numpy as np
import pytest

from benchmarks.data import clustered_unit_vectors
from benchmarks.peers import all_peers, num_threads, without_self

K, TAU = 5, 0.1


@pytest.fixture(scope="module")
def features():
    return clustered_unit_vectors(1500, 32, seed=3)


@pytest.fixture(scope="module")
def right(features):
    """Similarities of the K nearest others, and entropies, in float64."""
    scores = features.astype(np.float64) @ features.T.astype(np.float64)
    p = np.exp(scores / TAU)
    p /= p.sum(axis=1, keepdims=True)
    np.fill_diagonal(scores, -2)
    return scores, -np.sort(-scores, axis=1)[:, :K], -(p * np.log(p)).sum(axis=1)


def _answer(name, features):
    # an extra that is not installed is a row that says so, not a failure
    pytest.importorskip({"faiss": "faiss", "sklearn": "sklearn"}.get(name, name if name in OPTIONAL else "numpy"))
    return all_peers()[name].function(features, K, TAU)


OPTIONAL = ("pynndescent", "usearch")


@pytest.mark.parametrize("name", ["ours", "original", "faiss", "torch", "sklearn"])
def test_exact_peers_find_the_neighbours_of_float64(features, right, name):
    ids, _ = _answer(name, features)
    scores, best, _ = right
    assert ids.shape == (1500, K)
    assert all(len(set(row)) == K for row in ids.tolist())
    np.testing.assert_allclose(np.take_along_axis(scores, ids, axis=1), best, atol=1e-6)


@pytest.mark.parametrize("name", ["ours", "original"])
def test_peers_with_entropies_have_those_of_float64(features, right, name):
    _, entropies = _answer(name, features)
    np.testing.assert_allclose(entropies, right[2], atol=1e-4)


@pytest.mark.parametrize("name", OPTIONAL)
def test_approximate_peers_find_nearly_all_neighbours(features, right, name):
    ids, entropies = _answer(name, features)
    scores, best, _ = right
    found = np.take_along_axis(scores, ids, axis=1)
    assert entropies is None
    assert not (ids == np.arange(1500)[:, None]).any()
    assert (found >= best[:, -1:] - 1e-6).mean() > 0.95


@pytest.mark.parametrize("name", ["gemm", "gemm in numpy"])
def test_the_bare_product_answers_nothing(features, name):
    assert _answer(name, features) == (None, None)


def test_every_peer_is_tested():
    tested = {"ours", "original", "faiss", "torch", "sklearn", "gemm", "gemm in numpy", *OPTIONAL}
    assert set(all_peers()) == tested


def test_a_sample_is_left_out_wherever_it_stands():
    ids = np.array([[0, 1, 2], [2, 1, 0], [0, 1, 3]])
    assert without_self(ids, 2).tolist() == [[1, 2], [2, 0], [0, 1]]


def test_threads_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_threads() == 3


def test_features_are_unit_vectors_made_from_the_seed():
    features = clustered_unit_vectors(12_000, 24, seed=1)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert (features == clustered_unit_vectors(12_000, 24, seed=1)).all()
    assert (features != clustered_unit_vectors(12_000, 24, seed=2)).any()


def test_features_are_neither_uniform_nor_separated():
    features = clustered_unit_vectors(3000, 128).astype(np.float64)
    scores = features @ features.T
    np.fill_diagonal(scores, -2)
    nearest = scores.max(axis=1)
    # uniform vectors of 128 numbers: about 0.3
    assert np.median(nearest) > 0.6
    assert np.quantile(nearest, 0.95) - np.quantile(nearest, 0.05) > 0.2
