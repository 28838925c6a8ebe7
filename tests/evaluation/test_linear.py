from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reference
from andscale.data.reader import Batch, SplitReader, rank_counts
from andscale.distributed import World
from andscale.errors import RunError, UsageError
from andscale.evaluation.linear import (
    MOMENTUM,
    LinearTask,
    Probe,
    Probes,
    build_probes,
    check_shares,
    linear_accuracies,
    num_classes,
    pool,
    train_step,
)
from andscale.training.backbones import build_backbone
from ranks import run_ranks
from tiny_runs import digits_config

RATE, DECAY = 0.3, 0.01


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("tap", "pooled"),
    [
        ((96, 55, 55), (96, 10, 10)),  # AlexNet as published: 9,600, 9,216, 9,600, 9,600, 9,216
        ((256, 27, 27), (256, 6, 6)),
        ((384, 13, 13), (384, 5, 5)),
        ((256, 13, 13), (256, 6, 6)),
        ((64, 8, 8), (64, 8, 8)),
        ((2048, 7, 7), (2048, 2, 2)),
        ((20_000, 3, 3), (20_000, 1, 1)),
        ((128,), (128, 1, 1)),
    ],
)
def test_maps_are_averaged_to_about_9000_numbers(tap, pooled):
    assert pool(torch.zeros(2, *tap)).shape == (2, *pooled)


def test_pooling_is_the_mean_over_cells():
    tap = torch.arange(2 * 9600 * 4, dtype=torch.float32).reshape(2, 9600, 2, 2)
    torch.testing.assert_close(pool(tap)[:, :, 0, 0], tap.mean(dim=(2, 3)))


class _Maps:
    """A network whose two layers are given rows; images are their numbers."""

    def __init__(self, rows):
        self.rows = rows

    def taps(self, images):
        rows = self.rows[images[:, 0, 0, 0].long()]
        return {"conv1": rows[:, :6].reshape(-1, 3, 1, 2).repeat(1, 1, 2, 1), "embedding": rows[:, 6:]}


def _two_steps(world, rows, labels):
    """Weights of both layers' classifiers after two steps over global batches of unequal shares."""
    reader = SimpleNamespace(catalogue=SimpleNamespace(labels=labels), device=torch.device("cpu"))
    config = SimpleNamespace(evaluation=None)
    task = LinearTask(_Maps(torch.from_numpy(rows)), {"train": reader, "val": reader}, config, world, 0)
    assert num_classes(task.readers) == 3
    probes = Probes({
        "conv1": Probe(torch.tensor([0.5, 0, 0]), torch.tensor([2.0, 1, 1]), torch.Size((3, 1, 1)), 3),
        "embedding": Probe(torch.zeros(4), torch.ones(4), torch.Size((4, 1, 1)), 3),
    })  # fmt: skip
    model = torch.nn.parallel.DistributedDataParallel(probes) if world.world_size > 1 else probes
    optimizer = torch.optim.SGD(probes.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    losses = []
    for step, size in enumerate((7, 5)):
        counts = rank_counts(size, world.world_size)
        first = 7 * step + sum(counts[: world.rank])
        ids = torch.arange(first, first + counts[world.rank])
        images = ids.float()[:, None, None, None].expand(-1, 3, 4, 4)
        found = train_step(task, model, optimizer, Batch(step, ids, images, counts))
        losses.append({name: float(loss) for name, loss in found.items()})
    return {name: value.tolist() for name, value in probes.state_dict().items()}, losses


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_steps_equal_the_dense_equations(rng, monkeypatch, world_size):
    monkeypatch.setattr("andscale.evaluation.linear.MAX_FEATURES", 3)
    rows = rng.standard_normal((12, 10)).astype(np.float32)
    labels = rng.integers(0, 3, 12).astype(np.int32)
    labels[:3] = 0, 1, 2
    if world_size == 1:
        answers = [_two_steps(World(), rows, labels)]
    else:
        answers = run_ranks(_pooled_to_cells, world_size, rows, labels)
    cells = rows[:, :6].reshape(12, 3, 2).mean(axis=2)  # the map's mean, channel by channel
    inputs = {"conv1": (cells - [0.5, 0, 0]) / [2.0, 1, 1], "embedding": rows[:, 6:]}
    for name, x in inputs.items():
        weights, bias = np.zeros((3, x.shape[1])), np.zeros(3)
        velocity = [0.0, 0.0]
        for step, batch in enumerate((slice(0, 7), slice(7, 12))):
            loss, *gradients = reference.softmax_regression_step(weights, bias, x[batch], labels[batch])
            total = sum(losses[step][name] for _, losses in answers)
            assert total == pytest.approx(loss * len(x[batch]), rel=1e-5)
            gradients = [g + DECAY * v for g, v in zip(gradients, (weights, bias), strict=True)]
            velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradients, strict=True)]
            weights, bias = weights - RATE * velocity[0], bias - RATE * velocity[1]
        for state, _ in answers:
            np.testing.assert_allclose(state[f"by_name.{name}.linear.weight"], weights, atol=1e-6)
            np.testing.assert_allclose(state[f"by_name.{name}.linear.bias"], bias, atol=1e-6)


def _pooled_to_cells(world, rows, labels):
    from andscale.evaluation import linear

    linear.MAX_FEATURES = 3
    return _two_steps(world, rows, labels)


def _digits_task(digits, world, **evaluation):
    """All digits, seen by an untrained network."""
    settings = {"linear_epochs": 1, "linear_batch_size": 64, "linear_learning_rate": 0.02} | evaluation
    sections = {"max_train_samples": None, "max_val_samples": None}
    augment = {"min_crop_scale": 0.8, "flip_probability": 0.0}
    config = digits_config(digits, data=sections, augment=augment, evaluation=settings)
    readers = {split: SplitReader(digits, split, config.data, torch.device("cpu")) for split in ("train", "val")}
    return LinearTask(build_backbone(config.model, 0, config.data.image_size), readers, config, world, 0)


def test_channels_are_standardised_over_the_first_batches(digits, monkeypatch):
    monkeypatch.setattr("andscale.evaluation.linear.STATISTICS_SAMPLES", 150)
    task = _digits_task(digits, World())
    task.network.eval()
    probes = build_probes(task)
    batches = [batch for batch in task.batches(0) if batch.step < 3]
    for name in task.network.tap_names:
        values = torch.cat([task.pooled(batch.images)[name] for batch in batches]).double()
        probe = probes.by_name[name]
        torch.testing.assert_close(probe.mean[:, 0, 0].double(), values.mean(dim=(0, 2, 3)), atol=1e-6, rtol=1e-5)
        std = values.std(dim=(0, 2, 3), correction=0).clamp(min=1e-5**0.5)
        torch.testing.assert_close(1 / probe.scale[:, 0, 0].double(), std, atol=1e-6, rtol=1e-4)


def test_linear_classifiers_learn_what_a_layer_knows(digits):
    """Ten classes: chance is 0.1; the frozen network has random weights and stays as it is."""
    task = _digits_task(digits, World(), linear_epochs=8)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    found, figures = linear_accuracies(task)
    assert tuple(found) == task.network.tap_names
    assert found["conv1"]["top1"] > 0.85
    assert all(record["top1"] > 0.5 for name, record in found.items() if name != "embedding"), found
    assert all(record["top1"] < record["top5"] <= 1 for record in found.values())
    assert found["conv1"]["pooled"] == [32, 4, 4]
    assert found["embedding"]["pooled"] == [16, 1, 1]
    assert figures["linear_images_per_s"] > 0
    for name, value in task.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_labels_that_do_not_fit_the_images_are_not_learnt(digits, rng):
    """What the threshold above is worth: with shuffled labels the same training stays near chance."""
    task = _digits_task(digits, World(), linear_epochs=2)
    reader = task.readers["train"]
    reader.catalogue = replace(reader.catalogue, labels=rng.permutation(reader.catalogue.labels))
    found, _ = linear_accuracies(task)
    assert all(record["top1"] < 0.3 for record in found.values()), found


def test_a_rate_that_is_too_high_is_named(digits):
    with pytest.raises(RunError, match=r"linear classifiers, epoch 0: losses .*lower evaluation.linear_learning_rate"):
        linear_accuracies(_digits_task(digits, World(), linear_learning_rate=1e38))


def test_ranks_without_a_sample_are_refused():
    settings = SimpleNamespace(linear_epochs=1, linear_batch_size=4)
    with pytest.raises(UsageError, match=r"batches of 2 samples are too small for 3 ranks.*linear_batch_size"):
        check_shares(settings, 5, World(0, 3))
    check_shares(settings, 8, World(0, 3))
    check_shares(SimpleNamespace(linear_epochs=0, linear_batch_size=4), 5, World(0, 3))
