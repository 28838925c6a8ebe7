"""The sampled objective against float64, autograd and itself on several ranks."""

import numpy as np
import pytest
import torch

import reference
from andscale.distributed import World
from andscale.training.memory_bank import MemoryBank, rows_of_rank
from andscale.training.objective import ObjectiveOptions, batch_objective
from andscale.training.sampled_rows import draw_rows, strata_bounds
from ranks import run_ranks

N, B, D, K = 211, 13, 12, 3
OPTIONS = ObjectiveOptions(num_negatives=40, key=(5, 1, 2, 3))


@pytest.fixture
def problem(rng):
    """Features near their rows, members that are drawn now and then, some places unused."""
    memory = reference.unit_rows(rng, N, D, clusters=4)
    ids = rng.permutation(N)[:B]
    features = memory[ids] + 0.3 * rng.standard_normal((B, D))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    members = np.full((B, K + 1), -1)
    members[:, 0] = ids
    for row in range(0, B, 2):
        members[row, 1:] = rng.choice(np.setdiff1d(np.arange(N), ids[row]), K, replace=False)
    return memory, features, ids, members


def _on_rank(world, problem, counts, tau, options):
    memory, features, ids, members = problem
    rows = rows_of_rank(len(memory), world.rank, world.world_size)
    own = np.full((len(rows), memory.shape[1]), np.nan, np.float32)
    drawn, _ = draw_rows(len(memory), min(options.num_negatives or len(memory), len(memory)), options.key)
    # all that may be read: drawn rows, members, and the first row, which stands in for members of other ranks
    for row in [*drawn, *members[members >= 0], rows.start]:
        if row in rows:
            own[row - rows.start] = memory[row]
    first = sum(counts[: world.rank])
    mine = slice(first, first + counts[world.rank])
    leaf = torch.from_numpy(features[mine].copy()).requires_grad_()
    bank = MemoryBank(world, len(memory), torch.from_numpy(own))
    rest = torch.from_numpy(ids[mine]), torch.from_numpy(members[mine])
    result = batch_objective(leaf, *rest, bank, tau, counts, options=options)
    result.loss.backward()
    return float(result.mean_loss), leaf.grad.numpy() / world.world_size


def _dense_estimate(problem, tau, options):
    """The estimator written down densely: every sample's sum over its members and weighted draws, by autograd."""
    memory, features, _, members = problem
    x = torch.from_numpy(features).double().requires_grad_()
    weights = torch.exp(x @ torch.from_numpy(memory).double().T / tau)
    drawn, sizes = draw_rows(len(memory), options.num_negatives, options.key)
    losses = []
    for i, row in enumerate(members):
        own = {int(j) for j in row if j >= 0}
        inside = sum(weights[i, j] for j in own)
        outside = sum(int(h) * weights[i, j] for j, h in zip(drawn, sizes, strict=True) if int(j) not in own)
        losses.append(torch.log(inside + outside) - torch.log(inside))
    loss = torch.stack(losses).mean()
    loss.backward()
    return float(loss), x.grad.numpy()


@pytest.mark.parametrize(("world_size", "counts"), [(1, [13]), (2, [6, 7]), (3, [1, 9, 3])])
def test_loss_and_gradient_are_those_of_the_estimator_on_any_number_of_ranks(problem, world_size, counts):
    for tau in (0.01, 0.1) if world_size == 1 else (0.1,):
        expected, gradient = _dense_estimate(problem, tau, OPTIONS)
        answers = run_ranks(_on_rank, world_size, problem, counts, tau, OPTIONS)
        for loss, _ in answers:
            assert loss == pytest.approx(expected, rel=1e-5)
        found = np.concatenate([g for _, g in answers])
        assert np.linalg.norm(found - gradient) <= 2e-5 * np.linalg.norm(gradient)


def test_some_members_of_the_problem_are_drawn(problem):
    """Else nothing above would notice a member that is counted twice."""
    drawn, _ = draw_rows(N, OPTIONS.num_negatives, OPTIONS.key)
    assert np.isin(problem[3], drawn).sum() >= 2


@pytest.mark.parametrize("tau", [0.01, 0.1])
@pytest.mark.parametrize("num_negatives", [N, 10 * N])
def test_with_all_rows_drawn_it_is_the_exact_objective(problem, tau, num_negatives):
    exact_loss, exact = _on_rank(World(), problem, [B], tau, ObjectiveOptions(key=(0,)))
    loss, gradient = _on_rank(World(), problem, [B], tau, ObjectiveOptions(num_negatives, key=(0,)))
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-6)


def test_the_estimated_sum_has_no_bias(problem):
    memory, features, _, members = problem
    weights = np.exp(features.astype(np.float64) @ memory.astype(np.float64).T / 0.1)
    exact = weights.sum(axis=1)
    estimates = []
    for step in range(600):
        drawn, sizes = draw_rows(N, 40, (0, 0, 0, step))
        estimate = weights[:, drawn] * sizes
        is_member = (drawn[None, :, None] == members[:, None, :]).any(axis=2)
        inside = [weights[i, row[row >= 0]].sum() for i, row in enumerate(members)]
        estimates.append(inside + estimate.sum(axis=1, where=~is_member))
    mean, spread = np.mean(estimates, axis=0), np.std(estimates, axis=0)
    assert (np.abs(mean - exact) <= 4 * spread / 600**0.5).all()
    assert (spread > 1e-3 * exact).any()


@pytest.mark.parametrize(("num_rows", "num_strata"), [(1, 1), (10, 3), (211, 40), (211, 211), (1000, 999)])
def test_every_stratum_gives_one_of_its_rows_and_all_rows_get_their_turn(num_rows, num_strata):
    seen, bounds = set(), strata_bounds(num_rows, num_strata)
    for step in range(100):
        drawn, sizes = draw_rows(num_rows, num_strata, (1, 0, 0, step))
        assert (bounds[:-1] <= drawn).all() and (drawn < bounds[1:]).all()
        assert sizes.sum() == num_rows and sizes.min() >= 1
        seen |= set(drawn.tolist())
    assert len(seen) == num_rows


def test_a_draw_depends_on_seed_round_epoch_and_step():
    first, _ = draw_rows(10_000, 50, (1, 2, 3, 4))
    np.testing.assert_array_equal(first, draw_rows(10_000, 50, (1, 2, 3, 4))[0])
    for key in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert not np.array_equal(first, draw_rows(10_000, 50, key)[0])
