import json

import faiss
import numpy as np
import pytest

import reference
from andscale.indexing import index_quality
from andscale.indexing.faiss_index import build_flat, save
from andscale.indexing.index_building import build_index
from andscale.indexing.index_quality import describe, exact_similarities, measure_index, serialised_bytes
from andscale.indexing.index_search import set_effort
from hard_features import clustered_rows


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr(index_quality, "_TIMED_SECONDS", 0.001)


@pytest.mark.parametrize("tile", [1, 1000, 1 << 20])
def test_the_exact_answer_equals_the_equations_whatever_the_blocks(rng, monkeypatch, tile):
    monkeypatch.setattr(index_quality, "_TILE_BYTES", tile)
    features = reference.unit_rows(rng, 90, 8)
    features[10:30] = features[50]
    rows = np.array([0, 10, 29, 50, 89])
    exact = exact_similarities(features, rows, 12)
    for row, similarities in zip(rows, exact, strict=True):
        np.testing.assert_allclose(similarities, reference.neighbours(features, row, 12)[1], atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 11, 12, 300])
def test_an_exact_index_has_full_recall_whatever_is_tied(rng, n):
    features = reference.unit_rows(rng, n, 8)
    features[n // 2 :] = features[0]
    figures = measure_index(build_flat(features), features, np.arange(n))
    assert (figures["recall_at_1"], figures["recall_at_10"]) == (1.0, 1.0)


def _answers(features, order):
    """An index over the features whose ids name other samples."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(features.shape[1]))
    index.add_with_ids(features, order)
    return index


def test_wrong_ids_are_no_recall(rng):
    features = reference.unit_rows(rng, 500, 16)
    figures = measure_index(_answers(features, np.roll(np.arange(500), 1)), features, np.arange(0, 500, 5))
    assert figures["recall_at_1"] < 0.1
    assert figures["recall_at_10"] < 0.1


def test_recall_counts_the_neighbours_that_are_right(rng):
    """Two far clusters, in one of which the ids are wrong: half of the rows find theirs."""
    features = reference.unit_rows(rng, 400, 16) * np.float32(0.3)
    features[:200, 0] += 2
    features[200:, 0] -= 2
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    order = np.arange(400)
    order[200:] = np.roll(order[200:], 100)
    figures = measure_index(_answers(features, order), features, np.arange(400))
    assert figures["recall_at_1"] == pytest.approx(0.5, abs=0.03)
    assert figures["recall_at_10"] == pytest.approx(0.5, abs=0.06)


def test_less_effort_is_less_recall(rng):
    features = clustered_rows(rng, 3000, 24)
    index = build_index(features, "ivf_flat")
    rows = np.arange(0, 3000, 10)
    tuned = measure_index(index, features, rows)
    set_effort(index, 1)
    hasty = measure_index(index, features, rows)
    assert tuned["recall_at_1"] > 0.97
    assert tuned["recall_at_10"] > 0.95
    assert hasty["recall_at_1"] < 0.85
    assert hasty["recall_at_10"] < 0.85
    assert hasty["settings"]["nprobe"] == 1


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_pq", "hnsw"])
def test_the_figures_say_what_was_measured(rng, tmp_path, kind):
    features = clustered_rows(rng, 600, 16)
    index = build_index(features, kind)
    figures = measure_index(index, features, np.arange(0, 600, 6))
    assert json.loads(json.dumps(figures)) == figures
    save(index, tmp_path / "index")
    assert figures["bytes"] == serialised_bytes(index) == (tmp_path / "index").stat().st_size
    assert (figures["index_kind"], figures["dim"], figures["measured_rows"]) == (kind, 16, 100)
    assert figures["queries_per_second"] > 0
    assert figures["query_ms"] > 0
    assert measure_index(index, features, np.arange(3), 77)["bytes"] == 77
    names = {"flat": [], "ivf_flat": ["nlist", "nprobe"], "ivf_pq": ["nlist", "nprobe", "pq_bytes", "refine"]}
    assert list(figures["settings"]) == names.get(kind, ["M", "efConstruction", "efSearch"])


def test_the_table_is_aligned():
    figures = {
        "index_kind": "ivf_flat",
        "settings": {"nlist": 1788, "nprobe": 128},
        "recall_at_1": 0.991,
        "recall_at_10": 1.0,
        "queries_per_second": 5855,
        "query_ms": 0.31,
        "bytes": 104_900_000,
        "measured_rows": 1000,
    }
    assert describe(figures) == (
        "   index  recall@1  recall@10  queries/s  ms/query     MB   rows  settings\n"
        "ivf_flat    0.9910     1.0000      5,855     0.310  104.9  1,000  nlist 1788, nprobe 128"
    )
