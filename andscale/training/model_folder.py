"""``model/`` read again, by this package or elsewhere: the network and the transform that its images go through."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from andscale.data.augment import evaluation_boxes
from andscale.data.decoding import colours_of, reduction_for
from andscale.data.images import decode_rgb, image_size
from andscale.errors import UsageError
from andscale.store import artifacts
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.training.backbones import WEIGHTS_NAME, EmbeddingNetwork, build_backbone, load_weights
from andscale.training.inputs import MODEL_KIND
from andscale.training.model_record import CONFIG_NAME, ModelRecord, read_record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class EvaluationTransform:
    """An image as the evaluation job feeds it: the central square, resized and normalised.

    Attributes:
        image_size: S, pixels.
        mean: of the channels, in units of full intensity.
        std: likewise.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: "Image | str | Path | bytes | np.ndarray") -> Tensor:
        """Transform one image.

        Args:
            image: a file's path, its bytes, a Pillow image, or (H, W, 3) or (H, W) uint8.

        Returns:
            (3, S, S) float32.

        Raises:
            UsageError: none of these. RunError: the file is damaged, or of another format.
        """
        from andscale.data.pixel_kernels import transform

        pixels, box = self._decode(image)
        std = np.array(self.std, np.float32)
        channels = np.stack([1 / std, -np.array(self.mean, np.float32) / std])
        out = np.empty((self.image_size, self.image_size, 3), np.float32)
        jitter, order, is_gray = colours_of(None, 1)
        # the arrays of others may be read-only or turned, for which the loops would be compiled again
        pixels = np.require(pixels, requirements=["C", "W"])
        transform(pixels, box, False, (jitter[0], order[0], is_gray[0]), channels, out)
        return torch.from_numpy(out).permute(2, 0, 1)

    def _decode(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8, and the box to take: (4,) float64, top, left, height, width in these pixels."""
        if isinstance(image, str | Path):
            image = _read(Path(image))
        if not isinstance(image, bytes):
            pixels = _to_pixels(image)
            return pixels, self._box(*pixels.shape[:2])
        # as the job does it: a JPEG is decoded at a fraction of its size where the box has pixels enough
        height, width = image_size(image)
        box = self._box(height, width)
        reduction = reduction_for(box, self.image_size)
        pixels = decode_rgb(image, reduction)
        return pixels, box if pixels.shape[:2] == (height, width) else box / reduction

    def _box(self, height: int, width: int) -> np.ndarray:
        (box,) = evaluation_boxes(np.array([height]), np.array([width]), self.image_size)
        as_float: np.ndarray = box.astype(np.float64)
        return as_float


def load_model(
    run_or_folder: str | Path, round_number: int | None = None
) -> tuple[EmbeddingNetwork, EvaluationTransform]:
    """A trained network, in evaluation mode on the CPU, and the transform for its images.

    Example:
        network, transform = andscale.load_model("runs/fashion_mnist_demo")
        features = network(transform("shoe.png")[None])  # (1, D), unit length

    Args:
        run_or_folder: a run, a round's folder, or a folder with the two files of a ``model/``.
        round_number: of a run; None is the newest that has a model.

    Raises:
        UsageError: no model there. RunError: it is damaged.
    """
    network, record = open_model(Path(run_or_folder), round_number)
    return network, EvaluationTransform(record.image_size, record.mean, record.std)


def open_model(path: Path, round_number: int | None = None) -> tuple[EmbeddingNetwork, ModelRecord]:
    """The network that ``load_model`` gives, and its record."""
    folder = find_model(path, round_number)
    record = read_record(folder)
    network = build_backbone(record.model, 0, record.image_size)
    load_weights(folder, network)
    return network.eval(), record


def find_model(path: Path, round_number: int | None = None) -> Path:
    """The folder that ``load_model`` means, its files verified where a manifest lists them."""
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: name a run, a round's folder, or a model/")
    layout = RunLayout(path)
    if layout.record.is_file():
        numbers = layout.round_numbers() if round_number is None else [round_number]
        done = [n for n in numbers if artifacts.is_complete(layout.round(n).model)]
        if not done:
            what = "no round has a model yet" if round_number is None else f"round {round_number} has no model"
            raise UsageError(f"{path}: {what}")
        folder = layout.round(done[-1]).model
        artifacts.verify(folder, MODEL_KIND)
        return folder
    if round_number is not None:
        raise UsageError(f"{path} is not a run (no run.json in it), so it has no round {round_number} to choose")
    of_round = RoundLayout(path, 0).model
    folder = of_round if of_round.is_dir() else path
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(f"{path} is no run, round or model: {folder / name} is missing")
    if artifacts.is_complete(folder):
        artifacts.verify(folder, MODEL_KIND)
    return folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _to_pixels(image: Any) -> np.ndarray:
    """(H, W, 3) uint8."""
    from PIL.Image import Image

    if isinstance(image, Image):
        if image.mode.startswith(("I", "F")):
            raise UsageError(f"an image of mode {image.mode} has no common range of values: convert it to RGB first")
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        if image.ndim == 2:
            return np.stack([image] * 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UsageError(f"an image is a path, bytes, a Pillow image, or (H, W, 3) or (H, W) uint8, not {what}")
