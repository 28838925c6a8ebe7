import shutil
import types
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

import reference
from andscale.errors import RunError, UsageError
from andscale.indexing import faiss_index, index_building
from andscale.indexing.faiss_index import (
    INDEX_NAME,
    KIND,
    choose_kind,
    index_kind,
    open_index,
    save,
    to_gpu,
)
from andscale.indexing.index_building import build_index
from andscale.indexing.index_search import index_settings, search, set_effort
from andscale.store import artifacts
from hard_features import clustered_rows

KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")
GIB = 1024**3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """FAISS's threads wait for each other at every step: slow where other processes have the cores."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture(scope="module")
def rows():
    return clustered_rows(np.random.default_rng(5), 3100, 32)


@pytest.fixture(scope="module")
def features(rows):
    return rows[:3000]


@pytest.fixture(scope="module")
def indexes(features):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_building, "_ADD_ROWS", 700)  # several blocks, the last one short
        return {kind: build_index(features, kind, seed=3) for kind in KINDS}


@pytest.fixture(scope="module")
def saved(indexes, tmp_path_factory):
    """One artefact a kind; read only."""
    root = tmp_path_factory.mktemp("indexes")
    for kind, index in indexes.items():
        _publish(root / kind, index, index_kind=kind, dim=32)
    return root


def _publish(folder, index, rows=3000, **figures):
    with artifacts.publish(folder, kind=KIND, provenance=artifacts.Provenance("c")) as draft:
        save(index, draft.path(INDEX_NAME))
        draft.add(INDEX_NAME, rows=rows)
        draft.figures.update(figures)


def _exact(features, queries, k):
    """Ids of the K nearest in float64, canonical order."""
    scores = queries.astype(np.float64) @ features.astype(np.float64).T
    return np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :k]


def _overlap(ids, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids.tolist(), expected.tolist(), strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_index_answers_new_vectors_as_the_built_one_did(rows, indexes, saved, kind):
    features, queries = rows[:3000], rows[3000:]
    index, manifest = open_index(saved / kind)
    assert index_kind(index) == kind
    assert manifest.num_rows == 3000
    assert index_settings(index) == index_settings(indexes[kind])
    similarities, ids = search(index, queries, 10)
    before = search(indexes[kind], queries, 10)
    np.testing.assert_array_equal(ids, before[1])
    np.testing.assert_array_equal(similarities, before[0])
    assert _overlap(ids, _exact(features, queries, 10)) > 0.9
    exact = np.take_along_axis(queries @ features.T, ids, 1)
    np.testing.assert_allclose(similarities, exact, atol=0.01 if kind == "ivf_pq" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_sample_ids(features, indexes, kind):
    _, ids = search(indexes[kind], features[::30], 1)
    assert (ids[:, 0] == np.arange(0, 3000, 30)).mean() >= 0.98


@pytest.mark.parametrize(("kind", "floor"), [("flat", 1.0), ("ivf_flat", 0.97), ("ivf_pq", 0.95), ("hnsw", 0.97)])
def test_an_index_is_tuned_for_its_vectors(features, indexes, kind, floor):
    expected = _exact(features, features[::10], 2)[:, 1:]
    _, ids = search(indexes[kind], features[::10], 2)
    assert _overlap(ids, expected) >= floor


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_the_vectors_of_these_tests_are_hard_to_index(features, saved, kind):
    index, _ = open_index(saved / kind)
    set_effort(index, 1)
    _, ids = search(index, features[::10], 2)
    assert _overlap(ids, _exact(features, features[::10], 2)[:, 1:]) < 0.85


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
def test_an_index_with_a_flipped_byte_is_refused(saved, tmp_path, kind, where):
    folder = tmp_path / "index"
    shutil.copytree(saved / kind, folder)
    data = bytearray((folder / INDEX_NAME).read_bytes())
    data[round(where * (len(data) - 1))] ^= 4
    (folder / INDEX_NAME).write_bytes(data)
    with pytest.raises(RunError, match=r"index\.faiss does not have the hash of its record: it is damaged"):
        open_index(folder)


def test_what_is_not_a_whole_index_artefact_is_refused(saved, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(saved / "flat", folder)
    data = (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).write_bytes(data[:-1])
    with pytest.raises(RunError, match="its record says"):
        open_index(folder)
    (folder / INDEX_NAME).unlink()
    with pytest.raises(RunError, match="is missing"):
        open_index(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RunError, match="not complete"):
        open_index(folder)
    with artifacts.publish(tmp_path / "memory", kind="memory", provenance=artifacts.Provenance("c")):
        pass
    with pytest.raises(RunError, match="holds 'memory', not 'index'"):
        open_index(tmp_path / "memory")
    with artifacts.publish(tmp_path / "empty", kind=KIND, provenance=artifacts.Provenance("c")):
        pass
    with pytest.raises(RunError, match=r"does not hold one index\.faiss"):
        open_index(tmp_path / "empty")


@pytest.mark.parametrize(
    ("num_rows", "figures"),
    [
        (3000, {"index_kind": "hnsw", "dim": 32}),
        (3000, {"index_kind": "flat", "dim": 33}),
        (2999, {"index_kind": "flat", "dim": 32}),
        (3000, {}),
    ],
)
def test_an_index_that_its_manifest_does_not_describe_is_refused(indexes, tmp_path, num_rows, figures):
    _publish(tmp_path / "index", indexes["flat"], num_rows, **figures)
    with pytest.raises(RunError, match="holds flat, D = 32, N = 3000; its manifest says"):
        open_index(tmp_path / "index")


def test_a_file_that_faiss_cannot_read_and_an_index_of_another_type_are_refused(tmp_path):
    with artifacts.publish(tmp_path / "text", kind=KIND, provenance=artifacts.Provenance("c")) as draft:
        draft.path(INDEX_NAME).write_text("not an index")
        draft.add(INDEX_NAME)
    with pytest.raises(RunError, match="cannot be read as an index"):
        open_index(tmp_path / "text")
    _publish(tmp_path / "other", faiss.IndexFlatIP(32), index_kind="flat", dim=32)
    with pytest.raises(RunError, match="none of ours"):
        open_index(tmp_path / "other")


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_index_is_mapped_not_read(saved, kind):
    index, _ = open_index(saved / kind)
    assert str(saved / kind / INDEX_NAME) in Path("/proc/self/maps").read_text()
    del index


def test_nothing_else_in_the_package_reads_an_index(repository):
    readers = [p.name for p in (repository / "andscale").rglob("*.py") if "read_index(" in p.read_text()]
    assert readers == ["faiss_index.py"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_builds_the_same_file(features, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(index_building, "_POINTS_PER_LIST", 2)  # train on a sample, as with large N
    monkeypatch.setattr(index_building, "_MIN_POINTS_PER_LIST", 1)
    for name in ("a", "b"):
        save(build_index(features[:1200], kind, seed=8), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_graph_does_not_depend_on_the_number_of_threads(features, tmp_path):
    for count in (1, 2):
        faiss.omp_set_num_threads(count)
        save(build_index(features[:1200], "hnsw"), tmp_path / str(count))
    faiss.omp_set_num_threads(1)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_another_seed_trains_other_lists(features, indexes):
    other = build_index(features, "ivf_flat", seed=4)
    centroids = [faiss.downcast_index(i.quantizer).reconstruct_n(0, i.nlist) for i in (other, indexes["ivf_flat"])]
    assert not np.array_equal(*centroids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 5, 41, 100])
def test_few_samples_can_be_indexed_and_all_be_found(rng, kind, n):
    if kind == "ivf_pq" and n == 1:
        with pytest.raises(UsageError, match="needs two samples"):
            build_index(np.eye(1, dtype=np.float32), kind)
        return
    features = reference.unit_rows(rng, n, 7)
    _, ids = search(build_index(features, kind), features, n)
    assert np.sort(ids, axis=1).tolist() == [list(range(n))] * n


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_smaller_id(rng, kind):
    features = reference.unit_rows(rng, 60, 8)
    features[[7, 20, 33, 58]] = features[41]
    features = features.repeat(2, axis=0)[np.r_[0:120:2]]
    similarities, ids = search(build_index(features, kind), features[41:42], 3)
    assert ids.tolist() == [[7, 20, 33]]
    assert (np.diff(similarities) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_neighbour_is_found_where_the_lists_are_too_small(features, indexes, kind):
    similarities, ids = search(indexes[kind], features[:20], 3000)
    assert np.sort(ids, axis=1).tolist() == [list(range(3000))] * 20
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_a_query_with_too_few_answers_is_searched_wider_and_no_further(features, monkeypatch):
    index = build_index(features, "ivf_flat", seed=3)
    set_effort(index, 1)
    asked = []
    real = faiss.SearchParametersIVF
    monkeypatch.setattr(faiss, "SearchParametersIVF", lambda nprobe: (asked.append(nprobe), real(nprobe=nprobe))[1])
    _, ids = search(index, features[:50], 150)
    assert (ids >= 0).all()
    assert asked and asked[0] == 4 and asked[-1] < index.nlist


def test_a_graph_in_pieces_still_answers(features):
    index = faiss.IndexHNSWFlat(32, 2, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 4
    index.add(features)
    assert (index.search(features[:20], 3000)[1] < 0).any(), "this graph was meant to be broken"
    _, ids = search(index, features[:20], 3000)
    assert np.sort(ids, axis=1).tolist() == [list(range(3000))] * 20


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((2, 32)), 1, r"must be float32 of shape \(Q, 32\), these are float64 of shape \(2, 32\)"),
        (np.zeros((2, 31), np.float32), 1, r"these are float32 of shape \(2, 31\)"),
        (np.zeros(32, np.float32), 1, r"these are float32 of shape \(32,\)"),
        (np.float32([[0] * 32, [np.nan] + [0] * 31]), 1, "query 1 has values that are not finite"),
        (np.float32([[np.inf] * 32]), 1, "query 0 has values that are not finite"),
        (np.zeros((2, 32), np.float32), 0, "k = 0 neighbours: the index holds 3000, so 1 to 3000"),
        (np.zeros((2, 32), np.float32), 3001, "k = 3001 neighbours: the index holds 3000, so 1 to 3000"),
    ],
)
def test_unsuitable_queries_are_refused(indexes, queries, k, message):
    with pytest.raises(UsageError, match=message):
        search(indexes["flat"], queries, k)


def test_queries_may_lie_in_any_order_in_memory_and_be_none(features, indexes):
    _, ids = search(indexes["flat"], np.asfortranarray(features[:9]), 1)
    assert ids[:, 0].tolist() == list(range(9))
    assert [a.shape for a in search(indexes["hnsw"], features[:0], 4)] == [(0, 4), (0, 4)]


@pytest.mark.parametrize(
    ("num_samples", "dim", "memory", "gpus", "kind"),
    [
        (10, 16, GIB, 0, "flat"),
        (1_281_167, 128, 16 * GIB, 0, "flat"),
        (2**21, 128, 16 * GIB, 0, "flat"),  # 1 GiB of vectors
        (2**21 + 1, 128, 16 * GIB, 0, "hnsw"),
        (2**21, 128, 2 * GIB, 0, "flat"),
        (2**21, 128, 2 * GIB - 2, 0, "ivf_pq"),
        (2**22, 128, 6 * GIB, 0, "hnsw"),  # 2 GiB of vectors, 1 of links
        (2**22, 128, 6 * GIB - 2, 0, "ivf_flat"),
        (2**22, 128, 4 * GIB + 2**26, 0, "ivf_flat"),
        (2**22, 128, 4 * GIB + 2**26 - 2, 0, "ivf_pq"),
        (2**24, 128, 256 * GIB, 1, "flat"),  # 8 GiB
        (2**24 + 1, 128, 256 * GIB, 1, "ivf_flat"),
        (2**24 + 1, 128, 256 * GIB, 2, "flat"),
        (2**25, 128, 32 * GIB, 8, "flat"),
        (2**25, 128, 31 * GIB, 8, "ivf_pq"),
        (100_000_000, 128, 64 * GIB, 0, "ivf_pq"),
    ],
)
def test_the_kind_follows_from_samples_dimensions_memory_and_gpus(num_samples, dim, memory, gpus, kind):
    assert choose_kind(num_samples, dim, memory, gpus) == kind


@pytest.mark.parametrize("kind", ["cagra", "annoy", ""])
def test_a_kind_that_cannot_be_built_is_answered_with_those_that_can(kind, monkeypatch):
    monkeypatch.setattr(faiss_index, "num_gpus", lambda: 0)
    message = f"index kind '{kind}' cannot be built here: flat, ivf_flat, ivf_pq, hnsw can"
    with pytest.raises(UsageError, match=message):
        build_index(np.eye(4, dtype=np.float32), kind)


def test_no_vectors_are_no_index():
    with pytest.raises(UsageError, match="of no vectors"):
        build_index(np.empty((0, 4), np.float32), "flat")


@pytest.mark.parametrize("kind", KINDS)
def test_several_gpus_share_the_rows_instead_of_repeating_them(indexes, monkeypatch, kind):
    copies = []

    def copy(index, options):
        copies.append((type(index).__name__, options.shard, options.useFloat16))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", types.SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copy, raising=False)
    copied = to_gpu(indexes[kind])
    expected = {
        "flat": [("IndexFlatIP", True, False)],
        "ivf_flat": [("IndexIVFFlat", True, False)],
        "ivf_pq": [("IndexIVFPQ", True, True)],
        "hnsw": [],
    }
    assert copies == expected[kind]
    assert copied.ntotal == 3000
    if kind == "ivf_pq":
        assert copied.k_factor == indexes[kind].k_factor


class _ShortCopy:
    """What a GPU returns whose lists ran out: the second answer is missing."""

    def __init__(self, index):
        self.index = index

    def search(self, queries, k):
        similarities, ids = self.index.search(queries, k)
        ids[0, 1:], similarities[0, 1:] = -1, -3.4e38
        ids[1:] = 7  # seen in the result: the copy was asked
        return similarities, ids


def test_a_copy_is_asked_first_and_the_index_finds_what_it_lacks(features, indexes):
    _, ids = search(indexes["ivf_flat"], features[:3], 5, _ShortCopy(indexes["ivf_flat"]))
    assert ids[0].tolist() == _exact(features, features[:1], 5)[0].tolist()
    assert (ids[1:] == 7).all()
    many = search(indexes["flat"], features[:3], 600, _ShortCopy(indexes["flat"]))
    assert (many[1][1:] != 7).any(), "GPUs cannot keep as many candidates: the index must be asked"


gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: GPU indexes were not tested"),
]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=gpu) for k in KINDS])
def test_the_gpus_answer_as_the_cpu_does(features, indexes, kind):
    ours, theirs = (search(indexes[kind], features[:200], 10, c)[1] for c in (None, to_gpu(indexes[kind])))
    assert _overlap(theirs, ours) > 0.97


@pytest.mark.gpu
@pytest.mark.skipif(
    "cagra" not in faiss_index.kinds_here(), reason="no GPU, or FAISS without cuVS: cagra was not tested"
)
def test_cagra_is_built_on_the_gpu_and_searched_on_the_cpu(features, tmp_path):
    _publish(tmp_path / "index", build_index(features, "cagra"), index_kind="cagra", dim=32)
    index, _ = open_index(tmp_path / "index")
    _, ids = search(index, features[::10], 10)
    assert _overlap(ids, _exact(features, features[::10], 10)) > 0.95
