import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from andscale.errors import UsageError
from andscale.indexing.selection import num_anchors, select_anchors


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.integers(0, 7), st.integers(1, 7))
def test_anchors_are_the_floor_of_n_r_by_r_samples_of_lowest_entropy(entropies, r, rounds):
    r = min(r, rounds)
    expected = reference.anchors(entropies, r, rounds)
    assert select_anchors(np.array(entropies, np.float32), r, rounds).tolist() == expected


def test_the_last_round_makes_every_sample_an_anchor():
    assert select_anchors(np.random.default_rng(0).random(11).astype(np.float32), 4, 4).all()


def test_the_count_is_exact_where_floats_would_not_be():
    assert num_anchors(1_281_167, 3, 4) == 960_875
    assert num_anchors(10**15 + 1, 1, 3) == (10**15 + 1) // 3


def test_rounds_outside_the_curriculum_are_refused():
    with pytest.raises(UsageError, match="round 5 is outside the curriculum: method.num_rounds = 4"):
        num_anchors(10, 5, 4)
