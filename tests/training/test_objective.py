import numpy as np
import pytest
import torch

import reference
from andscale.training.memory_bank import MemoryBank, initial_rows, rows_of_rank
from andscale.training.objective import attend_rows, batch_objective
from ranks import run_ranks

N, D, K = 37, 8, 2
TAU = 0.1


def _problem(rng, batch=11):
    memory = reference.unit_rows(rng, N, D)
    ids = rng.permutation(N)[:batch]
    raw = rng.standard_normal((batch, D)).astype(np.float32)
    members = np.full((batch, K + 1), -1)
    members[:, 0] = ids
    for row in range(0, batch, 2):  # every second sample is an anchor
        others = np.setdiff1d(np.arange(N), ids[row])
        members[row, 1:] = rng.choice(others, K, replace=False)
    return memory, ids, raw, members


def _bank(world, memory):
    rows = rows_of_rank(len(memory), world.rank, world.world_size)
    return MemoryBank(world, len(memory), torch.from_numpy(memory[rows.start : rows.stop].copy()))


def _objective_on_rank(world, memory, ids, raw, members, counts, tau):
    bank = _bank(world, memory)
    first = sum(counts[: world.rank])
    mine = slice(first, first + counts[world.rank])
    weights = torch.from_numpy(raw[mine]).requires_grad_()
    features = torch.nn.functional.normalize(weights, dim=1)
    result = batch_objective(features, torch.from_numpy(ids[mine]), torch.from_numpy(members[mine]), bank, tau, counts)
    result.loss.backward()
    bank.update(result.sample_ids, result.features, 0.5)
    return float(result.mean_loss), weights.grad.numpy(), bank.values.numpy()


@pytest.mark.parametrize(("world_size", "counts"), [(1, [11]), (2, [6, 5]), (3, [4, 4, 3]), (3, [1, 3, 7])])
def test_loss_gradient_and_memory_equal_the_equations_on_any_number_of_ranks(rng, world_size, counts):
    memory, ids, raw, members = _problem(rng)
    results = run_ranks(_objective_on_rank, world_size, memory, ids, raw, members, counts, TAU)

    unit = raw.astype(np.float64) / np.linalg.norm(raw.astype(np.float64), axis=1, keepdims=True)
    lists = [[j for j in row if j >= 0] for row in members]
    expected = np.mean([reference.loss(x, m, memory, TAU) for x, m in zip(unit, lists, strict=True)])
    for mean_loss, _, _ in results:
        assert mean_loss == pytest.approx(expected, rel=1e-5)

    by_feature = np.stack([reference.loss_gradient(x, m, memory, TAU) for x, m in zip(unit, lists, strict=True)])
    # through the normalisation: (g - (g.x) x) / |raw|, and the mean over the batch
    tangent = by_feature - (by_feature * unit).sum(1, keepdims=True) * unit
    expected_gradient = tangent / np.linalg.norm(raw, axis=1, keepdims=True) / len(ids)
    # DDP averages over ranks, so each rank's gradient is world_size times its share of the mean's
    gradient = np.concatenate([g for _, g, _ in results]) / world_size
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-4, atol=2e-6)

    new_memory = np.concatenate([rows for _, _, rows in results])
    np.testing.assert_allclose(new_memory, reference.memory_update(memory, ids, unit, 0.5), atol=1e-6)


def test_instance_members_give_the_instance_loss_of_equation_2(rng):
    memory, ids, raw, members = _problem(rng)
    members[:, 1:] = -1
    ((mean_loss, _, _),) = run_ranks(_objective_on_rank, 1, memory, ids, raw, members, [11], TAU)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected = -np.mean([np.log(reference.probabilities(x, memory, TAU)[i]) for x, i in zip(unit, ids, strict=True)])
    assert mean_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.005, 0.02, 1.0])
def test_sharp_and_flat_temperatures_stay_finite(rng, tau):
    memory, ids, raw, members = _problem(rng)
    ((mean_loss, gradient, _),) = run_ranks(_objective_on_rank, 1, memory, ids, raw, members, [11], tau)
    unit = raw.astype(np.float64) / np.linalg.norm(raw, axis=1, keepdims=True)
    lists = [[j for j in row if j >= 0] for row in members]
    lse = [np.logaddexp.reduce((x @ memory.T.astype(np.float64)) / tau) for x in unit]
    inner = [np.logaddexp.reduce((x @ memory[m].T.astype(np.float64)) / tau) for x, m in zip(unit, lists, strict=True)]
    assert mean_loss == pytest.approx(np.mean(np.subtract(lse, inner)), rel=1e-4)
    assert np.isfinite(gradient).all()


def test_attention_does_not_depend_on_the_tile_size(rng, monkeypatch):
    features, rows = (torch.from_numpy(reference.unit_rows(rng, n, D)) for n in (5, 100))
    whole = attend_rows(features, rows, TAU)
    monkeypatch.setattr("andscale.training.objective._TILE_ROWS", 7)
    tiled = attend_rows(features, rows, TAU)
    torch.testing.assert_close(whole.lse, tiled.lse)
    torch.testing.assert_close(whole.mean, tiled.mean)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_row_of_the_memory_lies_on_exactly_one_rank(world_size):
    rows = [i for rank in range(world_size) for i in rows_of_rank(N, rank, world_size)]
    assert rows == list(range(N))


def test_initial_memory_is_the_same_for_every_partition():
    whole = initial_rows(range(140_000), 4, seed=3)
    parts = [initial_rows(rows_of_rank(140_000, rank, 3), 4, seed=3) for rank in range(3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    assert np.abs(initial_rows(range(10), 4, seed=4) - whole[:10]).max() > 0.1


def test_the_memory_refuses_a_wrong_number_of_rows():
    from andscale.distributed import World

    with pytest.raises(ValueError, match="3 rows given, this rank holds 5"):
        MemoryBank(World(), 5, torch.zeros(3, D))
