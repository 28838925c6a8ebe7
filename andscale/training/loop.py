"""The training job of one round, top to bottom."""

import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from andscale.config import OptimConfig, RunConfig
from andscale.data.reader import Batch, SplitReader, batch_bounds
from andscale.data.shards import open_dataset
from andscale.distributed import World, barrier, process_group
from andscale.errors import RunError, UsageError
from andscale.metrics import MetricsLog, Progress
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import RunRecord, load_run
from andscale.training.backbones import EmbeddingNetwork, build_backbone, load_weights, save_model
from andscale.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    publish_from_ranks,
    save_checkpoint,
    write_memory,
)
from andscale.training.inputs import MODEL_KIND, RoundInputs, check_inputs_exist, load_inputs
from andscale.training.memory_bank import MemoryBank, initial_rows, rows_of_rank
from andscale.training.objective import batch_objective


@dataclass
class TrainState:
    """All that training changes."""

    network: EmbeddingNetwork
    optimizer: torch.optim.Optimizer
    memory: MemoryBank
    epoch: int = 0


def train_round(run: Path, round_number: int, world: World) -> None:
    """Train one round and publish its memory and model; goes on from the newest checkpoint.

    Args:
        run: the run's folder.
        round_number: r; rounds >= 1 need the memory and model of round r - 1 and the neighbourhoods of round r.
        world: this rank.

    Raises:
        UsageError: an input is missing. RunError: an input is damaged, a loss is not finite.
    """
    started = time.monotonic()
    record, layout = load_run(run), RunLayout(run)
    folder = layout.round(round_number)
    if artifacts.is_complete(folder.memory) and artifacts.is_complete(folder.model):
        if world.is_main:
            print(f"round {round_number} is trained already: {folder.memory}")
        return
    check_inputs_exist(layout, round_number)
    with process_group(world) as device:
        reader = _open_reader(record, device)
        _check_shares(record.config, world, reader.num_samples)
        inputs = load_inputs(record, layout, round_number, reader.num_samples)
        state = _start(record.config, round_number, inputs, world, device, reader.num_samples)
        inputs = replace(inputs, memory=None)  # this rank's rows are in the state: let go of the others'
        _resume(state, load_checkpoint(folder.checkpoints, world, inputs.provenance))
        _drop_half(folder, state, record.config, world)
        if world.is_main:
            print(f"round {round_number}: {world.world_size} ranks, rank 0 on {device}", flush=True)
        log = MetricsLog(folder.metrics, enabled=world.is_main)
        log.drop_after(state.epoch)
        model = _data_parallel(state.network, world, device)
        for epoch in range(state.epoch, record.config.optim.num_epochs):
            figures = train_epoch(model, state, inputs, reader, record.config, (world, round_number, epoch))
            log.write(round=round_number, epoch=epoch, **figures)
            save_checkpoint(folder.checkpoints, epoch + 1, _state_of(state), state.memory, world, inputs.provenance)
        publish_round(folder, state, record.config, world, inputs.provenance, started)


def train_epoch(
    model: nn.Module,
    state: TrainState,
    inputs: RoundInputs,
    reader: SplitReader,
    config: RunConfig,
    where: tuple[World, int, int],
) -> dict[str, Any]:
    """One pass over the training split; returns the epoch's figures.

    Args:
        model: the network, wrapped for DDP where there are several ranks.
        state: network, optimizer and memory; changed.
        inputs: members of every sample.
        reader: the training split.
        config: the run's config.
        where: this rank, round and epoch.
    """
    world, round_number, epoch = where
    model.train()
    num_steps = len(batch_bounds(reader.num_samples, config.optim.global_batch_size))
    loss_sum, wait_s = 0.0, 0.0
    started = last = time.monotonic()
    batches = reader.epoch(world, config.augment, config.optim.global_batch_size, (config.seed, round_number, epoch))
    label = f"train round {round_number} epoch {epoch + 1}/{config.optim.num_epochs}"
    with Progress(label, reader.num_samples, "images", enabled=world.is_main) as progress:
        for batch in batches:
            wait_s += time.monotonic() - last
            rate = learning_rate(config.optim, epoch, batch.step, num_steps)
            loss = train_step(model, state, inputs.members, batch, config, rate)
            if not math.isfinite(loss):
                ids = batch.sample_ids.tolist()
                raise RunError(
                    f"round {round_number}, epoch {epoch}, step {batch.step}, rank {world.rank}: the loss or its "
                    f"gradient is {loss}; sample ids of this rank {ids[:8]}... Lower optim.learning_rate, or look at "
                    "these images"
                )
            loss_sum += loss * sum(batch.counts)
            progress.advance(sum(batch.counts), note=f"loss {loss_sum / (progress.done + sum(batch.counts)):.4f}")
            last = time.monotonic()
    seconds = time.monotonic() - started
    return {
        "loss": loss_sum / reader.num_samples,
        "learning_rate": rate,
        "num_steps": num_steps,
        "seconds": round(seconds, 3),
        "data_wait_s": round(wait_s, 3),
        "images_per_s": round(reader.num_samples / seconds, 1),
    }


def train_step(
    model: nn.Module, state: TrainState, members: Tensor, batch: Batch, config: RunConfig, rate: float
) -> float:
    """Forward, objective, backward, SGD step, memory update; returns the mean loss of the global batch.

    The optimizer and the memory are left alone when the loss or the gradient is not finite: that number is returned.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    images = batch.images.contiguous(memory_format=torch.channels_last)
    features = model(images)
    result = batch_objective(
        features,
        batch.sample_ids,
        members[batch.sample_ids.cpu()].to(features.device),
        state.memory,
        config.method.temperature,
        batch.counts,
    )
    loss = float(result.mean_loss)  # on a GPU the host waits here
    if math.isfinite(loss):
        state.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))  # the same on all ranks: DDP has averaged
        if not math.isfinite(norm):
            return norm
        state.optimizer.step()
        state.memory.update(result.sample_ids, result.features, config.method.memory_momentum)
    return loss


def learning_rate(config: OptimConfig, epoch: int, step: int, num_steps: int) -> float:
    """The rate of one step: linear warm-up, times the step or cosine schedule.

    Args:
        config: the schedule.
        epoch: within the round, from 0.
        step: within the epoch, from 0.
        num_steps: steps an epoch.
    """
    done = epoch * num_steps + step
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done / (config.num_epochs * num_steps)))
    elif epoch >= config.first_decay_epoch:
        rate *= config.decay_factor ** (1 + (epoch - config.first_decay_epoch) // config.decay_every_epochs)
    return rate * min(1.0, (done + 1) / config.warmup_steps) if config.warmup_steps else rate


def publish_round(
    folder: RoundLayout,
    state: TrainState,
    config: RunConfig,
    world: World,
    provenance: artifacts.Provenance,
    started: float,
) -> None:
    """Publish ``model/`` and ``memory/``; one that a killed job published before is kept."""

    def write_model(staging: Path) -> list[tuple[str, int | None]]:
        if not world.is_main:
            return []
        return [(n, None) for n in save_model(staging, state.network, config.model, config.data.image_size)]

    def write_rows(staging: Path) -> list[tuple[str, int | None]]:
        return write_memory(staging, state.memory, world, config.storage.feature_dtype)

    writers = {MODEL_KIND: (folder.model, write_model), MEMORY_KIND: (folder.memory, write_rows)}
    figures = {"num_epochs": config.optim.num_epochs, "world_size": world.world_size}
    for kind, (target, write) in writers.items():
        if not artifacts.is_complete(target):
            publish_from_ranks(
                target, write, world=world, kind=kind, provenance=provenance, started=started, figures=figures
            )
        if world.is_main:
            print(f"wrote {target}", flush=True)


def _open_reader(record: RunRecord, device: torch.device) -> SplitReader:
    dataset = open_dataset(record.dataset_root)
    if dataset.fingerprint != record.dataset_fingerprint:
        raise RunError(f"{record.dataset_root} is not the data set that this run was started with")
    return SplitReader(dataset, "train", record.config.data, device, record.config.data.max_train_samples)


def _check_shares(config: RunConfig, world: World, num_samples: int) -> None:
    """Batch norm needs two samples a rank in every batch."""
    bounds = batch_bounds(num_samples, config.optim.global_batch_size)
    smallest = min(stop - start for start, stop in bounds)
    if smallest < 2 * world.world_size:
        raise UsageError(
            f"batches of {smallest} samples are too small for {world.world_size} ranks: use fewer ranks, or a larger "
            "optim.global_batch_size"
        )


def _drop_half(folder: RoundLayout, state: TrainState, config: RunConfig, world: World) -> None:
    """Remove one of ``model/`` and ``memory/`` when it was published from a state that is lost.

    A job killed between the two publishes the other from its last checkpoint. When that checkpoint is gone, training
    goes on from an earlier one, and the two would come from different trainings.
    """
    if world.is_main and state.epoch < config.optim.num_epochs:
        for half in (folder.model, folder.memory):
            if artifacts.is_complete(half):  # anything else is not ours
                (half / artifacts.MANIFEST_NAME).unlink()
                shutil.rmtree(half, ignore_errors=True)
    barrier()


def _start(
    config: RunConfig,
    round_number: int,
    inputs: RoundInputs,
    world: World,
    device: torch.device,
    num_samples: int,
) -> TrainState:
    """The state at the start of a round: from the round before, or new in round 0."""
    network = build_backbone(config.model, config.seed, config.data.image_size)
    if inputs.model is not None:
        load_weights(inputs.model, network)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = rows_of_rank(num_samples, world.rank, world.world_size)
    if inputs.memory is None:
        values = initial_rows(rows, config.model.feature_dim, config.seed)
    else:
        values = inputs.memory[rows.start : rows.stop]
    if values.shape[1] != config.model.feature_dim:
        raise RunError(f"the memory of round {round_number - 1} has D = {values.shape[1]}")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.optim.learning_rate,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        nesterov=config.optim.momentum > 0,
    )
    memory = MemoryBank(world, num_samples, torch.from_numpy(values.copy()).to(device))
    return TrainState(network, optimizer, memory)


def _resume(state: TrainState, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        return
    state.network.load_state_dict(checkpoint.state["model"])
    state.optimizer.load_state_dict(checkpoint.state["optimizer"])
    rows = state.memory.rows
    state.memory.values.copy_(torch.from_numpy(checkpoint.memory[rows.start : rows.stop]))
    state.epoch = checkpoint.next_epoch


def _state_of(state: TrainState) -> dict[str, Any]:
    return {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}


def _data_parallel(network: EmbeddingNetwork, world: World, device: torch.device) -> nn.Module:
    if world.world_size == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
