"""``python -m benchmarks.step``: the training job's images a second beside the bare network's, in the same processes.

Bare: forward and backward of the same network, on a batch that stays where it is, with the same precision, compiled or
not, memory format and number of threads, all ranks at once; nothing travels between them. End to end: whole epochs of
the training job, from images in memory to the updated memory bank. They take turns, so that a busy machine slows both.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from andscale.config import RunConfig
from andscale.config_file import load_config
from andscale.data.prepare import PrepareOptions, prepare
from andscale.data.reader import SplitReader
from andscale.data.shards import open_dataset
from andscale.distributed import World, barrier, gather_records, process_group, world_from_environment
from andscale.store.artifacts import Provenance
from andscale.training.checkpoint import Position
from andscale.training.inputs import RoundInputs
from andscale.training.loop import train_epoch
from andscale.training.methods import make_loss
from andscale.training.part_clock import PARTS
from andscale.training.start import start
from andscale.training.step import TrainedModule, TrainingStep
from andscale.training.stopping import StepBoundary, StopSignals
from benchmarks.table import markdown, number

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "fashion_mnist_demo.toml"
TARGET = 0.7
NUM_RANKS = 2
_LIMIT_S = 300


@dataclass(frozen=True)
class Throughput:
    """Images a second of all ranks together, one figure a turn.

    Attributes:
        bare: of the network alone.
        job: of the training job.
        shares: of the parts of the job's steps, of its last epoch.
    """

    bare: list[float]
    job: list[float]
    shares: dict[str, float]

    @property
    def ratio(self) -> float:
        """Median over the turns of the job's over the bare network's."""
        return statistics.median(job / bare for job, bare in zip(self.job, self.bare, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Measure the demo's network on two ranks of one thread each and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of bare steps and one epoch each")
    parser.add_argument("--images", type=int, default=10_000, help="of the synthetic training split")
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank_in:
        _rank(options.rank_in, options.turns)
        return 0
    with tempfile.TemporaryDirectory(prefix="andscale-bench-") as name:
        make_images(Path(name), options.images, 28, "PNG")
        found = _measure_ranks(Path(name), options.turns)
    print(f"small_resnet, 28x28, {options.images:,} images, batches of 128 on {NUM_RANKS} ranks, one thread each\n")
    print(throughput_table({"configs/fashion_mnist_demo.toml": (found, TARGET)}))
    return 0


def throughput_table(found: dict[str, tuple[Throughput, float]]) -> str:
    """One row a config: images a second, their ratio, its target, and where a step's time goes."""
    header = ["", "bare (images/s)", "training job", "ratio", "target", "verdict", *(f"{p} %" for p in PARTS)]
    rows = [
        [
            title,
            number(statistics.median(t.bare), 0),
            number(statistics.median(t.job), 0),
            number(t.ratio, 2),
            f">= {target:g}",
            "reached" if t.ratio >= target else "missed",
            *(number(100 * t.shares[f"{part}_fraction"], 0) for part in PARTS),
        ]
        for title, (t, target) in found.items()
    ]
    return markdown(header, rows)


def make_images(folder: Path, count: int, size: int, form: str) -> None:
    """Prepare ``folder/data``: ``count`` smooth random images for training, of no class, encoded as ``form``."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "raw").mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BILINEAR).save(folder / "raw" / f"{i:06d}.{form.lower()}", form)
    prepare("image-folder", folder / "raw", folder / "data", PrepareOptions())


def measure(config: RunConfig, world: World, device: torch.device, turns: int) -> Throughput:
    """Take turns on every rank of a process group.

    Args:
        config: its data set is read, one epoch a turn.
        world: this rank.
        device: of this rank.
        turns: after a first one that is not counted.
    """
    dataset = open_dataset(Path(config.data.dataset))
    reader = SplitReader(dataset, "train", config.data, device, config.data.max_train_samples)
    members = torch.arange(reader.num_samples)[:, None]
    state = start(config, 0, RoundInputs(members, None, None, Provenance("")), reader, world)
    step = TrainingStep(state, make_loss(config, members, state, reader, (world, None)), config, world, device)
    (batch, *_) = reader.epoch(world, config.augment, config.optim.global_batch_size, (config.seed, 0, 0))
    bare = _BareNetwork(config, batch.images)
    steps = max(1, reader.num_samples // config.optim.global_batch_size)
    found = Throughput([], [], {})
    at_boundary = StepBoundary(world, StopSignals(), checkpoint_min=1e9), lambda: None
    for turn in range(turns + 1):
        barrier()
        rates = gather_records(bare.images_per_s(steps if turn else 3))
        barrier()
        state.position = Position(turn % config.optim.num_epochs)
        figures = train_epoch(step, reader, config, (world, 0), at_boundary)
        if turn:
            found.bare.append(sum(rates))
            found.job.append(figures["images_per_s"])
            found.shares.update({k: v for k, v in figures.items() if k.endswith("_fraction")})
    return found


class _BareNetwork:
    """Forward and backward of a network of its own on a resident batch."""

    def __init__(self, config: RunConfig, images: Tensor):
        from andscale.training.backbones import build_backbone

        network = build_backbone(config.model, config.seed, config.data.image_size)
        network.to(images.device, memory_format=torch.channels_last)
        self.module = TrainedModule(network, config.optim.precision).train()
        self.forward = torch.compile(self.module) if config.optim.compile else self.module
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.gradient = torch.randn(len(images), config.model.feature_dim, device=images.device) / len(images)

    def images_per_s(self, steps: int) -> float:
        """Of this process."""
        self._wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.module.zero_grad(set_to_none=True)
            self.forward(self.images).backward(self.gradient)
        self._wait()
        return steps * len(self.images) / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.images.device.type == "cuda":
            torch.cuda.synchronize(self.images.device)


def _measure_ranks(folder: Path, turns: int) -> Throughput:
    """Start the ranks and read what rank 0 measured."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # kept off a GPU that may be there: the figure is the CPU's
    common = {"WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    common |= {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.step", "--rank-in", str(folder), "--turns", str(turns)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | {key: str(value) for key, value in {**common, "RANK": r, "LOCAL_RANK": r}.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(NUM_RANKS)
    ]
    try:
        answers = [rank.communicate(timeout=_LIMIT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return Throughput(**json.loads(answers[0].splitlines()[-1]))


def _rank(folder: Path, turns: int) -> None:
    world = world_from_environment()
    config = load_config(CONFIG, [f"data.dataset={folder / 'data'}", f"optim.num_epochs={turns + 1}"])
    with process_group(world) as device:
        torch.set_num_threads(1)
        found: dict[str, Any] = vars(measure(config, world, device, turns))
    if world.is_main:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
