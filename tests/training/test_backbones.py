"""Shapes, names and weights of every network; shapes on the meta device, where they cost nothing."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from andscale.config import BACKBONES, ModelConfig
from andscale.config_file import build_config
from andscale.errors import UsageError
from andscale.training.backbones import build_backbone

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def _build(backbone, stem="small", *, size=None, seed=0, feature_dim=16):
    return build_backbone(ModelConfig(backbone=backbone, stem=stem, feature_dim=feature_dim), seed, size)


def _resnet(channels, sizes):
    return dict(zip(CONVOLUTIONS, [(64, sizes[0]), *zip(channels, sizes[1:], strict=True)], strict=True))


BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
ALEXNET = (96, 256, 384, 384, 256)
# (channels, height) of every tap
TAPS = {
    ("small_resnet", "small", 32): dict(zip(CONVOLUTIONS, [(32, 16), (32, 16), (64, 8), (128, 4)], strict=False)),
    ("alexnet", "imagenet", 224): dict(zip(CONVOLUTIONS, zip(ALEXNET, (55, 27, 13, 13, 13), strict=True), strict=True)),
    ("alexnet", "small", 32): dict(zip(CONVOLUTIONS, zip(ALEXNET, (32, 15, 7, 7, 7), strict=True), strict=True)),
    ("resnet18", "small", 32): _resnet(BASIC, (32, 32, 16, 8, 4)),
    ("resnet18", "imagenet", 224): _resnet(BASIC, (112, 56, 28, 14, 7)),
    ("resnet34", "imagenet", 224): _resnet(BASIC, (112, 56, 28, 14, 7)),
    ("resnet50", "imagenet", 224): _resnet(BOTTLENECK, (112, 56, 28, 14, 7)),
    ("resnet101", "small", 32): _resnet(BOTTLENECK, (32, 32, 16, 8, 4)),
    ("timm:test_resnet", "small", 64): {"act1": (32, 32), "layer1": (32, 16), "layer2": (48, 8), "layer3": (192, 4),
                                        "layer4": (96, 2)},
    ("timm:test_vit", "small", 64): {f"blocks.{i}": (64, 4) for i in range(6)},
}  # fmt: skip


@pytest.mark.parametrize(("key", "expected"), TAPS.items(), ids=lambda v: "-".join(map(str, v)) if len(v) == 3 else "")
def test_taps_have_the_names_the_order_and_the_shapes_of_the_network(key, expected):
    if key[0].startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        network = _build(key[0], key[1], size=key[2])
        taps = network.taps(torch.empty(2, 3, key[2], key[2]))
    assert {name: tuple(x.shape) for name, x in taps.items()} == {
        name: (2, channels, height, height) for name, (channels, height) in expected.items()
    } | {"embedding": (2, 16)}
    assert network.tap_names == tuple(taps) == (*expected, "embedding")


SMALL = [("small_resnet", 8), ("alexnet", 15), ("resnet18", 8), ("timm:test_resnet", 32), ("timm:test_vit", 64)]


@pytest.mark.parametrize(("backbone", "size"), SMALL)
def test_the_last_tap_is_what_forward_gives_and_the_others_are_what_passes_through(backbone, size):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    network = _build(backbone, size=size).eval()
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        taps, features = network.taps(images), network(images)
    torch.testing.assert_close(taps["embedding"], features, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    if backbone.startswith("timm:"):
        return
    assert all(taps[name].min() == 0 for name in network.tap_names[:-1]), "a map before its ReLU"
    # in-place modules that come later have not changed a map that was given out
    seen, x = [], images
    with torch.no_grad():
        for module in network.trunk:
            x = module(x)
            seen.append(x.clone())
    for name in network.tap_names[:-1]:
        assert any(torch.equal(taps[name], x) for x in seen), name


def test_a_tap_of_alexnet_comes_before_the_pooling():
    network = _build("alexnet").eval()
    images = torch.randn(2, 3, 20, 20)
    convolution, norm, *_ = network.trunk
    torch.testing.assert_close(network.taps(images)["conv1"], norm(convolution(images)).relu())


def _count(channels_in, channels_out, kernel):
    """Weights of a convolution and of its batch norm."""
    return channels_in * channels_out * kernel**2 + 2 * channels_out


@pytest.mark.parametrize(("stem", "kernel", "cells"), [("imagenet", 11, 36), ("small", 5, 9)])
def test_alexnets_weights_are_as_many_as_arithmetic_says(stem, kernel, cells):
    with torch.device("meta"):
        network = _build("alexnet", stem, feature_dim=128)
    convolutions = (
        _count(3, 96, kernel) + _count(96, 256, 5) + _count(256, 384, 3) + _count(384, 384, 3) + _count(384, 256, 3)
    )
    head = _count(256 * cells, 4096, 1) + _count(4096, 4096, 1) + 4096 * 128 + 128
    assert sum(p.numel() for p in network.parameters()) == convolutions + head


@pytest.mark.parametrize(
    ("backbone", "weights"), [("resnet18", 11_176_512), ("resnet50", 23_508_032), ("resnet101", 42_500_160)]
)
def test_resnets_have_the_published_number_of_weights(backbone, weights):
    """He et al.'s networks without the classifier."""
    with torch.device("meta"):
        network = _build(backbone, "imagenet")
    assert sum(p.numel() for p in network.trunk.parameters()) == weights


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 63), ("small", 15)])
def test_the_least_image_size_of_the_config_is_the_least_that_works(stem, least):
    def values(size):
        model = {"backbone": "alexnet", "stem": stem}
        return {"data": {"dataset": "x", "image_size": size}, "model": model}

    with torch.device("meta"):
        network = _build("alexnet", stem)
        assert network(torch.empty(2, 3, least, least)).shape == (2, 16)
        with pytest.raises(RuntimeError):
            network(torch.empty(2, 3, least - 1, least - 1))
    build_config(values(least), "test")
    with pytest.raises(UsageError, match=f"data.image_size = {least - 1} is too small .* at least {least}"):
        build_config(values(least - 1), "test")


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "alexnet"])
def test_the_other_networks_take_the_least_image_that_the_config_allows(backbone):
    with torch.device("meta"):
        for stem in ("small",) if backbone == "small_resnet" else ("small", "imagenet"):
            assert _build(backbone, stem)(torch.empty(2, 3, 4, 4)).shape == (2, 16)


@pytest.mark.parametrize(("backbone", "size"), [("small_resnet", 8), ("alexnet", 15), ("timm:test_resnet", 32)])
def test_first_weights_depend_on_the_seed_alone(backbone, size):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = _build(backbone, size=size, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = _build(backbone, size=size, seed=3), _build(backbone, size=size, seed=4)
    for name, weights in first.named_parameters():
        assert torch.equal(weights, second.get_parameter(name)), name
        if weights.ndim > 1:
            assert not torch.equal(weights, other.get_parameter(name)), name


@pytest.mark.parametrize(("backbone", "size"), SMALL[:2])
def test_memory_format_changes_nothing_and_every_weight_gets_a_gradient(backbone, size):
    network, images = _build(backbone, size=size).eval(), torch.randn(2, 3, size, size)
    expected = network(images)
    last = network.to(memory_format=torch.channels_last)
    features = last(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    (features * torch.randn(16)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_network_of_timm_that_is_not_there_is_answered_with_its_neighbours():
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="has no network 'resnet1O': closest: resnet1"):
        _build("timm:resnet1O")
    with pytest.raises(UsageError, match=r"timm.list_models\(\) gives the names"):
        _build("timm:qqqqqqqqqqqq")


def test_a_network_of_timm_that_does_not_take_the_size_says_so():
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="timm:test_vit does not take images of 8 pixels: ") as caught:
        _build("timm:test_vit", size=8)
    assert "\n" not in str(caught.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm: install it with 'pip install andscale\[timm\]'"):
        _build("timm:resnet18")


def test_a_network_of_timm_takes_images_of_another_size_than_its_own():
    pytest.importorskip("timm")
    assert _build("timm:test_vit", size=32).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 16)


def test_the_config_loads_neither_torch_nor_timm():
    code = (
        "import sys; from andscale.config import ModelConfig; ModelConfig(backbone='timm:resnet18'); import andscale; "
        "print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_batch_norms_of_alexnet_follow_its_convolutions_and_two_of_its_layers():
    with torch.device("meta"):
        network = _build("alexnet", "imagenet")
    kinds = [type(m) for m in network.modules()]
    assert (kinds.count(nn.BatchNorm2d), kinds.count(nn.BatchNorm1d), kinds.count(nn.LocalResponseNorm)) == (5, 2, 0)
