"""Orders of an epoch: permutations that are pure functions, and how well they mix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andscale.data.order import chunk_cuts, chunked_order, epoch_order, shuffle_quality


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 70))
def test_a_chunked_order_is_a_permutation(num_samples, chunk, window):
    order = chunked_order(chunk_cuts(num_samples, chunk), window, (0, 1, 2))
    assert sorted(order) == list(range(num_samples))


def test_a_chunked_order_depends_on_the_whole_key():
    cuts = chunk_cuts(500, 10)
    order = chunked_order(cuts, 8, (1, 2, 3))
    np.testing.assert_array_equal(order, chunked_order(cuts, 8, (1, 2, 3)))
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (chunked_order(cuts, 8, key) != order).any()


@pytest.mark.parametrize(("chunk", "window"), [(50, 8), (7, 64), (1000, 4)])
def test_few_chunks_are_under_way_at_a_time(chunk, window):
    """From a chunk's first sample to its last: little more than a window of chunks lies between them."""
    num_samples = chunk * 200
    order = chunked_order(chunk_cuts(num_samples, chunk), window, (0, 0, 0))
    chunks = order // chunk
    first, last = np.full(200, num_samples), np.zeros(200, int)
    np.minimum.at(first, chunks, np.arange(num_samples))
    np.maximum.at(last, chunks, np.arange(num_samples))
    under_way = [((first <= place) & (place <= last)).sum() for place in range(0, num_samples, chunk)]
    assert max(under_way) <= window + 1
    assert max(under_way) > 0.8 * min(window, 200) - 1


def test_chunks_may_differ_in_size():
    cuts = np.array([0, 3, 4, 10, 11])
    assert sorted(chunked_order(cuts, 1, (0, 0, 0))) == list(range(11))
    # a window of one chunk mixes nothing but the chunk itself
    order = chunked_order(cuts, 1, (0, 0, 0))
    chunks = np.searchsorted(cuts, order, side="right")
    assert (np.diff(chunks) != 0).sum() == 3


def test_the_quality_of_a_chunked_order():
    """64 chunks of 128 among 100,000 samples: as far as in a full shuffle, neighbours of a file stay 1/12 as far apart,
    and pairs of one chunk meet in a batch as often as a window is smaller than the data set.
    """
    num_samples, cuts = 100_000, chunk_cuts(100_000, 128)
    full = shuffle_quality(epoch_order(num_samples, 0, 0, 0), cuts, 256)
    chunked = shuffle_quality(chunked_order(cuts, 64, (0, 0, 0)), cuts, 256)
    unmixed = shuffle_quality(np.arange(num_samples), cuts, 256)
    for figure in ("displacement", "separation", "same_chunk"):
        assert getattr(full, figure) == pytest.approx(1, abs=0.1)
    assert unmixed.displacement == 0 and unmixed.same_chunk > 300
    assert chunked.displacement == pytest.approx(1, abs=0.1)
    # within a chunk |u - u'| of a window is 1/3 on average; whole chunks are shuffled in full
    assert chunked.separation == pytest.approx(64 * 128 / num_samples, rel=0.25)
    assert chunked.same_chunk == pytest.approx(num_samples / (64 * 128), rel=0.25)
