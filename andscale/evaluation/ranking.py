"""From scores to ranked classes, and from ranked classes to top-1 and top-5 accuracy over all ranks."""

from collections.abc import Mapping

import numpy as np
import torch

from andscale.distributed import all_reduce_sum

TOP = 5
NO_CLASS = -1


def top_classes(scores: np.ndarray) -> np.ndarray:
    """The five classes of highest score, highest first; equal scores go by smaller class number.

    Args:
        scores: (M, C) floats, overwritten; -inf says that a class is not proposed at all.

    Returns:
        (M, 5) int32; NO_CLASS where fewer than five classes are proposed.
    """
    top = np.full((len(scores), TOP), NO_CLASS, np.int32)
    rows = np.arange(len(scores))
    for place in range(min(TOP, scores.shape[1])):
        best = scores.argmax(axis=1)  # the first of equal ones
        top[:, place] = np.where(scores[rows, best] > -np.inf, best, NO_CLASS)
        scores[rows, best] = -np.inf
    return top


def accuracies(tops: Mapping[str, np.ndarray], labels: np.ndarray, num_samples: int) -> dict[str, dict[str, float]]:
    """Top-1 and top-5 accuracy of several classifiers over the samples of all ranks.

    Args:
        tops: name -> (m, 5) int32, the classes that it proposes for this rank's samples; the same names on every rank.
        labels: (m,) int32, of this rank's samples.
        num_samples: over all ranks.

    Returns:
        Name -> ``top1`` and ``top5``, shares of the samples.
    """
    right = [top == labels[:, None] for top in tops.values()]
    counts = torch.tensor([[int(r[:, 0].sum()), int(r.any(axis=1).sum())] for r in right], dtype=torch.int64)
    all_reduce_sum(counts)
    return {
        name: {"top1": top1 / num_samples, "top5": top5 / num_samples}
        for name, (top1, top5) in zip(tops, counts.tolist(), strict=True)
    }
