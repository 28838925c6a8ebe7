"""The path of a GPU, on CPU tensors: what ranks and candidates do around the sweep is the same."""

import numpy as np
import pytest
import torch

import reference
from andscale.errors import RunError
from andscale.indexing import device_sweep, exact
from andscale.indexing.checked import gather_discovery
from andscale.indexing.exact import Request, discover
from andscale.indexing.ring import Ring
from ranks import run_ranks


@pytest.fixture
def pretend_gpu(monkeypatch):
    """The CPU stands in for the device; the sweep is torch's."""
    real = device_sweep.sweep_on_device
    monkeypatch.setattr(exact, "has_gpu", lambda: True)
    monkeypatch.setattr(exact, "sweep_on_device", lambda *a: real(*a, device=torch.device("cpu")))


def _features(num_samples, copies=0):
    rng = np.random.default_rng(4)
    features = reference.unit_rows(rng, num_samples, 24, clusters=20).astype(np.float32)
    features[rng.integers(0, num_samples, copies)] = features[5]
    return features


@pytest.mark.parametrize("copies", [0, 80])
@pytest.mark.parametrize("num_samples", [40, 1300])
def test_the_device_gives_the_neighbours_of_the_cpu(pretend_gpu, monkeypatch, num_samples, copies):
    features = _features(num_samples, copies)
    found = discover(features, Request(5, 0.1))
    assert found.engine == "torch on the cpu float16"
    monkeypatch.undo()
    expected = discover(features, Request(5, 0.1))
    np.testing.assert_array_equal(found.neighbour_ids, expected.neighbour_ids)
    np.testing.assert_array_equal(found.similarities, expected.similarities)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-5)


@pytest.mark.parametrize("fitting", [100, 701])
def test_features_that_do_not_fit_the_device_stream_through_it(pretend_gpu, monkeypatch, fitting):
    features = _features(1300)
    expected = discover(features, Request(5, 0.1))
    monkeypatch.setattr(device_sweep, "_rows_that_fit", lambda device, dim: fitting)
    found = discover(features, Request(5, 0.1))
    np.testing.assert_array_equal(found.neighbour_ids, expected.neighbour_ids)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-6)


def test_out_of_memory_halves_what_is_on_the_device(pretend_gpu, monkeypatch, capsys):
    from andscale.indexing import gpu_sweep
    from andscale.indexing.torch_sweep import sweep_with_torch

    def small(rows, columns, request):
        if len(rows) > 1500 or len(columns) > 1500:
            raise torch.cuda.OutOfMemoryError("no room")
        return sweep_with_torch(rows, columns, request)

    features = _features(3000)
    expected = discover(features, Request(5, 0.1))
    monkeypatch.setattr(gpu_sweep, "find_sweep", lambda device: small)
    found = discover(features, Request(5, 0.1))
    assert "going on with 1,500 rows at a time" in capsys.readouterr().err
    np.testing.assert_array_equal(found.neighbour_ids, expected.neighbour_ids)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-6)
    monkeypatch.setattr(gpu_sweep, "find_sweep", lambda device: _no_room)
    with pytest.raises(RunError, match="no memory left for 1500 rows"):
        discover(features, Request(5, 0.1))


def _no_room(rows, columns, request):
    raise torch.cuda.OutOfMemoryError("no room")


def test_rows_that_the_sweep_leaves_open_are_searched_again_on_the_device(pretend_gpu, monkeypatch):
    """A sweep whose cuts say that it may have missed something: every row is decided by the second one."""
    from andscale.indexing import gpu_sweep
    from andscale.indexing.torch_sweep import sweep_with_torch

    def coarse(rows, columns, request):
        found = sweep_with_torch(rows, columns, request)
        found.cuts[:] = 1.0
        found.ids[:, 1:] = -1  # all but one candidate are lost
        return found

    monkeypatch.setattr(gpu_sweep, "find_sweep", lambda device: coarse)
    features = _features(1300)
    found = discover(features, Request(5, 0.1))
    assert found.num_searched_again == 0, "nothing was left to float64"
    monkeypatch.undo()
    np.testing.assert_array_equal(found.neighbour_ids, discover(features, Request(5, 0.1)).neighbour_ids)


def _discover(world, num_samples, copies):
    real = device_sweep.sweep_on_device
    exact.has_gpu = lambda: True
    exact.sweep_on_device = lambda *a: real(*a, device=torch.device("cpu"))
    ring = Ring(num_samples, world)
    rows = ring.rows(world.rank)
    found = discover(_features(num_samples, copies)[rows.start : rows.stop], Request(4, 0.07), ring)
    found = gather_discovery(found, ring)
    return found.neighbour_ids, found.similarities, found.entropies


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_that_visit_all_ranks_give_the_table_of_one_process(world_size):
    alone = discover(_features(1300, 60), Request(4, 0.07))
    for ids, similarities, entropies in run_ranks(_discover, world_size, 1300, 60):
        np.testing.assert_array_equal(ids, alone.neighbour_ids)
        np.testing.assert_array_equal(similarities, alone.similarities)
        np.testing.assert_allclose(entropies, alone.entropies, atol=1e-5)
