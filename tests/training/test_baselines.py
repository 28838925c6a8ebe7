"""DeepCluster and noise as targets: what is theirs beside the trainer that they share with the method."""

import itertools

import numpy as np
import pytest
import torch

from andscale.data.reader import Batch, rank_counts
from andscale.data.shards import open_dataset
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.indexing.kmeans import cluster_features, whiten
from andscale.store.features import read_features
from andscale.store.run_record import load_run
from andscale.training import loop
from andscale.training.deepcluster import DeepClusterLoss
from andscale.training.inputs import load_inputs
from andscale.training.memory_bank import MemoryBank, rows_of_rank
from andscale.training.nat import NoiseLoss, best_assignment
from andscale.training.start import open_reader, start
from ranks import run_ranks
from reference import unit_rows
from tiny_runs import assert_same_state, digits_config, launched, start_run, trained_state

pytestmark = pytest.mark.usefixtures("one_thread")

CLUSTERED = {"method": {"name": "deepcluster", "num_clusters": 12}}
NOISE = {"method": {"name": "nat", "target_epochs": 2}}
N, D, B = 40, 6, 14


def test_clusters_are_those_that_are_there_and_the_seed_alone_decides():
    rng = np.random.default_rng(0)
    truth = np.arange(600) % 5
    features = (np.eye(16, dtype=np.float32)[truth] + 0.02 * rng.standard_normal((600, 16))).astype(np.float32)
    found = cluster_features(features, 5, seed=1)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == len(set(found)) == 5
    np.testing.assert_array_equal(found, cluster_features(features, 5, seed=1))
    features[7, 3] = np.nan
    with pytest.raises(RunError, match="features to cluster are not finite"):
        cluster_features(features, 5, seed=1)


def test_whitening_evens_out_the_directions_and_leaves_out_those_without_any_variance():
    rng = np.random.default_rng(1)
    scales = np.array([5.0, 1.0, 0.2, 0.0], np.float32)
    whitened = whiten((rng.standard_normal((4000, 4)) * scales + 3).astype(np.float32))
    assert whitened.shape == (4000, 3)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3) / 3, atol=0.02)


def _deepcluster(world, root):
    """(assignments, weights of the classifier and of the clusters) after an epoch was begun, trained, and begun."""
    record, config = load_run(root), load_run(root).config
    reader = open_reader(record, torch.device("cpu"))
    state = start(config, 0, load_inputs(record, None, 0, reader.num_samples), reader, world)
    loss = DeepClusterLoss(state, config, reader, world, cluster_features)
    loss.begin_epoch((0, 0))
    first = state.module.assignments.clone(), state.module.classifier.weight.detach().clone()
    for parameter in state.module.classifier.parameters():
        state.optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    for name, values in state.module.network.named_buffers():
        if name.endswith("running_var"):  # as after an epoch: of the rank's own batches
            values.mul_(1 + world.rank * torch.arange(len(values)))
    loss.begin_epoch((0, 1))
    velocity = [state.optimizer.state[p]["momentum_buffer"].abs().max() for p in state.module.classifier.parameters()]
    assert max(velocity) == 0, "the momentum of a classifier that is no more"
    return [values.numpy() for values in (*first, state.module.weights, state.module.classifier.weight.detach())]


def test_ranks_agree_on_clusters_and_a_classifier_that_begins_anew(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, **CLUSTERED)
    assignments, before, weights, after = whole = _deepcluster(World(), layout.root)
    sizes = np.bincount(assignments, minlength=12)
    assert sizes.sum() == 143 and (sizes > 0).sum() > 6
    assert (before != after).any(axis=1).all()
    for world_size in (2, 3):
        for of_rank in run_ranks(_deepcluster, world_size, layout.root):
            for expected, found in zip(whole, of_rank, strict=True):
                np.testing.assert_array_equal(expected, found)
    assert weights.max() <= 10
    assert 0.008 < before.std() < 0.012, "logits of nearly nothing, even by 1 / tau"


def test_samples_of_small_clusters_weigh_more_in_the_loss(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, **CLUSTERED)
    record, config = load_run(layout.root), load_run(layout.root).config
    reader = open_reader(record, torch.device("cpu"))
    state = start(config, 0, load_inputs(record, None, 0, 143), reader, World())
    found = np.repeat(np.arange(12), [1, 5, 60, 7, 7, 7, 7, 7, 7, 7, 7, 21])
    loss = DeepClusterLoss(state, config, reader, World(), lambda features, count, seed: found)
    loss.begin_epoch((0, 0))
    expected = np.minimum(143 / (12 * np.bincount(found)), 10)
    np.testing.assert_allclose(state.module.weights, expected, rtol=1e-6)
    ids = torch.tensor([0, 3, 40, 142])
    logits = torch.from_numpy(np.random.default_rng(2).standard_normal((4, 12)))
    result = loss((torch.zeros(4, 16), logits), Batch(0, ids, torch.zeros(4), [4]), (0, 0))
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    of_sample = [-np.log(p[row, found[i]]) * expected[found[i]] for row, i in enumerate(ids.tolist())]
    assert float(result.loss) == pytest.approx(np.mean(of_sample), rel=1e-6)


@pytest.mark.parametrize("settings", [CLUSTERED, NOISE], ids=["deepcluster", "nat"])
def test_a_round_that_was_stopped_within_an_epoch_ends_bit_for_bit_like_one_that_was_not(
    tmp_path, digits, monkeypatch, settings
):
    whole, stopped = (start_run(tmp_path / name, digits, **settings) for name in ("a", "b"))
    loop.train_round(whole.root, 0, World(), clustering=cluster_features)
    step_of = loop.TrainingStep.__call__

    def dying(self, batch, where, *rest):
        if where == (0, 1) and batch.step == 3:
            raise KeyboardInterrupt
        step_of(self, batch, where, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.TrainingStep, "__call__", dying)
        often = launched(stopped.root, resources={"checkpoint_min": 1e-9})
        loop.train_round(stopped.root, 0, World(), launched=often, clustering=cluster_features)
    assert (stopped.round(0).checkpoints / "epoch-0001-step-000003").is_dir()
    loop.train_round(stopped.root, 0, World(), clustering=cluster_features)
    assert_same_state(trained_state(whole, 0), trained_state(stopped, 0))


def test_more_clusters_than_samples_are_refused_in_one_line(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, method={"name": "deepcluster"})
    with pytest.raises(UsageError, match=r"num_clusters = 10,000, and there are 143 training images: .*--set"):
        loop.train_round(layout.root, 0, World(), clustering=cluster_features)


def test_targets_are_exchanged_as_the_best_of_all_permutations():
    rng = np.random.default_rng(3)
    features, targets = unit_rows(rng, 6, D), unit_rows(rng, 6, D)
    best = max(itertools.permutations(range(6)), key=lambda p: sum(features[i] @ targets[j] for i, j in enumerate(p)))
    assert best_assignment(torch.from_numpy(features), torch.from_numpy(targets)).tolist() == list(best)


def _noise_losses(world, epoch):
    """(loss, gradient by this rank's features, this rank's rows of the memory after the update)."""
    rng = np.random.default_rng(4)
    targets, features = torch.from_numpy(unit_rows(rng, N, D)), torch.from_numpy(unit_rows(rng, B, D))
    ids = torch.from_numpy(rng.permutation(N)[:B])
    counts = rank_counts(B, world.world_size)
    mine = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    rows = rows_of_rank(N, world.rank, world.world_size)
    memory = MemoryBank(world, N, targets[rows.start : rows.stop].clone())
    config = digits_config_method()
    x = features[mine].clone().requires_grad_()
    result = NoiseLoss(memory, config)(x, Batch(0, ids[mine], torch.zeros(len(x)), counts), (0, epoch))
    result.loss.backward()
    memory.update(result.sample_ids, result.features, config.update_momentum)
    return float(result.mean_loss), x.grad.numpy() / world.world_size, memory.values.numpy()


def digits_config_method():
    class Nowhere:
        root = "nowhere"

    return digits_config(Nowhere, **NOISE).method


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_noise_draws_features_to_targets_that_are_only_exchanged(epoch):
    rng = np.random.default_rng(4)
    targets, features = unit_rows(rng, N, D).astype(np.float64), unit_rows(rng, B, D).astype(np.float64)
    ids = rng.permutation(N)[:B]
    order = np.arange(B)
    if epoch % 2 == 0:
        order = best_assignment(torch.from_numpy(features), torch.from_numpy(targets[ids])).numpy()
        assert (order != np.arange(B)).any()
    loss, gradient, memory = _noise_losses(World(), epoch)
    assert loss == pytest.approx((np.square(features - targets[ids][order]).sum(axis=1) / 2).mean(), rel=1e-5)
    np.testing.assert_allclose(gradient, -targets[ids][order] / B, atol=1e-6)
    after = targets.copy()
    after[ids] = targets[ids][order]
    np.testing.assert_allclose(memory, after, atol=1e-6)
    for world_size in (2, 3) if epoch == 0 else ():
        found = run_ranks(_noise_losses, world_size, epoch)
        assert [of_rank[0] for of_rank in found] == pytest.approx([loss] * world_size, rel=1e-6)
        np.testing.assert_allclose(np.concatenate([of_rank[1] for of_rank in found]), gradient, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([of_rank[2] for of_rank in found]), memory, atol=1e-6)


def test_after_training_each_target_still_belongs_to_one_sample(tmp_path, digits):
    layout = start_run(tmp_path / "run", digits, **NOISE)
    record = load_run(layout.root)
    reader = open_reader(record, torch.device("cpu"))
    before = start(record.config, 0, load_inputs(record, layout, 0, 143), reader, World()).memory.values.numpy()
    loop.train_round(layout.root, 0, World())
    after, _ = read_features(layout.round(0).memory)
    assert (np.abs(after - before).max(axis=1) > 1e-3).sum() > 50, "samples exchanged their targets"
    nearest = (after @ before.T).argmax(axis=1)
    assert sorted(nearest) == list(range(143))
    np.testing.assert_allclose(after, before[nearest], atol=1e-5)
    assert open_dataset(record.dataset_root).fingerprint == record.dataset_fingerprint
