import numpy as np
import pytest

from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.indexing.approximate import Effort, discover_approximately
from andscale.indexing.clusters import cluster_order, walk
from andscale.indexing.exact import Request, discover
from andscale.indexing.index_building import build_index
from andscale.indexing.mode import choose_mode, measure_cpu
from andscale.indexing.near_blocks import _rounds, pair_blocks
from andscale.indexing.partials import BLOCK_ROWS
from andscale.indexing.ring import Ring
from andscale.indexing.row_sweep import Strata, draw_far, draw_middle, estimate_rows
from andscale.indexing.selection import select_anchors
from hard_features import clustered_rows
from ranks import run_ranks

TAU = 0.1
REQUEST = Request(1, TAU, num_threads=2)


@pytest.fixture(scope="module")
def features():
    return clustered_rows(np.random.default_rng(3), 20_000, 64)


@pytest.fixture(scope="module")
def exact(features):
    return discover(features, REQUEST)


@pytest.fixture(scope="module")
def found(features):
    return discover_approximately(features, REQUEST, effort=Effort(12, 24))


def _spearman(a, b):
    ranks = [np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def _float64_sums(features):
    x = (features.astype(np.float64) @ features.T.astype(np.float64) - 1) * np.log2(np.e) / TAU
    return np.stack([(2.0**x).sum(1), (2.0**x * x).sum(1)])


def test_the_sums_are_unbiased_and_their_scatter_is_the_variance_that_is_told(rng):
    features = clustered_rows(rng, 11 * BLOCK_ROWS + 100, 16)
    features = features[cluster_order(features, 12, 0)]
    exact = _float64_sums(features)
    pairs = pair_blocks(features, 1, 2)
    is_near = np.kron(_near_matrix(pairs), np.ones((BLOCK_ROWS, BLOCK_ROWS), bool))[: len(features), : len(features)]
    x = (features.astype(np.float64) @ features.T - 1) * np.log2(np.e) / TAU
    sums = np.zeros((2, 12 * BLOCK_ROWS), np.int64)
    sums[:, : len(features)] = np.rint(np.stack([(2.0**x * is_near).sum(1), (2.0**x * x * is_near).sum(1)]) * 2.0**32)
    estimates = []
    for seed in range(60):
        far, size = draw_far(features, seed, TAU)
        draws = draw_middle(features, seed, TAU), far
        strata = Strata(pairs.near_lists(), pairs.middle_lists(), size)
        estimates.append(estimate_rows(features, range(12), sums, draws, strata, 2)[:, : len(features)])
    entropies, variances, *totals = np.stack(estimates, axis=1)
    for total, right in zip(totals, exact, strict=True):
        z = (total.mean(0) - right) / (total.std(0, ddof=1) / np.sqrt(len(total)))
        assert (np.abs(z) < 3).mean() > 0.97
        assert abs((total.mean(0) / right - 1).mean()) < 0.004
    # means over rows: single rows have heavy tails
    assert variances.mean() == pytest.approx(entropies.var(0, ddof=1).mean(), rel=0.15)


def _near_matrix(pairs):
    near = np.zeros((pairs.num_blocks, pairs.num_blocks), bool)
    near[tuple(pairs.near.T)] = near[tuple(pairs.near.T[::-1])] = True
    return near


def test_entropies_select_nearly_the_same_quarter(found, exact):
    chosen, right = (select_anchors(d.entropies, 1, 4) for d in (found, exact))
    assert (chosen & right).sum() / right.sum() > 0.95
    assert _spearman(found.entropies, exact.entropies) > 0.97


def test_the_exact_entropy_is_within_two_standard_errors_mostly(found, exact):
    error = np.abs(found.entropies - exact.entropies)
    assert 0.88 < (error <= 2 * found.entropy_stderr).mean() < 0.995
    assert found.entropy_stderr.dtype == np.float32
    assert (found.entropy_stderr >= 0).all()


def test_the_estimated_part_matters(found, exact, features):
    """Entropies of the nearest ten alone, as a search gives them, rank the samples far worse."""
    top = discover(features, Request(10, TAU)).similarities.astype(np.float64) / TAU
    logits = np.column_stack([np.full(len(top), 1 / TAU), top])
    p = np.exp(logits - logits[:, :1])
    p /= p.sum(1, keepdims=True)
    truncated = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    assert _spearman(truncated, exact.entropies) < 0.5 < _spearman(found.entropies, exact.entropies)


def test_more_effort_finds_more_neighbours_and_errs_less(features, exact, found):
    less = discover_approximately(features, REQUEST, effort=Effort(1, 2))
    recall = [(d.similarities[:, 0] >= exact.similarities[:, 0]).mean() for d in (less, found)]
    assert recall[0] + 0.1 < recall[1] < 1
    assert less.entropy_stderr.mean() > 2 * found.entropy_stderr.mean()
    assert less.figures["near_fraction"] < found.figures["near_fraction"]


def test_similarities_are_those_of_the_neighbours_and_no_sample_is_its_own(features, found):
    ids = found.neighbour_ids
    assert not (ids == np.arange(len(features))[:, None]).any()
    right = np.einsum("nd,nkd->nk", features.astype(np.float64), features[ids].astype(np.float64))
    np.testing.assert_allclose(found.similarities, right, atol=1e-7)


@pytest.mark.parametrize("n", [2, 479, 1500])
def test_few_samples_are_answered_exactly(rng, n):
    features = clustered_rows(rng, n, 16)
    found, exact = discover_approximately(features, REQUEST), discover(features, REQUEST)
    np.testing.assert_array_equal(found.neighbour_ids, exact.neighbour_ids)
    # the sample itself is in the softmax once: it weighs 1, the others little
    np.testing.assert_allclose(found.entropies, exact.entropies, atol=1e-5)
    assert not found.entropy_stderr.any()


def test_duplicates_have_each_other_by_smaller_id(rng):
    features = clustered_rows(rng, 3000, 16)
    features[[5, 900, 2999]] = features[1700]
    found = discover_approximately(features, Request(2, TAU), effort=Effort(1, 1))
    np.testing.assert_array_equal(found.neighbour_ids[[5, 900, 1700]], [[900, 1700], [5, 1700], [5, 900]])
    everything_alike = discover_approximately(np.tile(features[:1], (2880, 1)), Request(3, TAU), effort=Effort(1, 1))
    np.testing.assert_allclose(everything_alike.entropies, np.log(2880), atol=1e-4)


def test_k_neighbours_are_found_however_many(rng):
    features = clustered_rows(rng, 2 * BLOCK_ROWS + 3, 16)
    found = discover_approximately(features, Request(700, TAU), effort=Effort(0, 0))
    assert (np.diff(np.sort(found.neighbour_ids, axis=1), axis=1) > 0).all()
    assert (found.neighbour_ids >= 0).all()
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_an_index_adds_the_neighbours_that_blocks_miss(features, exact):
    index = build_index(features, "ivf_flat")
    alone, joined = (
        discover_approximately(features, REQUEST, with_index, effort=Effort(1, 2)) for with_index in (None, index)
    )
    recall = [(d.similarities[:, 0] >= exact.similarities[:, 0]).mean() for d in (alone, joined)]
    assert recall[0] < 0.9
    assert recall[1] > 0.97
    np.testing.assert_array_equal(alone.entropies, joined.entropies)
    assert not (joined.neighbour_ids == np.arange(len(features))[:, None]).any()


def _same(a, b):
    for name in ("neighbour_ids", "similarities", "entropies", "entropy_stderr"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_the_answer_depends_on_the_seed_and_not_on_threads(rng):
    features = clustered_rows(rng, 9000, 16)
    one, three, other = (
        discover_approximately(features, Request(2, TAU, num_threads=threads), None, seed, effort=Effort(2, 3))
        for threads, seed in ((1, 0), (3, 0), (1, 1))
    )
    _same(one, three)
    assert (one.entropies != other.entropies).any()


def _rank(world, features):
    ring = Ring(len(features), world)
    rows = ring.rows(world.rank)
    found = discover_approximately(
        features[rows.start : rows.stop], Request(2, TAU), None, 0, ring, effort=Effort(2, 3)
    )
    return found.neighbour_ids, found.similarities, found.entropies, found.entropy_stderr


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_work_and_give_the_same_bits(rng, size):
    features = clustered_rows(rng, 5000, 16)
    alone = _rank(World(), features)
    parts = run_ranks(_rank, size, features)
    for whole, *pieces in zip(alone, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_no_two_threads_touch_the_same_block(rng):
    pairs = pair_blocks(clustered_rows(rng, 20 * BLOCK_ROWS + 7, 8), 4, 0).near
    rounds = _rounds(pairs)
    for tasks in rounds:
        blocks = [b for (a, _), (b, _) in tasks] + [a for (a, _), (b, _) in tasks if a != b]
        assert len(set(blocks)) == len(blocks)
    assert sorted((a, b) for tasks in rounds for (a, _), (b, _) in tasks) == sorted(map(tuple, pairs.tolist()))


def test_features_that_are_not_of_unit_length_are_refused():
    with pytest.raises(RunError, match="3"):
        discover_approximately(np.diag(np.float32([1, 1, 1, 0.5])), REQUEST)


def test_centres_are_walked_from_neighbour_to_neighbour(rng):
    angles = rng.permutation(64) / 64 * np.pi
    centres = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    steps = np.abs(np.diff(angles[walk(centres)]))
    assert np.median(steps) < 3 * np.pi / 64
    assert sorted(walk(centres)) == list(range(64))


@pytest.mark.parametrize(
    ("features", "request_", "message"),
    [
        (np.eye(5, dtype=np.float32), Request(5, TAU), "k must be at most 4"),
        (np.eye(5, dtype=np.float32), Request(1, 0.005), 'take index.mode = "exact"'),
        (np.eye(5), Request(1, TAU), "float64 of shape"),
    ],
)
def test_what_cannot_be_is_refused(features, request_, message):
    with pytest.raises(UsageError, match=message):
        discover_approximately(features, request_)


def test_auto_takes_approximate_beyond_an_hour_over_all_ranks():
    def rate(dim):
        return 1e9 * 128 / dim

    assert choose_mode("auto", 10**6, 128, 1, rate).name == "exact"
    slow = choose_mode("auto", 4 * 10**6, 128, 1, rate)
    assert (slow.name, slow.exact_s) == ("approximate", 16_000.0)
    assert str(slow) == "exact would take about 4 h 27 min here: approximate"
    assert choose_mode("auto", 4 * 10**6, 128, 8, rate).name == "exact"
    assert str(choose_mode("auto", 10**6, 128, 1, rate)) == "exact would take about 17 min here: exact"


def test_a_mode_that_is_asked_for_is_not_measured():
    def never(dim):
        raise AssertionError

    for mode in ("exact", "approximate"):
        assert str(choose_mode(mode, 10**9, 128, 1, never)) == mode
    assert choose_mode("auto", 999_999, 128, 1).exact_s is None
    with pytest.raises(UsageError, match='"fast": it must be'):
        choose_mode("fast", 10, 128, 1)


def test_the_speed_of_this_cpu_is_plausible():
    assert 1e7 < measure_cpu(32) < 1e13
