"""Joining and leaving a process group on GPUs, on stand-ins for CUDA and NCCL, and ranks of gloo that wait for one that
works alone; other collectives are tested where they are used.
"""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from andscale.distributed import _LOST, World, others_wait, process_group
from andscale.errors import RunError, UsageError
from ranks import run_ranks


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch see so many GPUs."""
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return lambda number: monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(("seen", "on_node", "place"), [(4, None, 2), (4, "4", 2), (1, "4", 0)])
def test_a_rank_takes_its_own_of_the_nodes_gpus_or_the_one_to_which_slurm_bound_it(
    monkeypatch, gpus, seen, on_node, place
):
    gpus(seen)
    if on_node:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", on_node)
    with process_group(World(local_rank=2, local_world_size=4)) as device:
        assert device == torch.device("cuda", place)


@pytest.mark.parametrize("on_node", [None, "1"])
def test_more_ranks_than_gpus_are_refused(monkeypatch, gpus, on_node):
    gpus(1)
    if on_node:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", on_node)
    with (
        pytest.raises(UsageError, match="4 ranks on a node of 1 GPUs: set resources"),
        process_group(World(local_rank=2, local_world_size=4)),
    ):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_fails_does_not_wait_for_what_others_have_queued_on_their_gpus(monkeypatch, gpus, fails):
    gpus(2)
    calls = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: calls.append(backend))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroy"))
    try:
        with process_group(World(1, 2, 1, 2)):
            if fails:
                raise RunError("an image is damaged")
    except RunError:
        assert fails
    assert calls == ["cuda:nccl,cpu:gloo"] + ["destroy"] * (not fails)


def _rank_0_takes_longer_than_others_wait_elsewhere(world):
    with others_wait():
        dist.set_timeout(timedelta(seconds=0.5))  # of what they wait for elsewhere
        if world.is_main:
            time.sleep(1.5)
    return True


def test_ranks_wait_for_rank_0_beyond_the_time_after_which_they_give_up_one_that_hangs():
    assert run_ranks(_rank_0_takes_longer_than_others_wait_elsewhere, 2) == [True, True]


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
