import numpy as np
import pytest
import torch

import reference
from andscale.errors import UsageError
from andscale.evaluation import knn
from andscale.evaluation.knn import nearest, weighted_knn


def _padded(classes):
    return (classes + [-1] * 5)[:5]


@pytest.mark.parametrize("num_classes", [3, 9])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_one_pass_gives_the_published_rule_at_every_k(rng, num_classes, temperature):
    train, queries = reference.unit_rows(rng, 90, 6), reference.unit_rows(rng, 40, 6)
    labels = rng.integers(0, num_classes, 90).astype(np.int32)
    ks = (20, 1, 200, 5)  # any order; 200 is more than there are
    found = weighted_knn(train, labels, queries, ks, temperature)
    assert sorted(found) == [1, 5, 20, 200]
    for k in ks:
        expected = [_padded(reference.knn_classes(train, labels.tolist(), q, k, temperature)) for q in queries]
        assert found[k].tolist() == expected, k


def test_k_above_n_lets_all_vote(rng):
    train, queries = reference.unit_rows(rng, 30, 6), reference.unit_rows(rng, 20, 6)
    labels = rng.integers(0, 4, 30).astype(np.int32)
    found = weighted_knn(train, labels, queries, (30, 31, 500), 0.07)
    np.testing.assert_array_equal(found[31], found[30])
    np.testing.assert_array_equal(found[500], found[30])


def test_one_vote_proposes_one_class(rng):
    train = reference.unit_rows(rng, 30, 6)
    found = weighted_knn(train, np.arange(30, dtype=np.int32), train, (1, 3), 0.07)
    assert found[1].tolist() == [[i, -1, -1, -1, -1] for i in range(30)]
    assert ((found[3] >= 0).sum(axis=1) == 3).all()


def test_nearer_neighbours_weigh_more_than_many_far_ones():
    angles = np.array([0.01, 1.0, 1.01, 1.02])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.float32([[1, 0]])
    labels = np.array([0, 1, 1, 1], np.int32)
    assert weighted_knn(train, labels, query, (4,), 0.07)[4][0, 0] == 0
    assert weighted_knn(train, labels, query, (4,), 100.0)[4][0, 0] == 1, "at a high temperature the majority wins"


def test_votes_at_a_tiny_temperature_do_not_vanish():
    train = np.float32([[-1, 0], [-0.6, 0.8]])
    labels = np.array([0, 1], np.int32)
    assert weighted_knn(train, labels, np.float32([[1, 0]]), (2,), 1e-4)[2][0, 0] == 1


def _larger_ids_first(queries, train, count):
    """A search that is right up to ties and rounding, and of ties proposes those that are not wanted."""
    scores = queries @ train.T
    rounded = np.round(scores, 6)
    ids = np.lexsort((-np.arange(len(train)) + np.zeros_like(scores), -rounded), axis=1)[:, :count]
    return np.take_along_axis(scores, ids, 1), ids


@pytest.mark.parametrize("num_copies", [3, 100])
@pytest.mark.parametrize("search", [knn._search, _larger_ids_first])
def test_ties_go_to_the_smaller_id_however_many_there_are(rng, monkeypatch, num_copies, search):
    monkeypatch.setattr(knn, "_search", search)
    distinct = reference.unit_rows(rng, 12, 8)
    copies = np.repeat(distinct, num_copies, axis=0)[rng.permutation(12 * num_copies)]
    queries = np.concatenate([distinct[:4], reference.unit_rows(rng, 4, 8)])
    similarities, ids = nearest(copies, queries, 5)
    for query, row, found in zip(queries, similarities, ids, strict=True):
        scored = sorted((-reference.similarity(query, x), i) for i, x in enumerate(copies))[:5]
        assert found.tolist() == [i for _, i in scored]
        np.testing.assert_allclose(row, [-s for s, _ in scored], atol=1e-6)


def test_the_answer_does_not_depend_on_how_queries_are_shared_out(rng, monkeypatch):
    train, queries = reference.unit_rows(rng, 3000, 16, clusters=40), reference.unit_rows(rng, 300, 16)
    train[1000:2000] = train[:1000]
    labels = rng.integers(0, 50, 3000).astype(np.int32)
    whole = weighted_knn(train, labels, queries, (1, 20), 0.07)
    monkeypatch.setattr(knn, "_BLOCK_VOTES", 50 * 7)  # seven queries at a time: FAISS scores few in another way
    parts = weighted_knn(train, labels, queries, (1, 20), 0.07)
    for k in (1, 20):
        np.testing.assert_array_equal(whole[k], parts[k])


def test_samples_without_labels_cannot_vote():
    labels = np.array([0, -1], np.int32)
    with pytest.raises(UsageError, match="without a label cannot vote"):
        weighted_knn(np.eye(2, dtype=np.float32), labels, np.eye(2, dtype=np.float32), (1,), 1.0)


def test_a_gpus_working_memory_is_taken_once(monkeypatch, rng):
    """On a stand-in for FAISS's GPU part, which answers as the CPU does."""
    taken, train = [], reference.unit_rows(rng, 60, 8)
    faiss = knn.import_faiss()

    class OnGpu:
        METRIC_INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT
        StandardGpuResources = staticmethod(lambda: taken.append(1) or "resources")

        @staticmethod
        def knn_gpu(resources, queries, train, count, *, metric, device, vectorsMemoryLimit):
            assert resources == "resources"
            return faiss.knn(queries, train, count, metric=metric)

    monkeypatch.setattr(knn, "import_faiss", lambda: OnGpu)
    monkeypatch.setattr(knn, "num_gpus", lambda: 1)
    for name, value in {"is_available": True, "empty_cache": None, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    knn._gpu_resources.cache_clear()
    for _ in range(2):
        _, ids = nearest(train, reference.unit_rows(rng, 5, 8), 3)
        assert ids.shape == (5, 3)
    assert len(taken) == 1
    knn._gpu_resources.cache_clear()
