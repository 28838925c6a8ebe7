"""Where a network looks, round by round: Grad-CAM of chosen images (the paper's figure 7)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from andscale.audit.audit_text import shown
from andscale.audit.pictures import check_picture, write_picture
from andscale.data.samples import Shards
from andscale.data.shards import Catalogue, load_catalogue, open_dataset
from andscale.errors import RunError, UsageError
from andscale.spelling import spelt
from andscale.store import artifacts
from andscale.store.features import read_features
from andscale.store.run_layout import RunLayout
from andscale.store.run_record import load_run
from andscale.training.model_folder import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_IMAGES = 50
_CELL_INCHES = 1.5
_NAME_LENGTH = 20


class OwnMemory:
    """What a map explains: x . m_i, the similarity of the network's output to the sample's own memory feature.

    There are no classes whose score could be explained. The similarity to its own memory is what training raises for
    every sample, whether anchor or instance, so it is the score that all images of all rounds have.
    """

    def __init__(self, memory: Tensor):
        self.memory = memory

    def __call__(self, output: Tensor) -> Tensor:
        """Of (D,) float32 output."""
        return (output * self.memory).sum()


def attention_maps(network: torch.nn.Module, images: Tensor, memory: Tensor) -> np.ndarray:
    """Grad-CAM at the end of the last convolutional stage.

        L_i = relu(sum_c w_ic A_ic),   w_ic = mean over places of d(x_i . m_i) / d A_ic

    Args:
        network: in evaluation mode.
        images: (B, 3, S, S) float32, normalised.
        memory: (B, D) float32, the samples' own features.

    Returns:
        (B, S, S) float32, each stretched to [0, 1].

    Raises:
        UsageError: the network's last stage gives no maps, as that of a transformer, or maps of one place.
    """
    from pytorch_grad_cam import GradCAM

    trunk: Any = network.trunk
    with torch.no_grad():
        last = trunk(images[:1])
    if last.ndim != 4:
        raise UsageError("this network ends in no maps of places: Grad-CAM needs a convolutional one")
    if last.shape[2] * last.shape[3] == 1:
        size = "x".join(map(str, images.shape[2:]))
        raise UsageError(f"at {size} pixels this network's last maps have one place: Grad-CAM needs larger images")
    with torch.enable_grad(), GradCAM(model=network, target_layers=[trunk]) as cam:
        found: np.ndarray = cam(input_tensor=images, targets=[OwnMemory(row) for row in memory])
    return found.astype(np.float32)


def write_attention(run: Path, sample_ids: list[int], out: Path) -> list[int]:
    """Write one picture: rows are training images, columns the rounds with a model.

    Args:
        run: whose models and memories.
        sample_ids: which training images.
        out: PNG or SVG.

    Returns:
        The rounds that are shown.

    Raises:
        UsageError: a library is missing, no such sample, no round yet, or the images lie on a server.
        RunError: a model, a memory or an image is damaged.
    """
    check_picture(out, ("pytorch_grad_cam", "matplotlib"))
    layout = RunLayout(run)
    rounds = [n for n in layout.round_numbers() if _is_trained(layout, n)]
    if not rounds:
        raise UsageError(f"{run} has no trained round yet: run {spelt('launch')} first")
    write_comparison({f"round {number}": (run, number) for number in rounds}, sample_ids, out)
    return rounds


def write_comparison(models: Mapping[str, tuple[Path, int]], sample_ids: list[int], out: Path) -> None:
    """Write one picture: rows are training images, columns trained rounds of runs over the same data set.

    Args:
        models: heading -> run and round.
        sample_ids: which training images.
        out: PNG or SVG.

    Raises:
        As ``write_attention``.
    """
    check_picture(out, ("pytorch_grad_cam", "matplotlib"))
    (first, _), *_ = models.values()
    record = load_run(first)
    dataset = open_dataset(record.dataset_root)
    if dataset.url:
        raise UsageError(f"the images lie at {dataset.url}: attention needs a data set on this machine")
    for run, _ in models.values():
        if dataset.fingerprint != load_run(run).dataset_fingerprint:
            raise RunError(
                f"{record.dataset_root} is not the data set that {run} was trained on: its fingerprint is another"
            )
    catalogue = load_catalogue(dataset, "train", record.config.data.max_train_samples)
    _check_ids(sample_ids, len(catalogue.labels))
    shards, ids = Shards(catalogue), np.array(sample_ids)
    columns = []
    for run, number in models.values():
        network, transform = load_model(run, number)
        images = torch.stack([_image(shards, transform, i) for i in sample_ids])
        memory = torch.from_numpy(read_features(RunLayout(run).round(number).memory)[0][ids])
        columns.append(attention_maps(network, images, memory))
    std, mean = (torch.tensor(values)[:, None, None] for values in (transform.std, transform.mean))
    pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    write_picture(_grid(pixels, columns, list(models), _names(catalogue, dataset.classes, sample_ids)), out)


def _is_trained(layout: RunLayout, number: int) -> bool:
    folder = layout.round(number)
    return artifacts.is_complete(folder.model) and artifacts.is_complete(folder.memory)


def _check_ids(sample_ids: list[int], num_samples: int) -> None:
    if not 1 <= len(sample_ids) <= _MAX_IMAGES:
        raise UsageError(f"{len(sample_ids)} images asked for: name 1 to {_MAX_IMAGES}")
    wrong = [i for i in sample_ids if not 0 <= i < num_samples]
    if wrong:
        raise UsageError(f"no training image {wrong[0]}: their ids are 0 to {num_samples - 1}")


def _image(shards: Shards, transform: Any, sample_id: int) -> Tensor:
    try:
        image: Tensor = transform(shards.take(sample_id))
        return image
    except RunError as error:
        raise RunError(f"sample {sample_id}: {error}") from None


def _names(catalogue: Catalogue, classes: tuple[str, ...], sample_ids: list[int]) -> list[str]:
    labels = [int(catalogue.labels[i]) for i in sample_ids]
    known = [shown(classes[label], _NAME_LENGTH) if 0 <= label < len(classes) else "" for label in labels]
    return [f"#{i}\n{name}".strip() for i, name in zip(sample_ids, known, strict=True)]


def _grid(pixels: np.ndarray, columns: list[np.ndarray], headings: list[str], names: list[str]) -> "Figure":
    """Images in the first column, then the maps over them; (B, S, S, 3) and for each heading (B, S, S)."""
    from matplotlib.figure import Figure

    height, width = len(pixels), 1 + len(columns)
    figure = Figure((_CELL_INCHES * (width + 0.8), _CELL_INCHES * height + 0.4), layout="compressed")
    axes = figure.subplots(height, width, squeeze=False)
    for row in range(height):
        for column in range(width):
            place = axes[row, column]
            place.set_xticks([])
            place.set_yticks([])
            place.imshow(pixels[row])
            if column:
                place.imshow(columns[column - 1][row], cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            if row == 0:
                place.set_title("image" if column == 0 else headings[column - 1], fontsize=9)
        axes[row, 0].set_ylabel(names[row], rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    return figure
