"""The training job of one round, top to bottom."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from andscale.config import OptimConfig, RunConfig
from andscale.data.reader import SplitReader, batch_bounds
from andscale.distributed import World, process_group
from andscale.errors import RunError
from andscale.event_log import EventLog
from andscale.metrics import MetricsLog, Progress
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import load_launched_run
from andscale.training.backbones import save_model
from andscale.training.checkpoint import Position, load_checkpoint, publish_from_ranks, save_checkpoint, write_memory
from andscale.training.deepcluster import Clustering
from andscale.training.finite_check import CheckedStep
from andscale.training.inputs import MODEL_KIND, check_inputs_exist, load_inputs
from andscale.training.methods import make_loss
from andscale.training.part_clock import PartClock, describe_fractions
from andscale.training.start import check_shares, drop_half, open_reader, resume, start
from andscale.training.step import TrainingStep, TrainState
from andscale.training.stopping import StepBoundary, StopSignals


def train_round(
    run: Path,
    round_number: int,
    world: World,
    signals: StopSignals | None = None,
    launched: RunConfig | None = None,
    clustering: Clustering | None = None,
) -> None:
    """Train one round and publish its memory and model; goes on from the newest checkpoint.

    Args:
        run: the run's folder.
        round_number: r; rounds >= 1 need what round r - 1 left, and the neighbourhoods of round r if there are any.
        world: this rank.
        signals: of a caller who listens already.
        launched: the config of this launch; None: what the run was started with.
        clustering: what ``deepcluster`` clusters features with.

    Raises:
        UsageError: an input is missing. RunError: an input is damaged, a loss is not finite. StoppedError: a signal
            came; the newest checkpoint is of that moment.
    """
    started = time.monotonic()
    record, layout = load_launched_run(run, launched), RunLayout(run)
    config, folder = record.config, layout.round(round_number)
    if artifacts.is_complete(folder.memory) and artifacts.is_complete(folder.model):
        if world.is_main:
            print(f"round {round_number} is trained already: {folder.memory}")
        return
    check_inputs_exist(layout, round_number, config.method)
    num_epochs = config.optim.num_epochs if config.method.trains(round_number) else 0
    with (signals or StopSignals()).installed() as heard, process_group(world) as device:
        reader = open_reader(record, device)
        check_shares(config, world, reader.num_samples)
        inputs = load_inputs(record, layout, round_number, reader.num_samples, world)
        state = start(config, round_number, inputs, reader, world)
        inputs = replace(inputs, memory=None)  # on a GPU the state has a copy
        resume(state, load_checkpoint(folder.checkpoints, world, inputs.provenance))
        drop_half(folder, state.position.epoch, num_epochs, world)
        if world.is_main:
            print(f"round {round_number}: {world.world_size} ranks, rank 0 on {device}", flush=True)
        events = EventLog(layout.events(folder.root.name), enabled=world.is_main)
        log = MetricsLog(folder.metrics, events, enabled=world.is_main)
        log.drop_after(state.position.epoch)
        boundary = StepBoundary(world, heard, config.resources.checkpoint_min)

        def save() -> None:
            weights = {"model": state.module.state_dict(), "optimizer": state.optimizer.state_dict()}
            save_checkpoint(folder.checkpoints, state.position, weights, state.memory, world, inputs.provenance)
            boundary.saved(f"round {round_number}, epoch {state.position.epoch}, step {state.position.step}")

        if state.position.epoch < num_epochs:
            loss = make_loss(config, inputs.members, state, reader, (world, clustering))
            step = TrainingStep(state, loss, config, world, device)
        for epoch in range(state.position.epoch, num_epochs):
            figures = train_epoch(step, reader, config, (world, round_number), (boundary, save))
            log.write(round=round_number, epoch=epoch, **figures)
            state.position = Position(epoch + 1)
            save()
        publish_round(folder, state, config, world, inputs.provenance, started)


def train_epoch(
    step: TrainingStep,
    reader: SplitReader,
    config: RunConfig,
    where: tuple[World, int],
    at_boundary: tuple[StepBoundary, Callable[[], None]],
) -> dict[str, Any]:
    """The training split once, from the state's position to the end of its epoch; returns the epoch's figures.

    Args:
        step: changes its state.
        reader: the training split.
        config: the run's config.
        where: this rank, and the round.
        at_boundary: decides between two steps, and what is called when it decides to save.
    """
    (world, round_number), (boundary, save), state = where, at_boundary, step.state
    size, epoch, begin = config.optim.global_batch_size, state.position.epoch, state.position
    if not begin.step:
        step.loss.begin_epoch((round_number, epoch))
    state.module.train()
    bounds = batch_bounds(reader.num_samples, size)
    num_steps, clock = len(bounds), PartClock(reader.device, len(bounds))
    loss_sum, heard_of = begin.loss_sum, begin.num_samples
    started = time.monotonic() - begin.seconds
    label = f"train round {round_number} epoch {epoch + 1}/{config.optim.num_epochs}"
    done_before = bounds[begin.step][0]
    with Progress(label, reader.num_samples, "images", enabled=world.is_main, done=done_before) as progress:
        clock.start(begin.step)
        for batch in reader.epoch(world, config.augment, size, (config.seed, round_number, epoch), begin.step):
            clock.mark("data_wait")
            boundary.start()
            rate = learning_rate(config.optim, epoch, batch.step, num_steps)
            step(batch, (round_number, epoch), rate, clock)
            clock.start(batch.step + 1)
            is_last, saves = batch.step == num_steps - 1, boundary.end()
            heard = step.check.finished(lag=0 if is_last or saves else None)
            for done in _finite_ones(heard, (world, round_number, epoch)):
                loss_sum, heard_of = loss_sum + done.loss * done.batch_size, heard_of + done.batch_size
            progress.advance(sum(batch.counts), note=f"loss {loss_sum / heard_of:.4f}" if heard_of else "")
            if saves and not is_last:
                state.position = Position(epoch, batch.step + 1, loss_sum, heard_of, time.monotonic() - started)
                save()
        seconds, fractions = time.monotonic() - started, clock.fractions()
        progress.advance(0, note=f"loss {loss_sum / heard_of:.4f}, {describe_fractions(fractions)}")
    return {
        "loss": loss_sum / reader.num_samples,
        "learning_rate": rate,
        "num_steps": num_steps,
        "seconds": round(seconds, 3),
        "images_per_s": round(reader.num_samples / seconds, 1),
        **fractions,
    }


def _finite_ones(steps: Iterable[CheckedStep], where: tuple[World, int, int]) -> Iterator[CheckedStep]:
    """The steps as they are; RunError at the first that was not finite, which changed nothing, as none after it did."""
    world, round_number, epoch = where
    for done in steps:
        if not done.is_finite:
            raise RunError(
                f"round {round_number}, epoch {epoch}, step {done.step}, rank {world.rank}: the loss or its gradient "
                f"is {done.loss}; sample ids of this rank {done.sample_ids.tolist()[:8]}... Lower optim.learning_rate, "
                "or look at these images"
            )
        yield done


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
        return [(n, None) for n in save_model(staging, state.module.network, config.model, config.data.image_size)]

    def write_rows(staging: Path) -> list[tuple[str, int | None]]:
        return write_memory(staging, state.memory, world, config.storage.feature_dtype)

    writers = {MODEL_KIND: (folder.model, write_model), MEMORY_KIND: (folder.memory, write_rows)}
    figures = {"num_epochs": state.position.epoch, "world_size": world.world_size}
    for kind, (target, write) in writers.items():
        if not artifacts.is_complete(target):
            publish_from_ranks(
                target, write, world=world, kind=kind, provenance=provenance, started=started, figures=figures
            )
        if world.is_main:
            print(f"wrote {target}", flush=True)
