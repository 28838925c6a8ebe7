"""Batch norm over ranks with unequal shares equals one process over the whole batch: results, gradients, statistics."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from andscale.errors import UsageError
from andscale.training.sync_batchnorm import convert_sync_batchnorm
from ranks import run_ranks

SHARES = {1: [9], 2: [2, 7], 3: [4, 2, 3]}


def _network(dtype=torch.float64):
    """Batch norms over maps and over vectors, far from zero mean and unit variance."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 6, bias=False), nn.BatchNorm1d(6)
    )
    with torch.no_grad():
        for module in network:
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return network.to(dtype)


def _batch(dtype=torch.float64):
    torch.manual_seed(1)
    images, weights = 3 + 2 * torch.randn(9, 3, 8, 8), torch.randn(9, 6)
    return images.to(dtype), weights.to(dtype)


def _answer(network, images, features):
    state = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    gradients = {name: value.grad.numpy().copy() for name, value in network.named_parameters()}
    return features.detach().numpy(), images.grad.numpy(), gradients, state


def _on_a_rank(world, dtype):
    network = _network(dtype)
    names = list(network.state_dict())
    convert_sync_batchnorm(network)
    assert list(network.state_dict()) == names
    images, weights = _batch(dtype)
    first = sum(SHARES[world.world_size][: world.rank])
    mine = slice(first, first + SHARES[world.world_size][world.rank])
    share = images[mine].clone().requires_grad_()
    model = DistributedDataParallel(network) if world.world_size > 1 else network
    for _ in range(2):
        network.zero_grad()
        share.grad = None
        features = model(share)
        # as the objective: the sum over the global batch, times the ranks, because DDP averages gradients
        (world.world_size * (features * weights[mine]).sum()).backward()
    return _answer(network, share, features)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_unequal_shares_give_what_one_process_gives(world_size, dtype, tolerance):
    network, (images, weights) = _network(torch.float64), _batch(torch.float64)
    images.requires_grad_()
    for _ in range(2):
        network.zero_grad()
        images.grad = None
        features = network(images)
        (features * weights).sum().backward()
    expected = _answer(network, images, features)
    answers = run_ranks(_on_a_rank, world_size, dtype)

    def close(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * max(1, np.abs(wanted).max()))

    close(np.concatenate([answer[0] for answer in answers]), expected[0])
    close(np.concatenate([answer[1] for answer in answers]) / world_size, expected[1])
    for answer in answers:
        for found, wanted in zip(answer[2:], expected[2:], strict=True):
            assert found.keys() == wanted.keys()
            for name in found:
                close(found[name], wanted[name])


def test_evaluation_is_that_of_the_plain_network():
    network, (images, _) = _network(), _batch()
    network(images)
    converted = copy.deepcopy(network)
    convert_sync_batchnorm(converted)
    torch.testing.assert_close(converted.eval()(images), network.eval()(images), rtol=0, atol=0)


def test_half_precision_stays_half_and_is_close():
    images, _ = _batch(torch.float32)
    plain, converted = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    convert_sync_batchnorm(converted)
    half = images.bfloat16().requires_grad_()
    result = converted(half)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), plain(images), rtol=0.02, atol=0.03)
    result.float().square().sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_timms_batch_norm_keeps_its_activation():
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_efficientnet", num_classes=0)
    converted = copy.deepcopy(network)
    convert_sync_batchnorm(converted)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(converted(images), network(images), rtol=1e-4, atol=1e-4)
    assert list(converted.state_dict()) == list(network.state_dict())


def test_a_batch_norm_that_cannot_be_synchronised_is_named():
    with pytest.raises(UsageError, match="0 has no weights or statistics"):
        convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3, affine=False)))
