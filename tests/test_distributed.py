"""Ranks that wait for one that works alone."""

import time
from datetime import timedelta

import torch.distributed as dist

from andscale.distributed import _LOST, others_wait
from ranks import run_ranks


def _rank_0_takes_longer_than_others_wait_elsewhere(world):
    with others_wait():
        dist.set_timeout(timedelta(seconds=0.5))  # of what they wait for elsewhere
        if world.is_main:
            time.sleep(1.5)
    return True


def test_ranks_wait_for_rank_0_beyond_the_time_after_which_they_give_up_one_that_hangs():
    assert run_ranks(_rank_0_takes_longer_than_others_wait_elsewhere, 3) == [True, True, True]


def _rank_0_fails(world):
    try:
        with others_wait():
            if world.is_main:
                raise ValueError("no room")
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing"


def test_a_rank_0_that_fails_meanwhile_is_noticed_at_once():
    started = time.monotonic()
    first, second = run_ranks(_rank_0_fails, 2)
    assert first == "no room"
    assert any(words in second for words in _LOST), second
    assert time.monotonic() - started < 60
