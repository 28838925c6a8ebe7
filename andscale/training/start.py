"""The state that a round's training starts from: new, from the round before, or from a checkpoint."""

import torch

from andscale.config import RunConfig
from andscale.data.reader import SplitReader, batch_bounds
from andscale.data.shards import open_dataset
from andscale.distributed import World, barrier
from andscale.errors import RunError, UsageError
from andscale.store import artifacts
from andscale.store.run_layout import RoundLayout
from andscale.store.run_record import RunRecord
from andscale.training.backbones import build_backbone, load_weights
from andscale.training.checkpoint import Checkpoint
from andscale.training.evaluation_features import evaluation_features
from andscale.training.inputs import RoundInputs
from andscale.training.memory_bank import MemoryBank, initial_rows, rows_of_rank
from andscale.training.methods import make_module
from andscale.training.step import TrainState, make_optimizer
from andscale.training.sync_batchnorm import convert_sync_batchnorm


def open_reader(record: RunRecord, device: torch.device) -> SplitReader:
    """The run's training split; RunError when the data set is not the one that the run was started with."""
    dataset = open_dataset(record.dataset_root)
    if dataset.fingerprint != record.dataset_fingerprint:
        raise RunError(f"{record.dataset_root} is not the data set that this run was started with")
    return SplitReader(dataset, "train", record.config.data, device, record.config.data.max_train_samples)


def check_shares(config: RunConfig, world: World, num_samples: int) -> None:
    """Batch norm needs two samples a rank in every batch, and in every part of one."""
    parts = config.optim.accumulation_steps
    bounds = batch_bounds(num_samples, config.optim.global_batch_size)
    smallest = min(stop - start for start, stop in bounds)
    if smallest < 2 * world.world_size * parts:
        spread = f"{world.world_size} ranks" + (f" and optim.accumulation_steps = {parts}" if parts > 1 else "")
        raise UsageError(
            f"batches of {smallest} samples are too small for {spread}: use fewer ranks, or a larger "
            "optim.global_batch_size"
        )


def start(config: RunConfig, round_number: int, inputs: RoundInputs, reader: SplitReader, world: World) -> TrainState:
    """The state at the start of a round: from the round before, or new in round 0.

    Args:
        config: of the run.
        round_number: r.
        inputs: weights of the round before, and this rank's rows of its memory.
        reader: the training split, on the device to train on.
        world: this rank.
    """
    network = build_backbone(config.model, config.seed, config.data.image_size)
    if inputs.model is not None:
        load_weights(inputs.model, network)
    network.to(reader.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.model.sync_batchnorm and world.world_size > 1:
        convert_sync_batchnorm(network)
    rows = rows_of_rank(reader.num_samples, world.rank, world.world_size)
    if inputs.memory is None and config.method.starts_from_features:
        values = evaluation_features(network, reader, rows, config.evaluation.batch_size).clone()  # to be written to
    elif inputs.memory is None:
        values = torch.from_numpy(initial_rows(rows, config.model.feature_dim, config.seed))
    else:
        values = torch.from_numpy(inputs.memory)
    if values.shape[1] != config.model.feature_dim:
        raise RunError(f"the memory of round {round_number - 1} has D = {values.shape[1]}")
    module = make_module(network, config, reader).to(reader.device)
    memory = MemoryBank(world, reader.num_samples, values.to(reader.device))
    return TrainState(module, make_optimizer(module, config.optim), memory)


def resume(state: TrainState, checkpoint: Checkpoint | None) -> None:
    """Put a checkpoint's state into ``state``."""
    if checkpoint is None:
        return
    state.module.load_state_dict(checkpoint.state["model"])
    state.optimizer.load_state_dict(checkpoint.state["optimizer"])
    state.memory.values.copy_(torch.from_numpy(checkpoint.memory))
    state.position = checkpoint.position


def drop_half(folder: RoundLayout, epoch: int, num_epochs: int, world: World) -> None:
    """Remove one of ``model/`` and ``memory/`` when it was published from a state that is lost.

    A job killed between the two publishes the other from its last checkpoint. When that checkpoint is gone, training
    goes on from an earlier one, and the two would come from different trainings.

    Args:
        folder: of the round.
        epoch: the one that training goes on with.
        num_epochs: of the round.
        world: this rank.
    """
    if world.is_main and epoch < num_epochs:
        for half in (folder.model, folder.memory):
            if artifacts.is_complete(half):  # anything else is not ours
                artifacts.discard(half)
    barrier()
