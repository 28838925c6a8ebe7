"""The report's page: figures, thumbnails and words put together."""

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from andscale.audit.audit_text import approximation_line, shown
from andscale.audit.graph_figures import k_occurrence
from andscale.audit.inspecting import inspect_subject
from andscale.audit.label_figures import confusion
from andscale.audit.report import charts
from andscale.audit.report.galleries import duplicate_groups, galleries
from andscale.audit.report.thumbnails import Thumbnails
from andscale.audit.subject import Subject

_ENDS_OF_CLASSES = 20
_NAME_LENGTH = 80


def render_report(subject: Subject, inspected: dict[str, Any] | None = None) -> str:
    """The page of ``write_report``, its arguments likewise."""
    if inspected is None:
        is_local = subject.dataset is not None and not subject.dataset.url
        inspected = inspect_subject(subject, known=subject.dataset.root if is_local and subject.dataset else None)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": lambda text: shown(text, _NAME_LENGTH), "number": charts.number}
    package = files("andscale.audit.report")
    page = environment.from_string((package / "report.html.j2").read_text(encoding="utf-8"))
    style = (package / "report.css").read_text(encoding="utf-8")
    return page.render(style=style, **_content(subject, inspected))


def _content(subject: Subject, inspected: dict[str, Any]) -> dict[str, Any]:
    table, labels = subject.table, inspected["labels"]
    thumbnails = Thumbnails(subject)
    groups = {group["name"]: group for group in inspected["groups"]}
    rounds, leakage = inspected["rounds"] or [], inspected.get("leakage")
    return {
        "run": subject.root.resolve().name,
        "round_number": subject.round_number,
        "dataset": None if subject.dataset is None else subject.dataset.name,
        "created": subject.manifest.created[:16].replace("T", " "),
        "log_n": math.log(len(table)),
        "num_anchors": int(table.is_anchor.sum()),
        "inspected": inspected,
        "groups": groups,
        "labels": labels,
        "missing_images": thumbnails.missing,
        "approximation": approximation_line(inspected["discovery"]),
        "entropy_chart": charts.entropy_histogram(table.entropies, table.is_anchor),
        "occurrence_chart": charts.occurrence_chart(k_occurrence(table.neighbour_ids)),
        **_label_charts(subject, inspected, groups),
        "rounds": rounds if len(rounds) > 1 else [],
        "rounds_chart": charts.rounds_chart(rounds) if len(rounds) > 1 and labels else None,
        "galleries": galleries(subject, inspected, thumbnails),
        "duplicate_groups": duplicate_groups(subject, inspected, thumbnails),
        "leakage": leakage,
        # the run's folder stands in the title, without where it lies
        "leakage_model": "/".join(Path(leakage["model"]).parts[-3:]) if leakage else "",
    }


def _label_charts(subject: Subject, inspected: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any]:
    labels = inspected["labels"]
    if labels is None or subject.audit_labels is None:
        return {"tenths_chart": None, "risk_chart": None, "confusion_chart": None, "classes": []}
    tenths = [group["purity_at_1"] for name, group in groups.items() if name.startswith("entropy tenth")]
    num_classes = max(len(subject.classes), int(subject.audit_labels.max()) + 1)
    names = [shown(subject.class_name(label), _NAME_LENGTH) for label in range(num_classes)]
    counts = confusion(subject.table.neighbour_ids, subject.audit_labels, num_classes) if num_classes <= 1000 else None
    classes = sorted(labels["by_class"], key=lambda record: -record["purity_at_1"])
    return {
        "tenths_chart": charts.tenths_chart(tenths),
        "risk_chart": charts.risk_chart(
            labels["risk_coverage"], labels["auroc_of_low_entropy"], labels["area_under_risk_coverage"]
        ),
        "confusion_chart": None if counts is None else charts.confusion_chart(np.asarray(counts), names),
        "classes": _ends(classes),
    }


def _ends(classes: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The classes in two lists, best first; of many only the best and the worst."""
    half = min(_ENDS_OF_CLASSES, (len(classes) + 1) // 2)
    return [classes[:half], classes[max(half, len(classes) - _ENDS_OF_CLASSES) :]]
