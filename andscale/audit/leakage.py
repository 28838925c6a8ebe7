"""Validation images that the training images hold already, or nearly so."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from andscale.data.reader import SplitReader
from andscale.data.shards import PreparedDataset, load_catalogue, open_dataset
from andscale.errors import RunError, UsageError
from andscale.evaluation.embed import embed_rows
from andscale.evaluation.knn import nearest
from andscale.metrics import Progress
from andscale.store.run_record import load_run
from andscale.training.model_folder import find_model, open_model


def find_leaks(run: Path, round_number: int | None, threshold: float, known: Path | None = None) -> dict[str, Any]:
    """Validation images whose nearest training image is at least so similar, most similar first.

    Both splits are embedded anew with one model and the evaluation transform; the memory's rows are averages of
    augmented views and are not comparable with a new image's feature.

    Args:
        run: a run.
        round_number: whose model; None: the newest that there is.
        threshold: similarity from which an image counts as a near-duplicate.
        known: where the data set lies now, if it was moved.

    Returns:
        ``model``, ``threshold``, ``num_val``, ``num_leaked``, ``leaks``: ``val_id``, ``val_source``, ``train_id``,
        ``train_source``, ``similarity``, ``same_class`` (None without labels).

    Raises:
        UsageError: no model, or no validation split.
    """
    record = load_run(run)
    dataset = open_dataset(known or record.dataset_root)
    if dataset.fingerprint != record.dataset_fingerprint:
        raise RunError(f"{known or record.dataset_root} is not the data set that {run} was trained on")
    if "val" not in dataset.splits or not dataset.splits["val"].num_samples:
        raise UsageError(f"{dataset.root} has no validation split, so nothing of it can be among the training images")
    folder = find_model(run, round_number)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = open_model(folder)[0].to(device)
    config = record.config
    readers = {split: _reader(dataset, split, config, device) for split in ("train", "val")}
    features = {}
    for split, reader in readers.items():
        progress = Progress(f"embed {split}", reader.num_samples, "images")
        features[split] = embed_rows(network, reader, config, range(reader.num_samples), progress)
    similarities, ids = nearest(features["train"], features["val"], 1)
    found = np.flatnonzero(similarities[:, 0] >= threshold)
    found = found[np.argsort(-similarities[found, 0], kind="stable")]
    # readers know no sources
    train, val = (load_catalogue(dataset, split, reader.num_samples) for split, reader in readers.items())

    def leak(val_id: int) -> dict[str, Any]:
        train_id = int(ids[val_id, 0])
        labels = int(val.labels[val_id]), int(train.labels[train_id])
        return {
            "val_id": val_id,
            "val_source": val.sources[val_id],
            "train_id": train_id,
            "train_source": train.sources[train_id],
            "similarity": float(similarities[val_id, 0]),
            "same_class": labels[0] == labels[1] if min(labels) >= 0 else None,
        }

    return {
        "model": str(folder),
        "threshold": threshold,
        "num_val": readers["val"].num_samples,
        "num_leaked": len(found),
        "leaks": [leak(val_id) for val_id in found.tolist()],
    }


def _reader(dataset: PreparedDataset, split: str, config: Any, device: torch.device) -> SplitReader:
    limit = config.data.max_train_samples if split == "train" else config.data.max_val_samples
    return SplitReader(dataset, split, config.data, device, limit)
