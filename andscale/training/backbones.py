"""The networks by name, and what is kept of them in ``model/``."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from andscale.config import TIMM_PREFIX, ModelConfig
from andscale.data.augment import PIXEL_MEAN, PIXEL_STD
from andscale.errors import RunError
from andscale.training.alexnet import build_alexnet
from andscale.training.embedding import EmbeddingNetwork, GlobalMean, Stages, initialise_convolutions
from andscale.training.timm_backbones import build_timm

__all__ = ["EmbeddingNetwork", "build_backbone", "load_weights", "save_model"]

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016, basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def build_backbone(config: ModelConfig, seed: int, image_size: int | None = None) -> EmbeddingNetwork:
    """Build the network with weights that are a function of ``seed`` alone; torch's global generator is kept.

    Args:
        config: backbone, stem, D.
        seed: of the weights.
        image_size: height and width of the input, pixels, for timm's networks, some of which take one size only;
            None is their own.

    Raises:
        UsageError: timm is not installed, has no such network, or it does not take such images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config.backbone.removeprefix(TIMM_PREFIX), config.backbone.startswith(TIMM_PREFIX):
            case name, True:
                return build_timm(name, config.feature_dim, image_size)
            case "small_resnet", _:
                return _embedding(*_small_resnet(), config.feature_dim)
            case "alexnet", _:
                return build_alexnet(config.stem, config.feature_dim)
            case name, _:
                return _embedding(*_torchvision_resnet(name, config.stem), config.feature_dim)


def save_model(folder: Path, network: EmbeddingNetwork, config: ModelConfig, image_size: int) -> list[str]:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``; returns the names."""
    # channels_last tensors are not contiguous, and safetensors takes contiguous ones only
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAME)
    record = {
        "model": config.model_dump(mode="json"),
        "image_size": image_size,
        "mean": PIXEL_MEAN,
        "std": PIXEL_STD,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [WEIGHTS_NAME, CONFIG_NAME]


def load_weights(folder: Path, network: EmbeddingNetwork) -> None:
    """Load ``model.safetensors`` of a verified folder; raises RunError when it is of another network."""
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS_NAME} does not fit the network: {str(error).splitlines()[0]}") from None


def _embedding(trunk: Stages, num_channels: int, feature_dim: int) -> EmbeddingNetwork:
    return EmbeddingNetwork(trunk, GlobalMean(), nn.Linear(num_channels, feature_dim))


def _small_resnet() -> tuple[Stages, int]:
    """A ResNet of three stages of one basic block, 0.3 million weights, for small images on a CPU.

    The stem halves the image at once: that gave the most accuracy for the time (docs/log.md).
    """
    modules = [
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        _Block(32, 32, stride=1),
        _Block(32, 64, stride=2),
        _Block(64, 128, stride=2),
    ]
    trunk = Stages(modules, {"conv1": 2, "conv2": 3, "conv3": 4, "conv4": 5})
    initialise_convolutions(trunk)
    return trunk, 128


def _torchvision_resnet(name: str, stem: str) -> tuple[Stages, int]:
    from torchvision import models

    resnet = getattr(models, name)(weights=None)
    if stem == "small":
        resnet.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    num_channels: int = resnet.fc.in_features
    children = [module for child, module in resnet.named_children() if child not in ("avgpool", "fc")]
    # conv1, bn1, relu, maxpool, layer1 .. layer4
    return Stages(children, {"conv1": 2, "conv2": 4, "conv3": 5, "conv4": 6, "conv5": 7}), num_channels
