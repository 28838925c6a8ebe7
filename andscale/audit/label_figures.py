"""Figures that need labels: purity by class, confusion, how well low entropy tells pure neighbourhoods from others.

Labels are audit labels here: nothing in training or selection takes them.
"""

from dataclasses import dataclass

import numpy as np

from andscale.audit.purity import neighbour_agreement
from andscale.store.neighbourhoods import NeighbourhoodTable


@dataclass(frozen=True)
class ClassPurity:
    """Purity of the samples of one class."""

    label: int
    num_samples: int
    purity_at_1: float
    purity_at_k: float


@dataclass(frozen=True, eq=False)
class SelectiveRisk:
    """What is gained by trusting samples in the order of rising entropy.

    Attributes:
        coverage: (N,) float64, share of the samples that are trusted: 1/N, 2/N, .. 1.
        risk: (N,) float64, share of those whose nearest neighbour is of another class.
        auroc: probability that a right sample has a lower entropy than a wrong one, ties counting half; None where all
            samples are right, or all wrong.
        aurc: area under the curve, the mean of ``risk``.
    """

    coverage: np.ndarray
    risk: np.ndarray
    auroc: float | None
    aurc: float


def selective_risk(entropies: np.ndarray, is_correct: np.ndarray) -> SelectiveRisk:
    """The risk-coverage curve of entropy, and its ranking quality.

    Among samples of equal entropy the errors are spread evenly, so the curve does not depend on their order.

    Args:
        entropies: (N,) nats.
        is_correct: (N,) bool, whether the nearest neighbour has the sample's label.

    Raises:
        ValueError: no samples.
    """
    count = len(entropies)
    if not count:
        raise ValueError("no samples")
    _, group, sizes = np.unique(entropies, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~is_correct)
    ends = np.cumsum(sizes)
    errors = np.interp(np.arange(1, count + 1), np.r_[0, ends], np.r_[0.0, np.cumsum(wrong)])
    places = np.arange(1, count + 1)
    risk = errors / places
    num_wrong, num_right = int(wrong.sum()), count - int(wrong.sum())
    auroc = None
    if num_wrong and num_right:
        # Mann-Whitney: mean ranks of the wrong ones among all
        ranks = (ends - (sizes - 1) / 2)[group]
        above = float(ranks[~is_correct].sum()) - num_wrong * (num_wrong + 1) / 2
        auroc = above / (num_wrong * num_right)
    return SelectiveRisk(places / count, risk, auroc, float(risk.mean()))


def purity_by_class(table: NeighbourhoodTable, audit_labels: np.ndarray, num_classes: int) -> list[ClassPurity]:
    """Purity of each class that has samples, in the order of the labels.

    Args:
        table: N rows.
        audit_labels: (N,) int32, no -1.
        num_classes: C, more than the largest label.
    """
    agreement = neighbour_agreement(table.neighbour_ids, audit_labels)
    counts = np.bincount(audit_labels, minlength=num_classes)
    first = np.bincount(audit_labels, weights=agreement[:, 0], minlength=num_classes)
    mean = np.bincount(audit_labels, weights=agreement.mean(axis=1), minlength=num_classes)
    return [
        ClassPurity(
            int(label), int(counts[label]), float(first[label] / counts[label]), float(mean[label] / counts[label])
        )
        for label in np.flatnonzero(counts)
    ]


def confusion(neighbour_ids: np.ndarray, audit_labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64 counts: row the sample's label, column its nearest neighbour's.

    Args:
        neighbour_ids: (N, K) int64.
        audit_labels: (N,) int32, no -1.
        num_classes: C.
    """
    pairs = audit_labels.astype(np.int64) * num_classes + audit_labels[neighbour_ids[:, 0]]
    counts: np.ndarray = np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)
    return counts


def most_confused(
    neighbour_ids: np.ndarray, audit_labels: np.ndarray, num_pairs: int
) -> list[tuple[int, int, int, float]]:
    """The (label, nearest neighbour's other label, samples, share of the label's samples) with most samples.

    Only pairs that occur are counted, so labels may be any numbers.

    Args:
        neighbour_ids: (N, K) int64.
        audit_labels: (N,) int32, no -1.
        num_pairs: how many at most; of equally many samples those of the smaller labels.
    """
    present, numbers, totals = np.unique(audit_labels, return_inverse=True, return_counts=True)
    nearest = numbers[neighbour_ids[:, 0]]
    is_other = numbers != nearest
    pairs, counts = np.unique(numbers[is_other] * len(present) + nearest[is_other], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:num_pairs]
    rows, columns = np.divmod(pairs[order], len(present))
    return [
        (int(present[r]), int(present[c]), int(n), float(n / totals[r]))
        for r, c, n in zip(rows, columns, counts[order], strict=True)
    ]


def consistent_anchors(table: NeighbourhoodTable, audit_labels: np.ndarray) -> tuple[int, int]:
    """Numbers of consistent and inconsistent anchors (the paper's figure 6).

    An anchor is consistent when all of its K neighbours have its label.
    """
    agreement = neighbour_agreement(table.neighbour_ids, audit_labels)[table.is_anchor]
    consistent = int(agreement.all(axis=1).sum())
    return consistent, len(agreement) - consistent
