"""The evaluation job of one round: features of both splits recomputed, weighted kNN, one JSON file."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from andscale.config import RunConfig
from andscale.data.reader import SplitReader
from andscale.data.shards import PreparedDataset, open_dataset
from andscale.distributed import World, process_group
from andscale.errors import RunError, UsageError
from andscale.evaluation.knn import weighted_knn_predict
from andscale.evaluation.record import FILE_NAME, KIND
from andscale.metrics import Progress
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run
from andscale.training.backbones import EmbeddingNetwork, build_backbone, load_weights
from andscale.training.inputs import MODEL_KIND


def evaluate_round(run: Path, round_number: int) -> None:
    """Measure a round's model by weighted kNN and publish ``evaluation/``.

    Round 0 also measures the network with random weights, the baseline of every later figure. Without labels, or
    without a validation split, the accuracy is null and ``reason`` says why.

    Raises:
        UsageError: the round has no model. RunError: something that is read is damaged.
    """
    started = time.monotonic()
    record, layout = load_run(run), RunLayout(run)
    config, folder = record.config, layout.round(round_number)
    if artifacts.is_complete(folder.evaluation):
        print(f"round {round_number} is evaluated already: {folder.evaluation}")
        return
    if not artifacts.is_complete(folder.model):
        raise UsageError(f"round {round_number} has no model: run --round {round_number} first")
    manifest = artifacts.verify(folder.model, MODEL_KIND)
    artifacts.refuse_other_config(folder.model, manifest, config.digest())
    dataset = open_dataset(record.dataset_root)
    if dataset.fingerprint != record.dataset_fingerprint:
        raise RunError(f"{record.dataset_root} is not the data set that this run was started with")
    with process_group(World()) as device:
        result: dict[str, Any] = {"round": round_number, **_settings(config)}
        readers = _open_readers(dataset, config, device)
        reason = _why_not(readers)
        if reason is not None:
            result |= {"accuracy": None, "reason": reason}
        else:
            network = build_backbone(config.model, config.seed, config.data.image_size)
            if round_number == 0:
                result["random_weights_accuracy"] = _accuracy(network, readers, config, device)
            load_weights(folder.model, network)
            result["accuracy"] = _accuracy(network, readers, config, device)
            result |= {f"num_{split}": reader.num_samples for split, reader in readers.items()}
    provenance = artifacts.Provenance(config.digest(), {f"rounds/{round_number:02d}/model": manifest.digest})
    with artifacts.publish(folder.evaluation, kind=KIND, provenance=provenance, started=started) as draft:
        draft.path(FILE_NAME).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        draft.add(FILE_NAME)
    print(f"round {round_number}: {_describe(result)}; wrote {folder.evaluation}", flush=True)


def embed_split(network: EmbeddingNetwork, reader: SplitReader, batch_size: int, label: str) -> np.ndarray:
    """Features of a split with the evaluation transform: (N, D) float32, unit length, row i = sample i."""
    network.eval()
    parts = []
    with torch.inference_mode(), Progress(label, reader.num_samples, "images") as progress:
        for images in reader.in_order(batch_size):
            parts.append(network(images.contiguous(memory_format=torch.channels_last)).cpu().numpy())
            progress.advance(len(images))
    return np.concatenate(parts)


def _open_readers(dataset: PreparedDataset, config: RunConfig, device: torch.device) -> dict[str, SplitReader]:
    """Both splits, or none of them where there is nothing to validate on."""
    if "val" not in dataset.splits or not dataset.splits["val"].num_samples:
        return {}
    limits = {"train": config.data.max_train_samples, "val": config.data.max_val_samples}
    return {split: SplitReader(dataset, split, config.data, device, limit) for split, limit in limits.items()}


def _why_not(readers: dict[str, SplitReader]) -> str | None:
    """Why there can be no accuracy, if so."""
    if not readers:
        return "the data set has no validation split"
    if any((reader.catalogue.labels < 0).any() for reader in readers.values()):
        return "the data set has samples without a label"
    return None


def _accuracy(
    network: EmbeddingNetwork, readers: dict[str, SplitReader], config: RunConfig, device: torch.device
) -> float:
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = {
        split: embed_split(network, reader, config.evaluation.batch_size, f"embed {split}")
        for split, reader in readers.items()
    }
    predicted = weighted_knn_predict(
        features["train"],
        readers["train"].catalogue.labels,
        features["val"],
        config.evaluation.num_neighbours,
        config.evaluation.temperature,
    )
    return float((predicted == readers["val"].catalogue.labels).mean())


def _settings(config: RunConfig) -> dict[str, Any]:
    """Every setting that moves the number."""
    return {
        "method": "weighted kNN",
        "num_neighbours": config.evaluation.num_neighbours,
        "temperature": config.evaluation.temperature,
        "features": "embedding, recomputed for both splits with the evaluation transform",
        "split": "val",
        "image_size": config.data.image_size,
        "crop": "central square; 224/256 of the short side where the image is larger than the input",
    }


def _describe(result: dict[str, Any]) -> str:
    if result["accuracy"] is None:
        return f"no accuracy ({result['reason']})"
    baseline = result.get("random_weights_accuracy")
    note = f" (random weights: {baseline:.4f})" if baseline is not None else ""
    return f"weighted-kNN accuracy {result['accuracy']:.4f}{note}"
