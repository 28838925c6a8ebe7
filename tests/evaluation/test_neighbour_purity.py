import json

import numpy as np
import pytest

from andscale.distributed import World
from andscale.errors import UsageError
from andscale.evaluation.evaluate import evaluate_round
from andscale.evaluation.purity import neighbour_purity, reported_k, without_itself
from andscale.training.loop import train_round
from ranks import run_ranks
from reference import unit_rows
from tiny_runs import start_run


def _features():
    rng = np.random.default_rng(8)
    features = unit_rows(rng, 90, 5)
    features[60:75] = features[3]  # more duplicates than neighbours are asked for
    return features, rng.integers(0, 3, 90).astype(np.int32)


def _expected(features, labels, k):
    """Python loops in float64."""
    exact, shares = features.astype(np.float64), []
    for i in range(len(exact)):
        others = sorted((j for j in range(len(exact)) if j != i), key=lambda j: (-float(exact[i] @ exact[j]), j))
        shares.append(np.mean([labels[j] == labels[i] for j in others[:k]]))
    return np.mean(shares)


def _purity_of_ranks(world, most):
    features, labels = _features()
    share = range(90 * world.rank // world.world_size, 90 * (world.rank + 1) // world.world_size)
    return neighbour_purity(features, labels, share, most)


def test_purity_is_the_brute_force_one_with_duplicates_and_on_any_number_of_ranks():
    found = _purity_of_ranks(World(), 12)
    assert list(found) == ["1", "10", "12"]
    for k, purity in found.items():
        assert purity == pytest.approx(_expected(*_features(), int(k)), abs=1e-12)
    assert run_ranks(_purity_of_ranks, 2, 12) == [found] * 2
    assert reported_k(10) == [1, 10] and reported_k(100) == [1, 10, 100]
    with pytest.raises(UsageError, match="purity_neighbours = 90, but there are 90 samples"):
        _purity_of_ranks(World(), 90)


def test_a_sample_is_left_out_by_id_or_else_the_last():
    found = without_itself(np.array([[4, 0, 2], [1, 5, 3], [7, 8, 9]]), np.array([0, 1, 2]))
    assert found.tolist() == [[4, 2], [5, 3], [7, 8]]


def test_an_evaluation_measures_purity_where_it_is_asked_for(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, evaluation={"purity_neighbours": 10}, optim={"num_epochs": 1})
    train_round(layout.root, 0, World())
    evaluate_round(layout.root, 0)
    record = json.loads((layout.round(0).evaluation / "evaluation.json").read_text())
    assert record["purity"]["1"] > record["purity"]["10"] > 0.2
