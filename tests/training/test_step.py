import functools

import numpy as np
import pytest
import torch

import reference
from andscale.config_file import build_config
from andscale.data.reader import Batch, rank_counts
from andscale.distributed import World
from andscale.training import step as step_module
from andscale.training.backbones import build_backbone
from andscale.training.memory_bank import MemoryBank, rows_of_rank
from andscale.training.methods import NeighbourhoodLoss
from andscale.training.objective import ObjectiveOptions
from andscale.training.part_clock import PARTS, PartClock, describe_fractions
from andscale.training.step import TrainedModule, TrainingStep, TrainState, make_optimizer, micro_batches
from andscale.training.supervised import ClassifiedModule, SupervisedLoss
from ranks import run_ranks

N, D, B = 40, 16, 26
CPU = torch.device("cpu")


def _config(method="and", **optim):
    return build_config(
        {
            "data": {"dataset": "nowhere", "image_size": 8},
            "model": {"backbone": "small_resnet", "feature_dim": D},
            "method": {"name": method},
            "optim": {"global_batch_size": B, **optim},
        },
        "test",
    )


def _batch(world):
    """A rank's share of one fixed batch of 26."""
    rng = np.random.default_rng(5)
    counts = rank_counts(B, world.world_size)
    mine = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    images = torch.from_numpy(rng.standard_normal((B, 3, 8, 8), dtype=np.float32))
    return Batch(0, torch.from_numpy(rng.permutation(N)[:B])[mine], images[mine], counts)


def _training_step(world, config):
    """A step over a network, a memory of 40 rows and neighbourhoods that are always the same."""
    rng = np.random.default_rng(6)
    network = build_backbone(config.model, 0, 8).to(memory_format=torch.channels_last)
    rows = rows_of_rank(N, world.rank, world.world_size)
    memory = MemoryBank(world, N, torch.from_numpy(reference.unit_rows(rng, N, D)[rows.start : rows.stop].copy()))
    if config.method.name == "supervised":
        module, loss = ClassifiedModule(network, config, 3), SupervisedLoss(torch.arange(N) % 3)
    else:
        ids = torch.arange(N)
        members = torch.stack([ids, torch.where(ids % 2 == 0, (ids + 7) % N, -1)], dim=1)
        module, loss = (
            TrainedModule(network, config.optim.precision),
            NeighbourhoodLoss(members, memory, config.method, ObjectiveOptions()),
        )
    state = TrainState(module, make_optimizer(module, config.optim), memory)
    return TrainingStep(state, loss, config, world, CPU)


def _gradient(world, method, parts):
    """(gradient as one vector, this rank's memory, loss) of a step whose batch norms use running statistics."""
    step = _training_step(world, _config(method, accumulation_steps=parts))
    step.state.module.eval()
    step(_batch(world), (0, 0), 0.0, PartClock(CPU, 1))
    (done,) = step.check.finished()
    gradient = torch.cat([p.grad.flatten() for p in step.state.module.parameters()])
    return gradient.numpy(), step.state.memory.values.numpy(), done.loss


def _gradients(world):
    return {(m, parts): _gradient(world, m, parts) for m in ("and", "supervised") for parts in (1, 3)}


def test_parts_of_a_batch_add_up_to_its_gradient_and_its_memory_update_on_any_number_of_ranks():
    whole = _gradients(World())
    for world_size in (1, 2, 3):
        of_ranks = run_ranks(_gradients, world_size)
        for method in ("and", "supervised"):
            memory = np.concatenate([found[method, 3][1] for found in of_ranks])
            np.testing.assert_allclose(memory, whole[method, 1][1], atol=1e-6)
            for found in of_ranks:
                (one, _, loss), (three, _, loss_of_three) = found[method, 1], found[method, 3]
                assert np.linalg.norm(three - one) < 1e-6 * np.linalg.norm(one)
                assert loss_of_three == pytest.approx(loss, rel=1e-6)
                expected = whole[method, 1]
                assert np.linalg.norm(one - expected[0]) < 1e-5 * np.linalg.norm(expected[0])
                assert loss == pytest.approx(expected[2], rel=1e-6)


def test_parts_are_consecutive_and_told_the_counts_of_all_ranks():
    counts = rank_counts(26, 3)
    parts_of_ranks = [micro_batches(_batch(World(rank, 3)), 3) for rank in range(3)]
    for parts in zip(*parts_of_ranks, strict=True):
        assert [len(part.images) for part in parts] == parts[0].counts == parts[1].counts == parts[2].counts
    for rank, parts in enumerate(parts_of_ranks):
        assert sum(part.counts[rank] for part in parts) == counts[rank]
        assert torch.cat([part.sample_ids for part in parts]).equal(_batch(World(rank, 3)).sample_ids)


@pytest.mark.parametrize("lag", [0, 1])
def test_after_a_step_that_is_not_finite_nothing_changes_any_more(lag):
    """With a lag, as on GPUs, the host hears of it one step late; the device has decided before."""
    step = _training_step(World(), _config())
    step.check.lag = lag
    batch, clock = _batch(World()), PartClock(CPU, 9)
    step(batch, (0, 0), 0.03, clock)
    state = step.state
    weights = [p.detach().clone() for p in state.module.parameters()]
    momentum = [state.optimizer.state[p]["momentum_buffer"].clone() for p in state.module.parameters()]
    memory = state.memory.values.clone()
    bad = batch.images.clone()
    bad[3, 0, 0, 0] = float("inf")
    step(Batch(1, batch.sample_ids, bad, batch.counts), (0, 0), 0.03, clock)
    heard = list(step.check.finished())
    assert [(done.step, done.is_finite) for done in heard] == [(0, True), (1, False)][: 2 - lag]
    step(Batch(2, batch.sample_ids, batch.images, batch.counts), (0, 0), 0.03, clock)
    heard += step.check.finished()
    assert [(done.step, done.is_finite) for done in heard[:2]] == [(0, True), (1, False)]
    assert heard[1].sample_ids.equal(batch.sample_ids)
    for p, before, velocity in zip(state.module.parameters(), weights, momentum, strict=True):
        assert p.equal(before)
        assert state.optimizer.state[p]["momentum_buffer"].equal(velocity)
    assert state.memory.values.equal(memory)


def test_a_step_changes_weights_as_plain_sgd_does():
    """The fused kernel runs over memory as it lies: weights in channels_last must meet gradients that lie alike."""
    step, config = _training_step(World(), _config()), _config().optim
    ours = list(step.state.module.parameters())
    plain = [torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in ours]
    sgd = torch.optim.SGD(plain, 0.02, config.momentum, weight_decay=config.weight_decay, nesterov=True)
    assert any(not p.is_contiguous() for p in ours)
    for _ in range(2):
        step(_batch(World()), (0, 0), 0.02, PartClock(CPU, 9))
        for p, q in zip(ours, plain, strict=True):
            q.grad = p.grad.clone()
        sgd.step()
        for p, q in zip(ours, plain, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_bfloat16_products_give_float32_features_of_unit_length_close_to_those_of_float32():
    network = build_backbone(_config().model, 0, 8)
    images = _batch(World()).images
    exact, rounded = (TrainedModule(network, precision)(images) for precision in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.norm(dim=1), torch.ones(B), rtol=0, atol=1e-6)
    assert 0 < (rounded - exact).abs().max() < 0.05
    losses = []
    for precision in ("float32", "bfloat16"):
        step = _training_step(World(), _config(precision=precision))
        step(_batch(World()), (0, 0), 0.03, PartClock(CPU, 1))
        losses += [done.loss for done in step.check.finished()]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def _compiled_step(world):
    # the graph is captured as for any backend, without its minutes of compiling
    step_module.torch.compile = functools.partial(torch.compile, backend="eager")
    found = []
    for compiled in (False, True):
        step = _training_step(world, _config(compile=compiled, accumulation_steps=2))
        step(_batch(world), (0, 0), 0.03, PartClock(CPU, 1))
        (done,) = step.check.finished()
        found.append(
            (done.loss, list(step.state.module.state_dict()), next(step.state.module.parameters()).sum().item())
        )
    return found


def test_a_compiled_network_keeps_its_names_and_gives_the_same_step():
    for plain, compiled in run_ranks(_compiled_step, 2):
        assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
        assert compiled[1] == plain[1]
        assert compiled[2] == pytest.approx(plain[2], rel=1e-4)


def test_the_clock_gives_each_part_its_share_of_the_timed_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("andscale.training.part_clock.time.perf_counter", lambda: now[0])
    clock = PartClock(CPU, 100)
    for number in range(100):
        clock.start(number)
        for seconds, part in zip((1, 2, 3, 3, 1), PARTS, strict=True):
            now[0] += seconds if number % 2 == 0 else 50
            clock.mark(part)
        now[0] += 7  # of no part: between a step and the next
    timed = [100 * i // 16 for i in range(16)]
    even = sum(number % 2 == 0 for number in timed)
    odd = len(timed) - even
    total = even * 10 + odd * 250
    expected = {
        f"{part}_fraction": (even * s + odd * 50) / total for s, part in zip((1, 2, 3, 3, 1), PARTS, strict=True)
    }
    assert clock.fractions() == pytest.approx(expected, abs=1e-4)
    assert describe_fractions({"data_wait_fraction": 0.25, "forward_fraction": 0.75}) == "data wait 25 %, forward 75 %"


@pytest.mark.parametrize("ids", [[0, 21, 13, 39], [21, 0, 38, 12], [22, 39, 21, 38], [13, 1, 2, 12]])
def test_every_rank_moves_its_own_rows_of_a_batch_and_no_other_row(rng, ids):
    """The first row of a rank is the one at which the samples of others point."""
    rows, features = reference.unit_rows(rng, N, D), torch.from_numpy(reference.unit_rows(rng, 4, D))
    for rank in range(3):
        mine = rows_of_rank(N, rank, 3)
        before = torch.from_numpy(rows[mine.start : mine.stop].copy())
        bank = MemoryBank(World(rank, 3), N, before.clone())
        bank.update(torch.tensor(ids), features, 0.5, torch.tensor(False))
        assert bank.values.equal(before)
        bank.update(torch.tensor(ids), features, 0.5)
        for row, value in zip(mine, bank.values, strict=True):
            expected = torch.from_numpy(rows[row])
            if row in ids:
                expected = torch.nn.functional.normalize(0.5 * expected + 0.5 * features[ids.index(row)], dim=0)
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def _averaged_gradient(world):
    """(gradient that DDP averaged, this rank's own, number of buckets) of a module larger than a bucket."""
    step_module._BUCKET_MB = 0.3
    sizes, average = [], step_module._average_on_cpu
    step_module._average_on_cpu = lambda size, bucket: [sizes.append(len(bucket.buffer())), average(size, bucket)][1]
    module = torch.nn.Sequential(*(torch.nn.Linear(200, 200, bias=False) for _ in range(9)))
    parallel = step_module._data_parallel(module, world, CPU)
    images = torch.full((4, 200), 1.0 + world.rank)
    gradients = []
    for network in (parallel, parallel, module):  # the second pass has the buckets in their final order
        module.zero_grad()
        network(images).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]).numpy())
    return gradients[1], gradients[2], len(sizes)


def test_a_gradient_is_averaged_over_the_ranks_in_however_many_buckets_it_travels():
    answers = run_ranks(_averaged_gradient, 3)
    mean = np.mean([alone for _, alone, _ in answers], axis=0)
    assert np.abs(answers[0][1] - mean).max() > 0.1 * np.abs(mean).max()
    for averaged, _, num_buckets in answers:
        assert num_buckets >= 6
        np.testing.assert_allclose(averaged, mean, rtol=1e-5, atol=1e-6 * np.abs(mean).max())


def _late_sum(world):
    """The sum of a rank that comes later than another one polls, and what the others gave meanwhile."""
    import time

    from andscale import distributed

    if world.rank == 1:
        time.sleep(10 * distributed._POLLED_S)
    return distributed.all_reduce_sum(torch.tensor([1.0 + world.rank])).item()


def test_a_rank_that_is_late_is_waited_for():
    assert run_ranks(_late_sum, 2) == [3.0, 3.0]


def test_the_host_never_waits_for_a_number_while_the_memory_is_updated():
    """Tensors without values: whatever asks for one, as an index would on a GPU, fails."""
    memory = MemoryBank(World(), N, torch.empty(N, D, device="meta"))
    ids, admitted = torch.empty(4, dtype=torch.int64, device="meta"), torch.empty((), dtype=torch.bool, device="meta")
    memory.update(ids, torch.empty(4, D, device="meta"), 0.5, admitted)
