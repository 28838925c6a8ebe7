"""The networks by name, and what is kept of them in ``model/``."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import andscale
from andscale.config import TIMM_PREFIX, ModelConfig
from andscale.data.augment import PIXEL_MEAN, PIXEL_STD
from andscale.errors import RunError
from andscale.training.alexnet import build_alexnet
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.model_record import CONFIG_NAME, ModelRecord
from andscale.training.resnets import build_resnet, build_small_resnet
from andscale.training.timm_backbones import build_timm

__all__ = ["EmbeddingNetwork", "build_backbone", "load_weights", "save_model"]

WEIGHTS_NAME = "model.safetensors"


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
        if config.backbone.startswith(TIMM_PREFIX):
            return build_timm(config.backbone.removeprefix(TIMM_PREFIX), config.feature_dim, image_size)
        match config.backbone:
            case "small_resnet":
                return build_small_resnet(config.feature_dim)
            case "alexnet":
                return build_alexnet(config.stem, config.feature_dim)
            case name:
                return build_resnet(name, config.stem, config.feature_dim)


def save_model(folder: Path, network: EmbeddingNetwork, config: ModelConfig, image_size: int) -> list[str]:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``; returns the names."""
    # channels_last tensors are not contiguous, and safetensors takes contiguous ones only
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    (folder / WEIGHTS_NAME).write_bytes(save(state))  # whose errors are the system's
    record = ModelRecord(
        andscale=andscale.__version__,
        model=config,
        image_size=image_size,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        tap_names=network.tap_names,
    )
    (folder / CONFIG_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return [WEIGHTS_NAME, CONFIG_NAME]


def load_weights(folder: Path, network: EmbeddingNetwork) -> None:
    """Load ``model.safetensors`` of a verified folder; raises RunError when it is of another network."""
    path = folder / WEIGHTS_NAME
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} is not a safetensors file, or it is damaged: {reason}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} does not fit the network that its config.json describes: {reason}") from None
