"""The audit's figures as text for a terminal; names from data are shown without control characters."""

from typing import Any

from andscale.audit.tables import purity_table, render_table

_CHANCE = 0.5
_ABSENT = "-"
_NAME_WIDTH = 40
_SHOWN_CLASSES = 5
_SHOWN_PAIRS = 8
_SHOWN_GROUPS = 5
_SHOWN_IDS = 8


def shown(text: str | None, width: int = _NAME_WIDTH) -> str:
    """A name from data as one short printable word of a line: others' characters cannot move the cursor."""
    if text is None:
        return _ABSENT
    plain = "".join(c if c.isprintable() else "�" for c in text[: width + 1])
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def audit_text(inspected: dict[str, Any]) -> str:
    """All sections of ``inspect_subject``."""
    approximate = approximation_line(inspected["discovery"])
    parts = [purity_table(inspected), *([approximate] if approximate else []), _graph_lines(inspected)]
    if inspected["labels"]:
        parts += [_label_lines(inspected["labels"]), _class_table(inspected["labels"])]
        if inspected["labels"]["confused"]:
            parts.append(_confused_table(inspected["labels"]))
    if inspected["rounds"] and len(inspected["rounds"]) > 1:
        parts.append(_rounds_table(inspected["rounds"]))
    if "leakage" in inspected:
        parts.append(leakage_text(inspected["leakage"]))
    return "\n\n".join(parts)


def approximation_line(discovery: dict[str, Any]) -> str:
    """What an approximate table means for the audit's figures, as one line; empty for an exact one."""
    if discovery["mode"] != "approximate":
        return ""
    forms = {
        "recall_at_1": "recall@1 {:.4f}",
        "recall_at_k": "recall@k {:.4f}",
        "mean_entropy_stderr_nats": "mean standard error of the entropies {:.4f} nats",
    }
    known = ", ".join(form.format(discovery[name]) for name, form in forms.items() if discovery[name] is not None)
    quality = f" ({known})" if known else ""
    return (
        f"Approximate neighbourhoods{quality}: purity, hubs and mutual pairs are of "
        "the neighbours that were found, near-duplicates that were not found are missing, entropies are estimates"
    )


def history_text(found: dict[str, Any]) -> str:
    """One sample through the rounds."""
    name = " ".join(shown(found[key]) for key in ("source", "class") if found[key] is not None)
    lines = [f"sample {found['sample_id']} {name}".rstrip()]
    rows = []
    for record in found["rounds"]:
        kind = "anchor" if record["is_anchor"] else "instance"
        head = [_ABSENT if record["round"] is None else str(record["round"]), kind, f"{record['entropy_nats']:.3f}"]
        for neighbour in record["neighbours"]:
            cells = [str(neighbour["sample_id"]), f"{neighbour['similarity']:.4f}", shown(neighbour["class"])]
            rows.append([*head, *cells, "new" if neighbour["is_new"] else ""])
            head = ["", "", ""]
    return "\n".join([*lines, render_table(["round", "", "entropy", "neighbour", "similarity", "class", ""], rows)])


def leakage_text(found: dict[str, Any]) -> str:
    """How many validation images are among the training images, and the most similar ones."""
    title = (
        f"{found['num_leaked']:,} of {found['num_val']:,} validation images have a training image at similarity "
        f"{found['threshold']} or more (features of {found['model']})"
    )
    rows = [
        [str(leak["val_id"]), str(leak["train_id"]), f"{leak['similarity']:.4f}", shown(leak["val_source"])]
        for leak in found["leaks"][:_SHOWN_PAIRS]
    ]
    return f"{title}\n{render_table(['val', 'train', 'similarity', 'source'], rows)}" if rows else title


def _graph_lines(inspected: dict[str, Any]) -> str:
    graph, entropy, duplicates = inspected["graph"], inspected["entropy"], inspected["near_duplicates"]
    hub = graph["hubs"][0]
    nats = "/".join(f"{value:.3f}" for value in entropy["nats"])
    effective = "/".join(f"{value:,.1f}" for value in entropy["effective_neighbours"])
    lines = [
        f"entropy q05/q25/q50/q75/q95: {nats} nats, exp(H): {effective} effective neighbours",
        f"mutual pairs: {graph['mutual_fraction']:.1%}; components: {graph['num_components']:,}, the largest "
        f"{graph['largest_component_fraction']:.1%} of the samples",
        f"hubness: k-occurrence has skewness {graph['k_occurrence_skewness']:.2f}; {hub['k_occurrence']:,} times a "
        f"neighbour: sample {hub['sample_id']}; never a neighbour: {graph['never_a_neighbour_fraction']:.1%}",
        f"near-duplicates (similarity >= {duplicates['threshold']}): {duplicates['num_samples']:,} samples in "
        f"{duplicates['num_groups']:,} groups",
    ]
    for group in duplicates["groups"][:_SHOWN_GROUPS]:
        more = ", ..." if len(group) > _SHOWN_IDS else ""
        lines.append(f"  {', '.join(map(str, group[:_SHOWN_IDS]))}{more}")
    return "\n".join(lines)


def _label_lines(labels: dict[str, Any]) -> str:
    value = labels["auroc_of_low_entropy"]
    auroc = _ABSENT if value is None else f"{value:.4f}"
    if value is not None and value < _CHANCE:
        auroc += " (below 0.5: low entropy picks the wrong samples, a higher temperature may mend it)"
    risks = {round(point["coverage"], 2): point["risk"] for point in labels["risk_coverage"]}
    errors = ", ".join(f"{risks[share]:.4f} of the first {share:.0%}" for share in (0.1, 0.25, 0.5, 1.0))
    return (
        f"low entropy tells right nearest neighbours from wrong ones: AUROC {auroc}, area under risk-coverage "
        f"{labels['area_under_risk_coverage']:.4f}\nwrong nearest neighbours by rising entropy: {errors}\n"
        f"anchors: {labels['consistent_anchors']:,} consistent, {labels['inconsistent_anchors']:,} inconsistent"
    )


def _class_table(labels: dict[str, Any]) -> str:
    ordered = sorted(labels["by_class"], key=lambda record: -record["purity_at_1"])
    if len(ordered) > 2 * _SHOWN_CLASSES:
        chosen = [*ordered[:_SHOWN_CLASSES], None, *ordered[-_SHOWN_CLASSES:]]
    else:
        chosen = list(ordered)
    rows = [
        ["...", "", "", ""]
        if record is None
        else [
            shown(record["class"]),
            f"{record['num_samples']:,}",
            f"{record['purity_at_1']:.4f}",
            f"{record['purity_at_k']:.4f}",
        ]
        for record in chosen
    ]
    return render_table(["class, best first", "number", "purity@1", "purity@k"], rows)


def _confused_table(labels: dict[str, Any]) -> str:
    rows = [
        [f"{shown(r['class'])} -> {shown(r['neighbours_class'])}", f"{r['num_samples']:,}", f"{r['share']:.1%}"]
        for r in labels["confused"][:_SHOWN_PAIRS]
    ]
    return render_table(["nearest neighbour of another class", "number", "of the class"], rows)


def _rounds_table(rounds: list[dict[str, Any]]) -> str:
    columns = {
        "round": "d", "num_anchors": ",", "stayed": ",", "came": ",", "went": ",", "nearest_changed_fraction": ".1%",
        "median_entropy_nats": ".3f", "purity_at_1": ".4f", "purity_of_anchors": ".4f", "consistent": ",",
        "inconsistent": ",",
    }  # fmt: skip
    rows = [[_ABSENT if r[key] is None else format(r[key], form) for key, form in columns.items()] for r in rounds]
    names = {"num_anchors": "anchors", "nearest_changed_fraction": "nearest changed", "median_entropy_nats": "median H"}
    return render_table(
        [names.get(key, key.replace("_", " ").replace("purity at 1", "purity@1")) for key in columns], rows
    )
