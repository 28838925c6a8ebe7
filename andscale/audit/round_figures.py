"""A run's rounds beside each other: anchors that stayed, came, went, neighbours that changed, one sample's history."""

from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.label_figures import consistent_anchors
from andscale.audit.purity import neighbour_agreement
from andscale.audit.subject import Subject, open_subject, rounds_with_tables
from andscale.errors import UsageError
from andscale.store.neighbourhoods import NeighbourhoodTable


def rounds_table(run: Path, known: Path | None = None) -> list[dict[str, Any]]:
    """One record a round with neighbourhoods, ascending; what needs labels or a round before is None without them.

    ``num_anchors``; ``stayed``, ``came``, ``went`` (anchors of this and the round before, of this alone, of that
    alone); ``nearest_changed_fraction`` (samples whose nearest neighbour is another); ``kept_neighbours_fraction`` (of
    the K); ``median_entropy_nats``; ``purity_at_1``, ``purity_of_anchors`` (at 1); ``consistent``, ``inconsistent``
    anchors (the paper's figure 6).
    """
    records, before = [], None
    for number in rounds_with_tables(run):
        subject = open_subject(run, number, known)
        records.append(_record(subject, before))
        before = subject.table
    return records


def kept_neighbours(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Share of each sample's K neighbours that it had before, (N,) float64; both (N, K) int64."""
    kept: np.ndarray = np.zeros(len(now))
    for place in range(now.shape[1]):
        kept += (now[:, place, None] == before).any(axis=1)
    kept /= now.shape[1]
    return kept


def history(run: Path, sample_id: int, round_number: int | None = None, known: Path | None = None) -> dict[str, Any]:
    """One sample's neighbourhood through the rounds, or in one.

    Args:
        run: a run, or the folder of a table without one.
        sample_id: whose.
        round_number: None: all rounds.
        known: see ``open_subject``.

    Returns:
        ``sample_id``, ``key``, ``source``, ``class``; ``rounds``: of each ``round``, ``entropy_nats``, ``is_anchor``,
        ``neighbours`` (``sample_id``, ``similarity``, ``class``, ``is_new``: not there in the round before).

    Raises:
        UsageError: no such sample or round.
    """
    numbers = rounds_with_tables(run) if (run / "run.json").exists() and round_number is None else [round_number]
    result: dict[str, Any] = {}
    rounds: list[dict[str, Any]] = []
    before: set[int] | None = None
    for number in numbers or [None]:
        subject = open_subject(run, number, known)
        table = subject.table
        if not 0 <= sample_id < len(table):
            raise UsageError(f"{run} has no sample {sample_id}: its ids are 0 to {len(table) - 1}")
        ids = table.neighbour_ids[sample_id].tolist()
        rounds.append(
            {
                "round": subject.round_number,
                "entropy_nats": float(table.entropies[sample_id]),
                "is_anchor": bool(table.is_anchor[sample_id]),
                "neighbours": [
                    describe_sample(subject, i)
                    | {"similarity": float(s), "is_new": before is not None and i not in before}
                    for i, s in zip(ids, table.similarities[sample_id], strict=True)
                ],
            }
        )
        before, result = set(ids), describe_sample(subject, sample_id)
    return result | {"rounds": rounds}


def describe_sample(subject: Subject, sample_id: int) -> dict[str, Any]:
    """``sample_id``, ``key``, ``source``, ``class``; None where nothing is known."""
    catalogue, labels = subject.catalogue, subject.audit_labels
    has_label = labels is not None and labels[sample_id] >= 0
    return {
        "sample_id": sample_id,
        "key": None if catalogue is None else catalogue.keys[sample_id],
        "source": None if catalogue is None else catalogue.sources[sample_id],
        "class": subject.class_name(int(labels[sample_id])) if labels is not None and has_label else None,
    }


def _record(subject: Subject, before: NeighbourhoodTable | None) -> dict[str, Any]:
    table = subject.table
    record: dict[str, Any] = {
        "round": subject.round_number,
        "num_anchors": int(table.is_anchor.sum()),
        **dict.fromkeys(("stayed", "came", "went", "nearest_changed_fraction", "kept_neighbours_fraction")),
        "median_entropy_nats": float(np.median(table.entropies)),
        **dict.fromkeys(("purity_at_1", "purity_of_anchors", "consistent", "inconsistent")),
    }
    if before is not None:
        now, then = table.is_anchor, before.is_anchor
        record |= {
            "stayed": int((now & then).sum()),
            "came": int((now & ~then).sum()),
            "went": int((~now & then).sum()),
        }
        record["nearest_changed_fraction"] = float((table.neighbour_ids[:, 0] != before.neighbour_ids[:, 0]).mean())
        kept = kept_neighbours(table.neighbour_ids, before.neighbour_ids)
        record["kept_neighbours_fraction"] = float(kept.mean())
    if subject.is_labelled and subject.audit_labels is not None:
        nearest = neighbour_agreement(table.neighbour_ids[:, :1], subject.audit_labels)[:, 0]
        record["purity_at_1"] = float(nearest.mean())
        if record["num_anchors"]:
            record["purity_of_anchors"] = float(nearest[table.is_anchor].mean())
        record["consistent"], record["inconsistent"] = consistent_anchors(table, subject.audit_labels)
    return record
