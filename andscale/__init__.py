"""Anchor Neighbourhood Discovery (AND, ICML 2019) at ImageNet scale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from andscale.training.embedding import EmbeddingNetwork
    from andscale.training.model_folder import EvaluationTransform

__version__ = "1.0.0rc1"
__all__ = ["load_model"]


def load_model(
    run_or_folder: "str | Path", round_number: int | None = None
) -> "tuple[EmbeddingNetwork, EvaluationTransform]":
    """A trained network, in evaluation mode on the CPU, and the transform for its images.

    Example:
        network, transform = andscale.load_model("runs/fashion_mnist_demo")
        feature = network(transform("shoe.png")[None])  # (1, D), unit length

    Args:
        run_or_folder: a run, a round's folder, or a folder with the two files of a ``model/``.
        round_number: of a run; None is the newest round that has a model.

    Raises:
        UsageError: no model there. RunError: it is damaged.
    """
    from andscale.training.model_folder import load_model as load

    return load(run_or_folder, round_number)
