"""One step of training: forward, objective, backward, check, SGD, memory update."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from andscale.config import OptimConfig, RunConfig
from andscale.data.reader import Batch, rank_counts
from andscale.distributed import World, wait_for_work
from andscale.training.checkpoint import Position
from andscale.training.embedding import EmbeddingNetwork
from andscale.training.finite_check import FiniteCheck
from andscale.training.memory_bank import MemoryBank
from andscale.training.objective import ObjectiveResult
from andscale.training.part_clock import PartClock

_BUCKET_MB = 25


class BatchLoss:
    """What a method trains by; see methods.py."""

    def begin_epoch(self, where: tuple[int, int]) -> None:
        """Prepare an epoch (round and epoch), before its first step; not called where one goes on from its middle.

        What is prepared and needed until the epoch's end belongs into the trained module's state, or the memory.
        """

    def __call__(self, outputs: Any, batch: Batch, where: tuple[int, int]) -> ObjectiveResult:
        """What the trained module gave, the batch, its round and epoch -> loss and gathered features."""
        raise NotImplementedError


@dataclass
class TrainState:
    """All that training changes.

    Attributes:
        module: the network, which is published, and what the method puts on top of it.
        optimizer: of the module's parameters.
        memory: this rank's rows.
        position: the step to go on with.
    """

    module: "TrainedModule"
    optimizer: torch.optim.Optimizer
    memory: MemoryBank
    position: Position = field(default_factory=Position)


class TrainedModule(nn.Module):
    """The network in the precision of its products, its features in float32; a method may put more on top.

    Args:
        network: images to features.
        precision: ``optim.precision``.
    """

    def __init__(self, network: EmbeddingNetwork, precision: str):
        super().__init__()
        self.network = network
        self._autocast = precision == "bfloat16"

    def forward(self, images: Tensor) -> Any:
        """(b, 3, S, S) float32 -> (b, D) float32, unit length."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._autocast):
            features = self.network(images)
        if not self._autocast:
            return features
        return functional.normalize(features.float(), dim=1)  # rounded to bfloat16, they are off by up to 0.4 %


class TrainingStep:
    """What a round repeats.

    Args:
        state: changed by every step.
        loss: of a batch, by the method.
        config: batch parts, precision, optimizer.
        world: this rank.
        device: of the module.
    """

    def __init__(self, state: TrainState, loss: BatchLoss, config: RunConfig, world: World, device: torch.device):
        self.state, self.loss, self.config, self.world = state, loss, config, world
        self.check = FiniteCheck(device)
        self._module = _data_parallel(state.module, world, device)
        # the callable is compiled, not the module: names in state_dict stay what they are; batches have two sizes, of
        # which each has its own graph: one for any size would be slower for all
        self._forward: Callable[[Tensor], Any] = (
            torch.compile(self._module, dynamic=False) if config.optim.compile else self._module
        )
        self._parameters = [p for p in state.module.parameters() if p.requires_grad]
        if world.world_size > 2 and device.type == "cpu":
            _settle_buckets(self._module, config.data.image_size)

    def __call__(self, batch: Batch, where: tuple[int, int], rate: float, clock: PartClock) -> None:
        """Run one step; the optimizer and the memory are left alone when loss or gradient is not finite.

        Args:
            batch: this rank's share.
            where: round and epoch.
            rate: the learning rate.
            clock: told where each part ends.
        """
        _seed_step(batch.images.device, (self.config.seed, *where, batch.step, self.world.rank))
        optimizer: Any = self.state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(batch, self.config.optim.accumulation_steps)
        results = []
        for number, part in enumerate(parts, start=1):
            share = sum(part.counts) / sum(batch.counts)
            with self._averaging(is_last=number == len(parts)):
                outputs = self._forward(part.images)
                clock.mark("forward")
                result = self.loss(outputs, part, where)
                clock.mark("objective")
                (result.loss * share).backward()  # type: ignore[no-untyped-call]
                clock.mark("backward")
            results.append((share, result))
        mean_loss = torch.stack([share * result.mean_loss for share, result in results]).sum()
        admitted = self.check.admit(batch, mean_loss, [p.grad for p in self._parameters if p.grad is not None])
        # what mixed precision uses to pass over a step, decided on the device
        optimizer.found_inf = (~admitted).float()
        optimizer.step()
        ids = torch.cat([result.sample_ids for _, result in results])
        features = torch.cat([result.features for _, result in results])
        self.state.memory.update(ids, features, self.config.method.update_momentum, admitted)
        clock.mark("optimizer")

    def _averaging(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over the ranks once, behind the last part of the batch."""
        if is_last or not isinstance(self._module, DistributedDataParallel):
            return contextlib.nullcontext()
        averaging: contextlib.AbstractContextManager[None] = self._module.no_sync()
        return averaging


def micro_batches(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut this rank's share of a batch into consecutive parts whose sizes differ by one at most.

    Args:
        batch: at least ``num_parts`` samples on every rank.
        num_parts: ``optim.accumulation_steps``.

    Returns:
        Parts with the counts of all ranks; the i-th parts of the ranks are one batch.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last)
    sizes = rank_counts(len(batch.sample_ids), num_parts)
    counts = zip(*(rank_counts(count, num_parts) for count in batch.counts), strict=True)
    ids, parts = torch.split(batch.sample_ids, sizes), torch.split(images, sizes)
    return [Batch(batch.step, *part) for part in zip(ids, parts, map(list, counts), strict=True)]


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum in one kernel; ``found_inf`` on the device makes it pass over a step."""
    return torch.optim.SGD(
        module.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=True,
    )


def _seed_step(device: torch.device, key: tuple[int, ...]) -> None:
    """What a network draws, as timm's do in dropout and stochastic depth, is a function of the step and the rank."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    # torch.manual_seed asks after every kind of device, which takes ten times as long
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _data_parallel(module: nn.Module, world: World, device: torch.device) -> nn.Module:
    if world.world_size == 1:
        return module
    parallel = DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # named, so that the first bucket is as large: a small network's gradient then travels at once
        bucket_cap_mb=_BUCKET_MB,
        gradient_as_bucket_view=True,
    )
    # running statistics are not used in training, and those of rank 0 are kept: no broadcast before every forward
    parallel.broadcast_buffers = False
    if device.type == "cpu":
        parallel.register_comm_hook(world.world_size, _average_on_cpu)
    return parallel


def _settle_buckets(module: nn.Module, image_size: int) -> None:
    """Let DDP choose its buckets now, by a pass that leaves nothing behind, and not behind the first step.

    Three numbers have another sum in another order, and gloo's order goes by the place in a bucket: a run that goes on
    from a checkpoint would have one step in other buckets than the run that was not stopped.
    """
    kept = [buffer.clone() for buffer in module.buffers()]
    outputs = module(torch.zeros(2, 3, image_size, image_size))
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.cat([part.flatten() for part in parts]).sum().backward()  # type: ignore[no-untyped-call]
    for buffer, values in zip(module.buffers(), kept, strict=True):
        buffer.copy_(values)


def _average_on_cpu(world_size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's own averaging, but for how the last bucket is waited for."""
    work = dist.all_reduce(bucket.buffer().div_(world_size), async_op=True)
    if bucket.is_last():  # all are under way; DDP waits for the others
        wait_for_work(work, bucket.buffer().device)
    averaged: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return averaged
