"""Grad-CAM on our own networks against its equation."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from andscale.audit.attention import attention_maps
from andscale.config import ModelConfig
from andscale.errors import UsageError
from andscale.training.backbones import build_backbone


def reference_map(network, image, memory):
    """The last maps, weighted by the means of the gradients of x . m."""
    last = network.trunk(image[None]).detach().requires_grad_()
    feature = functional.normalize(network.head(network.pool(last)), dim=1)[0]
    (feature @ memory).backward()
    return (last.grad.mean(dim=(2, 3), keepdim=True) * last).sum(dim=1)[0].clamp(min=0).detach().numpy()


@pytest.mark.parametrize("backbone", ["small_resnet", "alexnet", "resnet18"])
def test_the_map_is_that_of_the_similarity_to_the_own_memory(backbone):
    network = build_backbone(ModelConfig(backbone=backbone, stem="small", feature_dim=8), 0).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    memory = functional.normalize(torch.randn(2, 8, generator=generator), dim=1)
    found = attention_maps(network, images, memory)
    assert found.shape == (2, 32, 32)
    for ours, image, own in zip(found, images, memory, strict=True):
        large = cv2.resize(reference_map(network, image, own), (32, 32))
        assert large.std() > 0
        np.testing.assert_allclose(ours, (large - large.min()) / (large.max() - large.min()), atol=1e-3)


def test_one_place_is_none_to_look_at():
    network = build_backbone(ModelConfig(backbone="small_resnet", feature_dim=8), 0).eval()
    with pytest.raises(UsageError, match="at 8x8 pixels this network's last maps have one place"):
        attention_maps(network, torch.zeros(1, 3, 8, 8), torch.zeros(1, 8))
