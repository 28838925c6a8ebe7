"""One round as the service answers from it: nothing of it ever changes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.graph_figures import k_occurrence
from andscale.audit.label_figures import purity_by_class
from andscale.audit.purity import neighbour_agreement
from andscale.audit.subject import Subject, load_features, open_subject
from andscale.data.samples import Shards
from andscale.indexing.faiss_index import build_flat, index_kind, open_index
from andscale.indexing.index_search import search
from andscale.indexing.index_vectors import prepare_vectors, vector_of
from andscale.store import artifacts
from andscale.store.run_layout import RunLayout

NUM_BINS = 40


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A verified round.

    Attributes:
        subject: the table and what is known about its samples.
        index: FAISS's, memory-mapped; None for a round that is looked at beside the current one, or a table without
            features.
        shards: where images are read; None where there are none on this machine.
    """

    subject: Subject
    index: Any
    shards: Shards | None

    def __len__(self) -> int:
        return len(self.subject.table)

    @property
    def round_number(self) -> int | None:
        """None for a table without a run."""
        return self.subject.round_number

    @cached_property
    def has_flat_index(self) -> bool:
        """Whether searches are exhaustive, and so the same for any K."""
        return self.index is not None and index_kind(self.index) == "flat"

    @property
    def model_folder(self) -> Path | None:
        """The model whose features the index holds: that of the round before, which left the memory."""
        if self.round_number is None:
            return None
        folder = RunLayout(self.subject.root).round(self.round_number - 1).model
        return folder if artifacts.is_complete(folder) else None

    def sample(self, sample_id: int) -> dict[str, Any]:
        """What is known of one sample, as JSON values."""
        subject = self.subject
        catalogue, labels, table = subject.catalogue, subject.audit_labels, subject.table
        label = -1 if labels is None else int(labels[sample_id])
        return {
            "sample_id": sample_id,
            "key": None if catalogue is None else catalogue.keys[sample_id],
            "source": None if catalogue is None else catalogue.sources[sample_id],
            "label": None if label < 0 else label,
            "class": None if label < 0 else subject.class_name(label),
            "entropy": float(table.entropies[sample_id]),
            "is_anchor": bool(table.is_anchor[sample_id]),
            "has_image": self.shards is not None,
        }

    def neighbours(self, ids: np.ndarray, similarities: np.ndarray) -> list[dict[str, Any]]:
        """Samples with their similarities, in the order given."""
        pairs = zip(ids.tolist(), similarities.tolist(), strict=True)
        return [self.sample(i) | {"similarity": s} for i, s in pairs]

    def search(self, queries: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, K) float32 similarities and (Q, K) int64 ids of the most similar samples; needs an index."""
        return search(self.index, queries, num_neighbours)

    def vector(self, sample_id: int) -> np.ndarray:
        """(D,) float32, the sample's feature as the index knows it."""
        return vector_of(self.index, sample_id)

    @cached_property
    def occurrence(self) -> np.ndarray:
        """(N,) int64, how often each sample is a neighbour."""
        return k_occurrence(self.subject.table.neighbour_ids)

    @cached_property
    def by_entropy(self) -> np.ndarray:
        """(N,) int64, sample ids by rising entropy, equal ones by id."""
        return np.argsort(self.subject.table.entropies, kind="stable")

    @cached_property
    def stats(self) -> dict[str, Any]:
        """The figures of the whole round, as JSON values."""
        table, subject = self.subject.table, self.subject
        edges = np.histogram_bin_edges(table.entropies.astype(np.float64), NUM_BINS)
        histogram = {
            "edges": edges.tolist(),
            "counts": np.histogram(table.entropies, edges)[0].tolist(),
            "anchors": np.histogram(table.entropies[table.is_anchor], edges)[0].tolist(),
        }
        return {
            "round": self.round_number,
            "name": subject.root.name,
            "num_samples": len(table),
            "num_neighbours": table.num_neighbours,
            "num_anchors": int(table.is_anchor.sum()),
            "table": {name: subject.manifest.figures.get(name) for name in ("mode", "recall_at_1", "recall_at_k")},
            "dim": None if self.index is None else int(self.index.d),
            "index_kind": None if self.index is None else index_kind(self.index),
            "labelled": subject.is_labelled,
            "has_classes": subject.audit_labels is not None,
            "classes": list(subject.classes),
            "has_images": self.shards is not None,
            "has_model": self.model_folder is not None,
            "entropy": histogram,
            "purity": self._purity(),
        }

    def _purity(self) -> dict[str, Any] | None:
        subject, table = self.subject, self.subject.table
        if not subject.is_labelled or subject.audit_labels is None:
            return None
        labels = subject.audit_labels
        agreement = neighbour_agreement(table.neighbour_ids, labels)
        anchors = agreement[table.is_anchor]
        return {
            "at_1": float(agreement[:, 0].mean()),
            "at_k": float(agreement.mean()),
            "anchors_at_1": float(anchors[:, 0].mean()) if len(anchors) else None,
            "anchors_at_k": float(anchors.mean()) if len(anchors) else None,
            "by_class": [
                {"label": c.label, "class": subject.class_name(c.label), "num_samples": c.num_samples}
                | {"at_1": c.purity_at_1, "at_k": c.purity_at_k}
                for c in purity_by_class(table, labels, int(labels.max()) + 1)
            ],
        }


def open_snapshot(
    place: Path,
    round_number: int | None,
    known: Path | None = None,
    features: Path | None = None,
    before: Snapshot | None = None,
) -> Snapshot:
    """Verify and open a round with its index, or a table without a run.

    Args:
        place: a run, or a folder that ``tools/discover.py`` wrote.
        round_number: of a run; None is the newest.
        known: what is known of a foreign table's samples, see ``open_subject``.
        features: the features of a foreign table, to be searched by a flat index in memory.
        before: the snapshot that this one is to replace; what is the same in both is held once.

    Raises:
        UsageError: no such round. RunError: something is damaged.
    """
    subject = open_subject(place, round_number, known, None if before is None else before.subject)
    index = None
    if subject.round_number is not None:
        index, _ = open_index(RunLayout(place).round(subject.round_number).index)
    elif features is not None:
        index = build_flat(load_features(subject, features))
    if index is not None:
        prepare_vectors(index)
    snapshot = Snapshot(subject, index, _shards(subject))
    # computed now, not by the first who asks
    _ = snapshot.occurrence, snapshot.by_entropy, snapshot.stats
    return snapshot


def open_table_only(place: Path, round_number: int, current: Snapshot, known: Path | None = None) -> Snapshot:
    """A round to be looked at beside the current one: its table, without its index."""
    subject = open_subject(place, round_number, known, current.subject)
    return Snapshot(subject, None, _shards(subject))


def _shards(subject: Subject) -> Shards | None:
    is_here = subject.catalogue is not None and subject.dataset is not None and not subject.dataset.url
    return Shards(subject.catalogue) if is_here and subject.catalogue is not None else None
