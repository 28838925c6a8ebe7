"""Images that are asked for, as the round's model sees them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from andscale.data.images import image_size
from andscale.errors import RunError
from andscale.service.problems import ProblemError
from andscale.service.snapshot import Snapshot


class Embedder:
    """Loads a round's model at its first use and keeps it; one image at a time.

    Args:
        max_pixels: of an image; more are refused before they are decoded.
    """

    def __init__(self, max_pixels: int):
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._loaded: tuple[Path, Any, Any] | None = None

    def embed(self, snapshot: Snapshot, data: bytes) -> np.ndarray:
        """(1, D) float32, unit length; ProblemError when it is no image, too large, or there is no model."""
        folder = snapshot.model_folder
        if folder is None:
            raise ProblemError(409, "images cannot be searched here: the round's model is not there")
        try:
            height, width = image_size(data)
            if height * width > self._max_pixels:
                raise ProblemError(413, f"the image has {height * width} pixels; the limit is {self._max_pixels}")
            with self._lock:
                return self._features(folder, data)
        except RunError as error:
            raise ProblemError(422, str(error)) from None

    def _features(self, folder: Path, data: bytes) -> np.ndarray:
        import torch

        from andscale.training.model_folder import load_model

        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = folder, *load_model(folder)
        _, network, transform = self._loaded
        with torch.inference_mode():
            features: np.ndarray = network(transform(data)[None]).numpy()
        return features
