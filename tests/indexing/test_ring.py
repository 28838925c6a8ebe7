import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from andscale.distributed import World
from andscale.errors import RunError
from andscale.indexing.checked import gather_discovery
from andscale.indexing.exact import Request, discover
from andscale.indexing.float64_check import Claims, check_against_float64, check_rows, compare_with_float64
from andscale.indexing.ring import Ring
from ranks import run_ranks


@given(num_samples=st.integers(1, 10_000), world_size=st.integers(1, 9))
@settings(deadline=None)
def test_the_ranks_hold_every_sample_once_in_whole_blocks(num_samples, world_size):
    shares = [Ring(num_samples, World(rank, world_size)).rows(rank) for rank in range(world_size)]
    assert [i for share in shares for i in share] == list(range(num_samples))
    assert all(share.start % 480 == 0 for share in shares if len(share))


def _features(num_samples, copies):
    rng = np.random.default_rng(3)
    features = reference.unit_rows(rng, num_samples, 24, clusters=30).astype(np.float32)
    features[rng.integers(0, num_samples, copies)] = features[5]
    return features


def _discover(world, num_samples, copies, request):
    ring = Ring(num_samples, world)
    rows = ring.rows(world.rank)
    found = discover(_features(num_samples, copies)[rows.start : rows.stop], request, ring)
    found_all = gather_discovery(found, ring)
    return found_all.neighbour_ids, found_all.similarities, found_all.entropies, found_all.num_searched_again


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("num_samples", "copies"), [(2500, 60), (500, 0)])
def test_ranks_give_the_table_of_one_process_bit_for_bit(world_size, num_samples, copies):
    """2500 samples are 6 blocks; with 500 there are more ranks than blocks."""
    request = Request(4, 0.07)
    alone = discover(_features(num_samples, copies), request)
    for ids, similarities, entropies, again in run_ranks(_discover, world_size, num_samples, copies, request):
        np.testing.assert_array_equal(ids, alone.neighbour_ids)
        np.testing.assert_array_equal(similarities, alone.similarities)
        np.testing.assert_array_equal(entropies, alone.entropies)
        assert bool(again) == bool(copies)


def _discover_ties(world):
    """Sample 1000 is scored against the others' shard on the other rank, and meets samples 2000.. before 1500.. ."""
    features = _features(2880, 0)
    features[1500:1520] = features[2000:2020] = features[1000]
    ring = Ring(len(features), world)
    rows = ring.rows(world.rank)
    found = discover(features[rows.start : rows.stop], Request(2, 0.1), ring)
    return gather_discovery(found, ring).neighbour_ids[[1000, 1500, 2019]].tolist()


def test_ties_that_another_rank_left_out_are_found_again():
    for ids in run_ranks(_discover_ties, 2):
        assert ids == [[1500, 1501], [1000, 1501], [1000, 1500]]


def test_ranks_search_sharp_temperatures_in_float64():
    """Shards come round in another order than that of their ids: ties must not mind."""
    request = Request(4, 0.005)
    alone = discover(_features(1000, 60), request)
    for ids, _, entropies, _ in run_ranks(_discover, 3, 1000, 60, request):
        np.testing.assert_array_equal(ids, alone.neighbour_ids)
        np.testing.assert_array_equal(entropies, alone.entropies)


DAMAGES = ["nothing", "neighbour", "similarity", "entropy", "order"]


def _checked(world, num_samples, damage):
    """What the check says, on every rank, of an answer that is damaged in row 7."""
    ring = Ring(num_samples, world)
    rows = ring.rows(world.rank)
    features = _features(num_samples, 0)
    found = discover(features[rows.start : rows.stop], Request(3, 0.1), ring)
    ids, similarities, entropies = found.neighbour_ids, found.similarities, found.entropies
    if 7 in rows:
        match damage:
            case "neighbour":
                ids[7, 2] = np.argmin(features @ features[7])
            case "similarity":
                similarities[7, 0] += 1e-3
            case "entropy":
                entropies[7] += 2e-4
            case "order":
                ids[7] = ids[7, ::-1].copy()
    claims = Claims(rows.start, ids, similarities, entropies)
    try:
        check_against_float64(features[rows.start : rows.stop], claims, 0.1, np.arange(0, num_samples, 7), ring)
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_float64_check_refuses_a_wrong_answer(damage, monkeypatch):
    # the columns come in several pieces
    monkeypatch.setattr("andscale.indexing.float64_check._SCORES_BYTES", 16 * 143 * 100)
    answer = _checked(World(), 1000, damage)
    assert answer == "" if damage == "nothing" else f"{damage if damage != 'order' else 'neighbour'}" in answer
    if damage != "nothing":
        assert "disagrees with float64" in answer and "of sample 7 " in answer


@pytest.mark.parametrize("damage", ["nothing", "entropy", "neighbour"])
def test_the_float64_check_sees_all_ranks_samples(damage):
    for answer in run_ranks(_checked, 3, 1000, damage):
        assert (answer == "") == (damage == "nothing")


def test_the_comparison_with_float64_counts_what_was_missed():
    features = _features(1000, 0)
    found = discover(features, Request(2, 0.1))
    rows = np.arange(0, 1000, 10)

    def compare(ids, similarities, entropies):
        return compare_with_float64(features, Claims(0, ids, similarities, entropies), 0.1, rows, Ring(1000))

    good = compare(found.neighbour_ids, found.similarities, found.entropies)
    assert good["recall_at_1"] == good["recall_at_k"] == 1.0
    assert good["mean_entropy_error_nats"] < 1e-5 and good["entropy_correlation"] == pytest.approx(1)
    ids, similarities = found.neighbour_ids.copy(), found.similarities.copy()
    ids[:500], similarities[:500] = ids[:500, 1:], similarities[:500, 1:]  # half of the rows lose their nearest
    halved = compare(ids, similarities, found.entropies + np.float32(0.25))
    assert halved["recall_at_1"] == pytest.approx(0.5, abs=0.03)  # a tie or two
    assert halved["recall_at_k"] == 1.0
    assert halved["mean_entropy_error_nats"] == pytest.approx(0.25, abs=1e-4)
    assert compare(ids, similarities, -found.entropies)["entropy_correlation"] == pytest.approx(-1)
    with pytest.raises(RunError, match="similarity of sample 0 "):
        compare(found.neighbour_ids, found.similarities - np.float32(0.01), found.entropies)


def test_the_rows_to_check_follow_from_the_seed():
    assert len(check_rows(10, 1000, 0)) == 10
    first = check_rows(10_000, 100, 1)
    assert (np.diff(first) > 0).all() and len(first) == 100
    np.testing.assert_array_equal(first, check_rows(10_000, 100, 1))
    assert (first != check_rows(10_000, 100, 2)).any()
