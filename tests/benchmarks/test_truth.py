import numpy as np
import pytest

import reference
from benchmarks.truth import find_truth

ROWS = np.array([3, 0, 41])


@pytest.fixture
def features(rng):
    features = reference.unit_rows(rng, 60, 8, clusters=4)
    # rounding cannot tell the copies apart
    features[50] = features[49] = features[3]
    return features


def test_entropies_are_those_of_the_equation(features):
    truth = find_truth(features, ROWS, {1}, 0.1)
    expected = [reference.entropy(features[i], features, 0.1) for i in ROWS]
    np.testing.assert_allclose(truth.entropies, expected, atol=1e-12)
    assert truth.entropy_error(expected + np.array([0, 0.25, -0.5])) == pytest.approx(0.5)


def test_the_right_neighbours_have_recall_one(features):
    truth = find_truth(features, ROWS, {1, 4}, 0.1)
    for k in (1, 4):
        ids = np.array([reference.neighbours(features, i, k)[0] for i in ROWS])
        assert truth.recall(ids, k) == 1


def test_ties_count_as_right_and_others_as_wrong(features):
    truth = find_truth(features, ROWS, {1}, 0.1)
    first, far = reference.neighbours(features, 0, 1)[0][0], reference.neighbours(features, 0, 59)[0][-1]
    last = reference.neighbours(features, 41, 1)[0][0]
    assert truth.recall(np.array([[50], [first], [last]]), 1) == 1
    assert truth.recall(np.array([[49], [far], [last]]), 1) == pytest.approx(2 / 3)


def test_neither_the_sample_itself_nor_an_id_twice_counts(features):
    truth = find_truth(features, ROWS[:1], {2}, 0.1)
    assert truth.recall(np.array([[49, 50]]), 2) == 1
    assert truth.recall(np.array([[49, 3]]), 2) == 0.5
    assert truth.recall(np.array([[49, 49]]), 2) == 0.5
