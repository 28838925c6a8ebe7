import numpy as np
import pytest

import reference
from andscale.errors import UsageError
from andscale.evaluation.knn import weighted_knn_predict


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (200, 0.07)])
def test_predictions_equal_the_published_rule(rng, k, temperature):
    train, queries = reference.unit_rows(rng, 90, 6), reference.unit_rows(rng, 60, 6)
    labels = rng.integers(0, 4, 90).astype(np.int32)
    expected = [reference.knn_predict(train, labels.tolist(), q, k, temperature) for q in queries]
    assert weighted_knn_predict(train, labels, queries, k, temperature).tolist() == expected


def test_nearer_neighbours_weigh_more_than_many_far_ones():
    angles = np.array([0.01, 1.0, 1.01, 1.02])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.float32([[1, 0]])
    labels = np.array([0, 1, 1, 1], np.int32)
    assert weighted_knn_predict(train, labels, query, 4, 0.07) == [0]
    assert weighted_knn_predict(train, labels, query, 4, 100.0) == [1], "at a high temperature the majority wins"


def test_only_the_k_nearest_vote():
    train = np.float32([[1, 0], [0.6, 0.8], [0.6, -0.8]])
    assert weighted_knn_predict(train, np.array([0, 1, 1], np.int32), train[:1], 1, 100.0) == [0]
    assert weighted_knn_predict(train, np.array([0, 1, 1], np.int32), train[:1], 3, 100.0) == [1]


def test_samples_without_labels_cannot_vote():
    with pytest.raises(UsageError, match="without a label cannot vote"):
        weighted_knn_predict(
            np.eye(2, dtype=np.float32), np.array([0, -1], np.int32), np.eye(2, dtype=np.float32), 1, 1.0
        )
