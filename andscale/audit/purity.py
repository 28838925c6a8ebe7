"""Purity of neighbourhoods: the share of neighbours that have the sample's label.

Labels are audit labels here: nothing in training or selection takes them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.subject import open_subject
from andscale.data.shards import load_catalogue, open_dataset
from andscale.errors import UsageError
from andscale.store.neighbourhoods import NeighbourhoodTable

NUM_ENTROPY_GROUPS = 10


@dataclass(frozen=True)
class PurityGroup:
    """Purity of some samples.

    Attributes:
        name: which samples.
        num_samples: how many.
        purity_at_1: share whose nearest neighbour has their label; None without labels.
        purity_at_k: mean share of the K neighbours that have the sample's label; None without labels.
        entropy_nats: least, median and greatest entropy.
        mean_similarity: of the nearest neighbour.
    """

    name: str
    num_samples: int
    purity_at_1: float | None
    purity_at_k: float | None
    entropy_nats: tuple[float, float, float]
    mean_similarity: float


def neighbour_agreement(neighbour_ids: np.ndarray, audit_labels: np.ndarray) -> np.ndarray:
    """Whether each neighbour has the sample's label.

    Args:
        neighbour_ids: (N, K) int64.
        audit_labels: (N,) int32, -1 = none.

    Returns:
        (N, K) bool.

    Raises:
        UsageError: a sample has no label.
    """
    if (audit_labels < 0).any():
        raise UsageError("purity needs a label for every sample, and some have none")
    agreement: np.ndarray = audit_labels[neighbour_ids] == audit_labels[:, None]
    return agreement


def purity_groups(table: NeighbourhoodTable, audit_labels: np.ndarray | None) -> list[PurityGroup]:
    """Figures of all samples, the anchors, the instances, and tenths of the samples by rising entropy."""
    agreement = None if audit_labels is None else neighbour_agreement(table.neighbour_ids, audit_labels)
    order = np.argsort(table.entropies, kind="stable")
    tenths = np.array_split(order, NUM_ENTROPY_GROUPS)
    groups = {
        "all": np.arange(len(table)),
        "anchors": np.flatnonzero(table.is_anchor),
        "instances": np.flatnonzero(~table.is_anchor),
    } | {f"entropy tenth {i}": tenth for i, tenth in enumerate(tenths, start=1)}
    return [_group(name, rows, table, agreement) for name, rows in groups.items() if len(rows)]


def inspect_round(run: Path, round_number: int | None) -> dict[str, Any]:
    """The purity figures of one round, the newest with neighbourhoods by default, as JSON values.

    Raises:
        UsageError: no such round. RunError: the table is damaged.
    """
    subject = open_subject(run, round_number)
    table, labels = subject.table, subject.audit_labels if subject.is_labelled else None
    return {
        "run": str(run),
        "round": subject.round_number,
        "num_samples": len(table),
        "num_neighbours": table.num_neighbours,
        "labelled": labels is not None,
        "groups": [vars(group) for group in purity_groups(table, labels)],
        "seconds": subject.manifest.seconds,
    }


def audit_labels_of(dataset_root: Path | str, num_samples: int) -> np.ndarray | None:
    """Labels of the first training samples, (num_samples,) int32; None when some sample has none."""
    catalogue = load_catalogue(open_dataset(dataset_root), "train", num_samples)
    return None if (catalogue.labels < 0).any() else catalogue.labels


def _group(name: str, rows: np.ndarray, table: NeighbourhoodTable, agreement: np.ndarray | None) -> PurityGroup:
    entropies = table.entropies[rows]
    return PurityGroup(
        name=name,
        num_samples=len(rows),
        purity_at_1=None if agreement is None else float(agreement[rows, 0].mean()),
        purity_at_k=None if agreement is None else float(agreement[rows].mean()),
        entropy_nats=(float(entropies.min()), float(np.median(entropies)), float(entropies.max())),
        mean_similarity=float(table.similarities[rows, 0].mean()),
    )
