"""The evaluation job of one round, top to bottom: features, weighted kNN, linear classifiers, one JSON file."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from andscale.config import RunConfig
from andscale.data.reader import SplitReader
from andscale.data.shards import PreparedDataset, open_dataset
from andscale.distributed import World, barrier, gather_records, process_group
from andscale.errors import RunError, UsageError
from andscale.evaluation.embed import embed_rows, gather_rows, share_of_rank
from andscale.evaluation.knn import weighted_knn
from andscale.evaluation.linear import LinearTask, check_shares, linear_accuracies, num_classes
from andscale.evaluation.purity import neighbour_purity
from andscale.evaluation.ranking import accuracies
from andscale.evaluation.record import FILE_NAME, KIND, describe, linear_settings, settings_record
from andscale.metrics import Progress
from andscale.store import artifacts
from andscale.store.feature_rows import check_features
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.features import read_features
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import RunRecord, load_launched_run
from andscale.training.backbones import EmbeddingNetwork, build_backbone, load_weights
from andscale.training.inputs import MODEL_KIND

REPORTED_K = (1, 5, 20, 200)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what it reads, and where it runs.

    Attributes:
        config: the run's.
        folder: the round.
        readers: ``train`` and ``val``; none where there is nothing to validate on.
        world: this rank.
        device: of this rank.
    """

    config: RunConfig
    folder: RoundLayout
    readers: dict[str, SplitReader]
    world: World
    device: torch.device


def evaluate_round(run: Path, round_number: int, world: World | None = None, launched: RunConfig | None = None) -> None:
    """Measure a round's model and publish ``evaluation/``; every rank embeds, classifies and trains on its share.

    Round 0 also measures the network with random weights, the baseline of every later figure. Without labels, or
    without a validation split, the accuracy is null and ``reason`` says why.

    Args:
        run: the run's folder.
        round_number: r.
        world: this rank; None: there is one.
        launched: the config of this launch; None: what the run was started with.

    Raises:
        UsageError: the round has no model, or no memory where it is asked for. RunError: something that is read is
            damaged, features or losses are not finite.
    """
    started, world = time.monotonic(), world or World()
    record, layout = load_launched_run(run, launched), RunLayout(run)
    folder = layout.round(round_number)
    with process_group(world) as device:
        if gather_records(artifacts.is_complete(folder.evaluation))[0]:
            if world.is_main:
                print(f"round {round_number} is evaluated already: {folder.evaluation}")
            return
        provenance = _check_inputs(record, folder)
        dataset = open_dataset(record.dataset_root)
        if dataset.fingerprint != record.dataset_fingerprint:
            raise RunError(f"{record.dataset_root} is not the data set that this run was started with")
        readers = _open_readers(dataset, record.config, device)
        job = Evaluation(record.config, folder, readers, world, device)
        result, figures = measure(job)
        if world.is_main:
            with artifacts.publish(folder.evaluation, kind=KIND, provenance=provenance, started=started) as draft:
                draft.path(FILE_NAME).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
                draft.add(FILE_NAME)
                draft.figures.update(figures)
            print(f"round {round_number}: {describe(result)}; wrote {folder.evaluation}", flush=True)
        barrier()


def measure(job: Evaluation) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of ``evaluation.json``, the same on all ranks and for any number of them; and rank 0's figures."""
    config, readers, settings = job.config, job.readers, job.config.evaluation
    result = settings_record(config, job.folder.number)
    figures: dict[str, Any] = {"world_size": job.world.world_size, "device": str(job.device)}
    reason = _why_not(readers)
    if reason is not None:
        return result | {"accuracy": None, "reason": reason}, figures
    check_shares(settings, readers["train"].num_samples, job.world)
    network = build_backbone(config.model, config.seed, config.data.image_size)
    network.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if job.folder.number == 0:
        train = embed_training_split(job, network)
        baseline, _ = measure_knn(job, network, train, (settings.num_neighbours,))
        result["random_weights_accuracy"] = baseline[str(settings.num_neighbours)]["top1"]
    load_weights(job.folder.model, network)
    train = _memory(job) if settings.features == "memory" else embed_training_split(job, network)
    knn, knn_figures = measure_knn(job, network, train, sorted({*REPORTED_K, settings.num_neighbours}))
    figures |= knn_figures
    if settings.purity_neighbours:
        rows = share_of_rank(len(train), settings.batch_size, job.world.rank, job.world.world_size)
        result["purity"] = neighbour_purity(train, readers["train"].catalogue.labels, rows, settings.purity_neighbours)
    del train
    result["accuracy"] = knn[str(settings.num_neighbours)]["top1"]
    result["precision"] = _precision(job.device)
    result |= {f"num_{split}": reader.num_samples for split, reader in readers.items()}
    result["num_classes"] = num_classes(readers)
    result["knn"] = knn
    if settings.linear_epochs:
        task = LinearTask(network, readers, config, job.world, job.folder.number)
        result["linear"], linear_figures = linear_accuracies(task)
        result["linear_settings"] = linear_settings(config)
        figures |= linear_figures
    return result, figures


def embed_training_split(job: Evaluation, network: EmbeddingNetwork) -> np.ndarray:
    """(N, D) float32, unit length, row i = sample i; on every rank."""
    mine, _ = _embed_share(job, network, "train")
    num_samples = job.readers["train"].num_samples
    return gather_rows(mine, num_samples, job.config.evaluation.batch_size, job.world)


def measure_knn(
    job: Evaluation, network: EmbeddingNetwork, train: np.ndarray, ks: Sequence[int]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Weighted kNN of the validation split, each rank asking for its share.

    Args:
        job: splits and settings.
        network: embeds the validation split.
        train: (N, D) float32, unit length: who votes.
        ks: every K.

    Returns:
        K as text -> ``top1``, ``top5`` and ``num_voters``, min(K, N); and figures.
    """
    readers, started = job.readers, time.monotonic()
    mine, rows = _embed_share(job, network, "val")
    embedded = time.monotonic()
    check_features("training split", np.arange(len(train)), train)
    check_features("validation split", np.arange(rows.start, rows.stop), mine)
    labels = {split: reader.catalogue.labels for split, reader in readers.items()}
    tops = weighted_knn(train, labels["train"], mine, ks, job.config.evaluation.temperature)
    by_name = {str(k): top for k, top in tops.items()}
    found = accuracies(by_name, labels["val"][rows.start : rows.stop], readers["val"].num_samples)
    figures = {
        "embed_images_per_s": round(readers["val"].num_samples / (embedded - started), 1),
        "knn_s": round(time.monotonic() - embedded, 3),
    }
    return {k: shares | {"num_voters": min(int(k), len(train))} for k, shares in found.items()}, figures


def _embed_share(job: Evaluation, network: EmbeddingNetwork, split: str) -> tuple[np.ndarray, range]:
    """Features of this rank's share of a split, and which samples these are."""
    reader, world = job.readers[split], job.world
    rows = share_of_rank(reader.num_samples, job.config.evaluation.batch_size, world.rank, world.world_size)
    progress = Progress(f"embed {split}", len(rows), "images", enabled=world.is_main)
    return embed_rows(network, reader, job.config, rows, progress), rows


def _check_inputs(record: RunRecord, folder: RoundLayout) -> artifacts.Provenance:
    """Verify what the job reads of the run and name it as parents."""
    wanted = {"model": (folder.model, MODEL_KIND)}
    if record.config.evaluation.features == "memory":
        wanted["memory"] = (folder.memory, MEMORY_KIND)
    digest, parents = record.config.digest(), {}
    for name, (path, kind) in wanted.items():
        if not artifacts.is_complete(path):
            raise UsageError(f"round {folder.number} has no {name}: run --round {folder.number} first")
        # the memory's hashes are checked where it is read
        manifest = artifacts.verify(path, kind) if name == "model" else artifacts.load_manifest(path, kind)
        artifacts.refuse_other_config(path, manifest, digest)
        parents[f"rounds/{folder.number:02d}/{name}"] = manifest.digest
    return artifacts.Provenance(digest, parents)


def _memory(job: Evaluation) -> np.ndarray:
    """The round's memory, whole on every rank; they share the checking of hashes."""
    memory, _ = read_features(job.folder.memory, share=(job.world.rank, job.world.world_size))
    num_samples = job.readers["train"].num_samples
    if len(memory) != num_samples:
        raise RunError(f"{job.folder.memory} has {len(memory)} samples, the training split {num_samples}")
    return memory


def _open_readers(dataset: PreparedDataset, config: RunConfig, device: torch.device) -> dict[str, SplitReader]:
    """Both splits, or none of them where there is nothing to validate on."""
    if "val" not in dataset.splits or not dataset.splits["val"].num_samples:
        return {}
    limits = {"train": config.data.max_train_samples, "val": config.data.max_val_samples}
    return {split: SplitReader(dataset, split, config.data, device, limit) for split, limit in limits.items()}


def _precision(device: torch.device) -> str:
    """What the network computes in: torch lets a GPU's convolutions round their inputs to TF32."""
    has_tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32, convolutions in TF32" if has_tf32 else "float32"


def _why_not(readers: dict[str, SplitReader]) -> str | None:
    """Why there can be no accuracy, if so."""
    if not readers:
        return "the data set has no validation split"
    if any((reader.catalogue.labels < 0).any() for reader in readers.values()):
        return "the data set has samples without a label"
    return None
