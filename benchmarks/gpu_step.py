"""The training job beside the bare network on a GPU: ResNet-50 and AlexNet in bfloat16, compiled."""

from pathlib import Path
from typing import Any

import torch

from andscale.config import RunConfig
from andscale.config_file import build_config
from andscale.distributed import World
from benchmarks.step import Throughput, make_images, measure, throughput_table

TARGET = 0.9
NUM_IMAGES = 4096
_BATCH = 256
_TURNS = 3


def step_table(folder: Path, device: torch.device) -> str:
    """Measure both networks; images are held decoded, the memory has as many rows as there are images.

    Args:
        folder: empty; the images are made there.
        device: the card.
    """
    make_images(folder, NUM_IMAGES, 256, "JPEG")
    found = {}
    for backbone in ("resnet50", "alexnet"):
        config = step_config(folder / "data", backbone, {"precision": "bfloat16", "compile": True})
        # the graph is compiled in the turn that is not counted
        throughput: Throughput = measure(config, World(), device, _TURNS)
        found[f"{backbone}, 224x224, B = {_BATCH}, bfloat16, compiled"] = throughput, TARGET
    return throughput_table(found)


def step_config(data: Path, backbone: str, optim: dict[str, Any]) -> RunConfig:
    """Of a run over ``data`` with 224x224 crops."""
    return build_config(
        {
            "data": {"dataset": str(data), "image_size": 224},
            "model": {"backbone": backbone, "stem": "imagenet"},
            "optim": {"global_batch_size": _BATCH, "num_epochs": _TURNS + 1, **optim},
        },
        "benchmark",
    )
