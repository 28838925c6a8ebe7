"""All figures of one round's neighbourhoods, as JSON values, and as CSV files."""

import csv
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.graph_figures import (
    components,
    k_occurrence,
    largest_hubs,
    mutual_fraction,
    near_duplicates,
    neighbour_pairs,
    skewness,
)
from andscale.audit.label_figures import consistent_anchors, most_confused, purity_by_class, selective_risk
from andscale.audit.purity import neighbour_agreement, purity_groups
from andscale.audit.round_figures import describe_sample, rounds_table
from andscale.audit.subject import Subject
from andscale.errors import UsageError
from andscale.store.files import check_writable, errors_name

NEAR_DUPLICATE = 0.98
"""Similarity from which two samples count as near-duplicates where nothing else is said."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUM_HUBS, _NUM_PAIRS, _NUM_GROUPS, _SHOWN_OF_GROUP = 20, 20, 100, 100
_COVERAGES = np.linspace(0.05, 1, 20)


def inspect_subject(subject: Subject, threshold: float = NEAR_DUPLICATE, known: Path | None = None) -> dict[str, Any]:
    """Every figure of the audit.

    Args:
        subject: one table and what is known about its samples.
        threshold: similarity of near-duplicates.
        known: where the data set of the run lies now, if it was moved.

    Returns:
        ``discovery`` (how the table was found), ``groups`` (purity of all, anchors, instances, entropy tenths),
        ``entropy``, ``graph``, ``near_duplicates`` (all counted, the largest groups' first members listed), ``labels``
        (None unless every sample has one) and ``rounds`` (None without a run).
    """
    table = subject.table
    labels = subject.audit_labels if subject.is_labelled else None
    return {
        "run": str(subject.root),
        "round": subject.round_number,
        "num_samples": len(table),
        "num_neighbours": table.num_neighbours,
        "discovery": _discovery(subject),
        "labelled": labels is not None,
        "partly_labelled": labels is None and subject.audit_labels is not None,
        "groups": [vars(group) for group in purity_groups(table, labels)],
        "seconds": subject.manifest.seconds,
        "entropy": _entropy(subject),
        "graph": _graph(subject),
        "near_duplicates": _near_duplicates(subject, threshold),
        "labels": None if labels is None else _labels(subject, labels),
        "rounds": None if subject.round_number is None else rounds_table(subject.root, known),
    }


def purity_of_anchors(inspected: dict[str, Any]) -> tuple[float, str]:
    """purity@1 of the anchors, or of all samples where none is an anchor, and which; UsageError without labels."""
    if not inspected["labelled"]:
        raise UsageError(f"{inspected['run']}: purity needs a label for every sample, and some have none")
    groups = {group["name"]: group["purity_at_1"] for group in inspected["groups"]}
    if "anchors" in groups:
        return float(groups["anchors"]), "the anchors"
    return float(groups["all"]), "all samples, of which none is an anchor,"


def write_csv(subject: Subject, inspected: dict[str, Any], folder: Path) -> list[Path]:
    """One file a table of figures, with a header; existing files are replaced.

    Those of tables that have no rows now are removed, so that none of another audit is taken for one of this.

    Args:
        subject: what was inspected; its near-duplicates are written whole.
        inspected: what ``inspect_subject`` gave.
        folder: made where it is absent.

    Returns:
        The files that were written.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labels = inspected["labels"] or {}
    duplicates = enumerate(near_duplicates(subject.table, inspected["near_duplicates"]["threshold"]), start=1)
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "groups": [_flat(group) for group in inspected["groups"]],
        "hubs": inspected["graph"]["hubs"],
        "near_duplicates": ({"group": n, "sample_id": int(i)} for n, ids in duplicates for i in ids),
        "classes": labels.get("by_class", []),
        "confused": labels.get("confused", []),
        "risk_coverage": labels.get("risk_coverage", []),
        "rounds": inspected["rounds"] or [],
        "leaks": inspected.get("leakage", {}).get("leaks", []),
    }
    paths = {folder / f"{name}.csv": rows for name, rows in tables.items()}
    return [path for path, rows in paths.items() if _write_rows(path, rows)]


def _write_rows(path: Path, records: Iterable[dict[str, Any]]) -> bool:
    """Write one CSV file, or remove it where there is no row; returns whether there is one."""
    rows = iter(records)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return False
    with errors_name(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows({key: as_text_cell(value) for key, value in row.items()} for row in chain([first], rows))
    return True


def as_text_cell(value: Any) -> Any:
    """A value for a spreadsheet: text that it would take for a formula gets an apostrophe in front."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    least, median, most = group["entropy_nats"]
    rest = {key: value for key, value in group.items() if key != "entropy_nats"}
    return rest | {"min_entropy_nats": least, "median_entropy_nats": median, "max_entropy_nats": most}


def _discovery(subject: Subject) -> dict[str, Any]:
    """``mode`` and, of approximate tables, how far to trust them; None where the manifest has nothing."""
    figures = subject.manifest.figures
    # what a manifest leaves out the column tells: estimates have a standard error
    mode = figures.get("mode", "exact" if subject.table.entropy_stderr is None else "approximate")
    names = ("recall_at_1", "recall_at_k", "mean_entropy_stderr_nats")
    return {"mode": mode} | {name: figures.get(name) for name in names}


def _entropy(subject: Subject) -> dict[str, Any]:
    nats = np.quantile(subject.table.entropies.astype(np.float64), _QUANTILES)
    return {
        "quantiles": list(_QUANTILES),
        "nats": [float(value) for value in nats],
        # of a sample whose similarity distribution were uniform over so many
        "effective_neighbours": [float(value) for value in np.exp(nats)],
    }


def _graph(subject: Subject) -> dict[str, Any]:
    ids = subject.table.neighbour_ids
    occurrence = k_occurrence(ids)
    sizes = np.bincount(components(len(ids), neighbour_pairs(ids)), minlength=1)
    return {
        "mutual_fraction": mutual_fraction(ids),
        "k_occurrence_skewness": skewness(occurrence),
        "never_a_neighbour_fraction": float((occurrence == 0).mean()),
        "num_components": int((sizes > 0).sum()),
        "largest_component_fraction": float(sizes.max() / len(ids)),
        "hubs": [describe_sample(subject, i) | {"k_occurrence": n} for i, n in largest_hubs(occurrence, _NUM_HUBS)],
    }


def _near_duplicates(subject: Subject, threshold: float) -> dict[str, Any]:
    groups = near_duplicates(subject.table, threshold)
    return {
        "threshold": threshold,
        "num_groups": len(groups),
        "num_samples": sum(map(len, groups)),
        "groups": [group[:_SHOWN_OF_GROUP].tolist() for group in groups[:_NUM_GROUPS]],
    }


def _labels(subject: Subject, labels: np.ndarray) -> dict[str, Any]:
    table, num_classes = subject.table, max(len(subject.classes), int(labels.max()) + 1)
    nearest = neighbour_agreement(table.neighbour_ids[:, :1], labels)[:, 0]
    curve = selective_risk(table.entropies, nearest)
    consistent, inconsistent = consistent_anchors(table, labels)
    return {
        "auroc_of_low_entropy": curve.auroc,
        "area_under_risk_coverage": curve.aurc,
        "risk_coverage": [
            {"coverage": float(c), "risk": float(curve.risk[max(0, round(c * len(labels)) - 1)])} for c in _COVERAGES
        ],
        "consistent_anchors": consistent,
        "inconsistent_anchors": inconsistent,
        "by_class": [
            {"label": c.label, "class": subject.class_name(c.label), "num_samples": c.num_samples}
            | {"purity_at_1": c.purity_at_1, "purity_at_k": c.purity_at_k}
            for c in purity_by_class(table, labels, num_classes)
        ],
        "confused": [
            {
                "class": subject.class_name(a),
                "neighbours_class": subject.class_name(b),
                "num_samples": n,
                "share": share,
            }
            for a, b, n, share in most_confused(table.neighbour_ids, labels, _NUM_PAIRS)
        ],
    }
