"""``evaluation.json`` on disk: what it says of its settings, and its reader; importing this module does not import
torch.
"""

import json
from pathlib import Path
from typing import Any

from andscale.config import RunConfig
from andscale.errors import RunError
from andscale.store import artifacts

KIND = "evaluation"
FILE_NAME = "evaluation.json"

_FEATURES = {
    "recomputed": "embedding, recomputed for both splits with the evaluation transform",
    "memory": "embedding: the round's memory for the training split, recomputed with the evaluation transform for val",
}


def settings_record(config: RunConfig, round_number: int) -> dict[str, Any]:
    """Every setting that moves the accuracies, but for the data set and the weights, which the manifests name."""
    return {
        "round": round_number,
        "method": "weighted kNN",
        "num_neighbours": config.evaluation.num_neighbours,
        "temperature": config.evaluation.temperature,
        "layer": "embedding",
        "features": _FEATURES[config.evaluation.features],
        "training_features": config.evaluation.features,
        "split": "val",
        "image_size": config.data.image_size,
        "crop": "central square; 224/256 of the short side where the image is larger than the input",
        "training_method": config.method.model_dump(mode="json"),
    }


def linear_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of the linear classifiers; imported by those who train them."""
    from andscale.evaluation.linear import MAX_FEATURES, MOMENTUM, STATISTICS_SAMPLES

    settings, augment = config.evaluation, config.augment
    return {
        "epochs": settings.linear_epochs,
        "batch_size": settings.linear_batch_size,
        "learning_rate": settings.linear_learning_rate,
        "schedule": "cosine to zero, step by step",
        "momentum": MOMENTUM,
        "weight_decay": settings.linear_weight_decay,
        "pooling": f"adaptive average over the finest square grid of at most {MAX_FEATURES:,} numbers a layer",
        "standardisation": f"each channel by mean and variance over about {STATISTICS_SAMPLES:,} training samples",
        "augmentation": {
            "min_crop_scale": augment.min_crop_scale,
            "flip_probability": augment.flip_probability,
            "colours": "unchanged",
        },
    }


def read_evaluation(folder: Path) -> tuple[dict[str, Any], artifacts.Manifest]:
    """Verify an evaluation artefact and read it.

    Returns:
        The record, with empty ``knn`` and ``linear`` where it has none, as records before they came had; the manifest.

    Raises:
        RunError: damaged, or an accuracy that is none.
    """
    manifest = artifacts.verify(folder, KIND)
    path = folder / FILE_NAME
    try:
        result: dict[str, Any] = {"knn": {}, "linear": {}} | json.loads(path.read_text(encoding="utf-8"))
        found = [result["accuracy"]] if result["accuracy"] is not None else [0.0]
        found += [result["random_weights_accuracy"]] if "random_weights_accuracy" in result else []
        for part in (result["knn"], result["linear"]):
            found += [record[key] for record in part.values() for key in ("top1", "top5")]
        if not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in found):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise RunError(f"{path} is not an evaluation of ours, or it is damaged") from None
    return result, manifest


def describe(result: dict[str, Any]) -> str:
    """One line of what was measured."""
    if result["accuracy"] is None:
        return f"no accuracy ({result['reason']})"
    baseline = result.get("random_weights_accuracy")
    note = f" (random weights: {baseline:.4f})" if baseline is not None else ""
    linear = ", ".join(f"{name} {record['top1']:.4f}" for name, record in result.get("linear", {}).items())
    return f"weighted-kNN accuracy {result['accuracy']:.4f}{note}" + (f"; linear: {linear}" if linear else "")
