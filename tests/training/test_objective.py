import numpy as np
import pytest
import torch

import reference
from andscale.config import MethodConfig
from andscale.distributed import World
from andscale.training.memory_bank import MemoryBank, initial_rows, rows_of_rank
from andscale.training.objective import ObjectiveOptions, batch_objective
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


def _dense(features, memory, members, tau):
    """Losses' mean and its gradient by the features: float64, autograd through a dense softmax."""
    x = torch.from_numpy(features).double().requires_grad_()
    log_p = torch.log_softmax(x @ torch.from_numpy(memory).double().T / tau, dim=1)
    is_member = torch.zeros_like(log_p, dtype=torch.bool)
    for i, row in enumerate(members):
        is_member[i, [j for j in row if j >= 0]] = True
    loss = -torch.logsumexp(log_p.masked_fill(~is_member, -torch.inf), dim=1).mean()
    loss.backward()
    return float(loss), x.grad.numpy()


def _share(world, features, ids, members, counts):
    first = sum(counts[: world.rank])
    mine = slice(first, first + counts[world.rank])
    leaf = torch.from_numpy(features[mine].copy()).requires_grad_()
    return leaf, torch.from_numpy(ids[mine]), torch.from_numpy(members[mine])


def _gradients_on_rank(world, problems, options=None):
    answers = []
    for memory, features, ids, members, counts, tau in problems:
        leaf, *rest = _share(world, features, ids, members, counts)
        result = batch_objective(leaf, *rest, _bank(world, memory), tau, counts, options=options)
        result.loss.backward()
        answers.append((float(result.mean_loss), leaf.grad.numpy() / world.world_size))
    return answers


def _case(rng, num_rows, batch, k, tau, counts):
    """Clustered rows with duplicates, members that several samples share, features near their rows but not on them."""
    memory = reference.unit_rows(rng, num_rows, 24, clusters=5, spread=0.5)
    memory[num_rows // 2 : num_rows // 2 + num_rows // 4] = memory[: num_rows // 4]
    ids = rng.integers(0, num_rows, batch)
    features = memory[ids] + 0.15 * rng.standard_normal((batch, 24))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    members = np.full((batch, k + 1), -1)
    members[:, 0] = ids
    for row in range(0, batch, 2):
        others = np.setdiff1d(np.arange(num_rows), ids[row])[:200]
        chosen = rng.choice(others, min(k, len(others)), replace=False)
        members[row, 1 : 1 + len(chosen)] = chosen
    return memory, features, ids, members, counts, tau


SHARES = {1: [[300], [1], [37]], 2: [[299, 1], [1, 0], [20, 17]], 3: [[1, 298, 1], [0, 1, 0], [13, 0, 24]]}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_equal_float64_for_sharp_and_flat_temperatures_and_shards_of_any_size(rng, world_size):
    shares = SHARES[world_size]
    problems = [
        _case(rng, num_rows, sum(shares[i % 3]), k, tau, shares[i % 3])
        for i, (num_rows, k, tau) in enumerate(
            (num_rows, k, tau)
            for num_rows, k in ((1001, 50), (2, 1), (143, 1), (400, 5))
            for tau in (0.005, 0.0199, 0.02, 0.1, 1.0)
        )
    ]
    answers = run_ranks(_gradients_on_rank, world_size, problems)
    for i, (memory, features, _, members, _, tau) in enumerate(problems):
        expected, gradient = _dense(features, memory, members, tau)
        # a similarity is a float32, off by 1e-7: its exponent by 1e-7 / tau
        tolerance = 1e-5 * max(1, 0.02 / tau)
        for rank in answers:
            assert rank[i][0] == pytest.approx(expected, rel=tolerance, abs=1e-7 / tau)
        found = np.concatenate([rank[i][1] for rank in answers])
        assert (
            np.linalg.norm(found - gradient) <= tolerance * np.linalg.norm(gradient) + 1e-7 / tau / len(features) ** 0.5
        )


def test_a_step_on_ranks_has_one_gather_and_one_all_reduce(rng):
    problem = _case(rng, 50, 9, 2, 0.1, [5, 4])
    assert run_ranks(_collectives_on_rank, 2, problem) == [["all_gather", "all_reduce"]] * 2


def _collectives_on_rank(world, problem):
    import torch.distributed as dist

    calls = []
    for name in ("all_gather", "all_reduce"):
        original = getattr(dist, name)
        setattr(dist, name, lambda *a, o=original, n=name, **k: (calls.append(n), o(*a, **k))[1])
    _gradients_on_rank(world, [problem])
    return calls


def test_losses_of_micro_batches_add_up_to_that_of_the_batch(rng):
    memory, features, ids, members, _, tau = _case(rng, 120, 12, 2, 0.1, [12])
    ((whole_loss, whole),) = _gradients_on_rank(World(), [(memory, features, ids, members, [12], tau)])
    parts = [slice(0, 5), slice(5, 12)]
    found = _gradients_on_rank(
        World(), [(memory, features[p], ids[p], members[p], [p.stop - p.start], tau) for p in parts]
    )
    sizes = np.array([5, 7]) / 12
    assert sum(n * loss for n, (loss, _) in zip(sizes, found, strict=True)) == pytest.approx(whole_loss, rel=1e-6)
    joined = np.concatenate([n * gradient for n, (_, gradient) in zip(sizes, found, strict=True)])
    np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["feature", "row"])
@pytest.mark.parametrize("tau", [0.01, 0.1])
@pytest.mark.parametrize("num_negatives", [None, 60])
def test_numbers_that_are_not_finite_make_the_loss_so(rng, bad, where, tau, num_negatives):
    memory, features, ids, members, counts, _ = _case(rng, 60, 8, 2, tau, [8])
    (features if where == "feature" else memory)[3, 4] = bad
    options = ObjectiveOptions(num_negatives=num_negatives)
    ((loss, gradient),) = _gradients_on_rank(World(), [(memory, features, ids, members, counts, tau)], options)
    assert not (np.isfinite(loss) and np.isfinite(gradient).all())  # training stops at either


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.5])
def test_bfloat16_scores_keep_the_loss_within_their_bound(rng, tau):
    case = _case(rng, 500, 40, 3, tau, [40])
    ((exact, gradient),) = _gradients_on_rank(World(), [case])
    ((loss, rough),) = _gradients_on_rank(World(), [case], ObjectiveOptions(score_dtype=torch.bfloat16))
    # both factors of a product of unit vectors are off by 2^-8 of themselves at most: a similarity by 2^-7, and each of
    # the two log-sum-exps by no more than the largest exponent is
    assert 0 < abs(loss - exact) <= 2 * 2**-7 / tau
    assert np.linalg.norm(rough - gradient) <= 0.1 * np.linalg.norm(gradient)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(rough, gradient, rtol=1e-5)


def test_options_come_from_the_config_and_the_step():
    assert ObjectiveOptions.from_config(MethodConfig(), 7) == ObjectiveOptions(None, torch.float32, (7,))
    method = MethodConfig(objective="sampled", num_negatives=9, score_dtype="bfloat16")
    options = ObjectiveOptions.from_config(method, 7).at(1, 2, 3)
    assert options == ObjectiveOptions(9, torch.bfloat16, (7, 1, 2, 3))


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
    with pytest.raises(ValueError, match="3 rows given, this rank holds 5"):
        MemoryBank(World(), 5, torch.zeros(3, D))
