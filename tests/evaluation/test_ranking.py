import numpy as np
import pytest

from andscale.evaluation.ranking import accuracies, top_classes
from ranks import run_ranks


def test_the_highest_five_come_first_and_ties_by_class():
    scores = np.array([[0.0, 3, 3, -1, 2, 5, 3], [1, 1, 1, 1, 1, 1, 1]])
    assert top_classes(scores).tolist() == [[5, 1, 2, 6, 4], [0, 1, 2, 3, 4]]


def test_classes_that_are_not_proposed_are_left_out():
    assert top_classes(np.array([[-np.inf, 2.0, -np.inf]])).tolist() == [[1, -1, -1, -1, -1]]
    assert top_classes(np.array([[-3.0, -1.0]])).tolist() == [[1, 0, -1, -1, -1]], "fewer than five classes"


def test_accuracies_count_the_first_and_any_of_five():
    top = np.array([[0, 1, -1, -1, -1], [2, 1, 0, 3, 4], [5, 4, 3, 2, 1], [9, 8, 7, 6, 5]], np.int32)
    labels = np.array([0, 3, 0, 5], np.int32)
    assert accuracies({"a": top, "b": top[::-1]}, labels, 4) == {
        "a": {"top1": 0.25, "top5": 0.75},
        "b": {"top1": 0.0, "top5": 0.5},
    }


def _shares(world, top, labels):
    cuts = [0, 1, 5] if world.world_size == 2 else [0, 0, 2, 5]
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    return accuracies({"a": top[mine]}, labels[mine], 5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_with_unequal_and_with_empty_shares_count_together(rng, world_size):
    top = np.array([rng.permutation(10)[:5] for _ in range(5)], np.int32)
    labels = top[:, 1].copy()
    labels[0] = top[0, 0]
    expected = {"a": {"top1": 0.2, "top5": 1.0}}
    assert run_ranks(_shares, world_size, top, labels) == [expected] * world_size
