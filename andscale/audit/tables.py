"""Plain-text tables: a run's rounds at a glance, and one round's purity."""

from pathlib import Path
from typing import Any

import numpy as np

from andscale.audit.purity import audit_labels_of, neighbour_agreement
from andscale.evaluation.record import read_evaluation
from andscale.store import artifacts
from andscale.store.features import KIND as MEMORY_KIND
from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RoundLayout, RunLayout
from andscale.store.run_record import load_run

_ABSENT = "-"


def render_table(header: list[str], rows: list[list[str]]) -> str:
    """Align cells: the first column to the left, the others to the right, two spaces between."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * w for w in widths], *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def run_summary(run: Path) -> list[dict[str, Any]]:
    """One record a round: anchors, purity@1, entropy quantiles, accuracy, seconds; what is absent is None."""
    record, layout = load_run(run), RunLayout(run)
    return [_round_summary(layout.round(number), record.dataset_root) for number in layout.round_numbers()]


def run_table(run: Path) -> str:
    """The table that ends a launch: one line a round."""
    records = run_summary(run)
    header = ["round", "anchors", "purity of anchors", "purity of all", "entropy q25/q50/q75", "kNN accuracy"]
    has_linear = any(r["best_linear"] for r in records)
    header += ["best linear accuracy"] if has_linear else []
    header += ["index s", "train s", "evaluate s"]
    rows = []
    for r in records:
        quantiles = r["entropy_quantiles_nats"]
        rows.append(
            [
                str(r["round"]),
                _number(r["num_anchors"], ","),
                _number(r["purity_of_anchors"], ".4f"),
                _number(r["purity_of_all"], ".4f"),
                "/".join(f"{q:.3f}" for q in quantiles) if quantiles else _ABSENT,
                _number(r["accuracy"], ".4f"),
                *([r["best_linear"] or _ABSENT] if has_linear else []),
                *(_number(r[f"{step}_s"], ".1f") for step in ("index", "train", "evaluate")),
            ]
        )
    baseline = next((r["random_weights_accuracy"] for r in records if r["random_weights_accuracy"] is not None), None)
    note = f"\nrandom weights: kNN accuracy {baseline:.4f}" if baseline is not None else ""
    return render_table(header, rows) + note


def purity_table(inspected: dict[str, Any]) -> str:
    """The figures of ``inspect_round`` as text."""
    where = "" if inspected["round"] is None else f", round {inspected['round']}"
    title = f"{inspected['run']}{where}: {inspected['num_samples']:,} samples, k = {inspected['num_neighbours']}"
    if not inspected["labelled"]:
        why = "some samples have no label" if inspected.get("partly_labelled") else "no labels"
        title += f" ({why}: no purity)"
    # with one neighbour purity@k says the same as purity@1
    purities = {"purity@1": "purity_at_1", f"purity@{inspected['num_neighbours']}": "purity_at_k"}
    header = ["samples", "number", *purities, "entropy min/median/max", "mean similarity"]
    rows = [
        [
            g["name"],
            f"{g['num_samples']:,}",
            *(_number(g[key], ".4f") for key in purities.values()),
            "/".join(f"{v:.3f}" for v in g["entropy_nats"]),
            f"{g['mean_similarity']:.4f}",
        ]
        for g in inspected["groups"]
    ]
    return f"{title}\n{render_table(header, rows)}"


def _round_summary(folder: RoundLayout, dataset_root: Path | str) -> dict[str, Any]:
    summary: dict[str, Any] = dict.fromkeys(
        [
            *("num_anchors", "purity_of_anchors", "purity_of_all", "entropy_quantiles_nats"),
            *("accuracy", "random_weights_accuracy", "best_linear", "index_s", "train_s", "evaluate_s"),
        ]
    )
    summary["round"] = folder.number
    if artifacts.is_complete(folder.neighbourhoods):
        table, manifest = read_table(folder.neighbourhoods)
        summary["num_anchors"], summary["index_s"] = int(table.is_anchor.sum()), manifest.seconds
        summary["entropy_quantiles_nats"] = [float(q) for q in np.quantile(table.entropies, (0.25, 0.5, 0.75))]
        labels = audit_labels_of(dataset_root, len(table))
        if labels is not None:
            # at 1, as in the audit, whatever K is: one name is one number
            nearest = neighbour_agreement(table.neighbour_ids[:, :1], labels)[:, 0]
            summary["purity_of_all"] = float(nearest.mean())
            summary["purity_of_anchors"] = float(nearest[table.is_anchor].mean()) if table.is_anchor.any() else None
    if artifacts.is_complete(folder.memory):
        summary["train_s"] = artifacts.load_manifest(folder.memory, MEMORY_KIND).seconds
    if artifacts.is_complete(folder.evaluation):
        evaluation, manifest = read_evaluation(folder.evaluation)
        summary["accuracy"] = evaluation["accuracy"]
        summary["random_weights_accuracy"] = evaluation.get("random_weights_accuracy")
        if evaluation["linear"]:
            top1, layer = max((record["top1"], name) for name, record in evaluation["linear"].items())
            summary["best_linear"] = f"{layer} {top1:.4f}"
        summary["evaluate_s"] = manifest.seconds
    return summary


def _number(value: float | None, form: str) -> str:
    return _ABSENT if value is None else format(value, form)
