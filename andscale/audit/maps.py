"""A 2-D map of features by UMAP, coloured by class, entropy, anchor, or the round that made an anchor of a sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from andscale.audit.audit_text import shown
from andscale.audit.pictures import check_picture, write_picture
from andscale.audit.subject import Subject, load_features, open_subject, rounds_with_tables
from andscale.errors import UsageError
from andscale.store.neighbourhoods import read_table
from andscale.store.run_layout import RunLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("label", "entropy", "anchor", "round")
MAX_POINTS = 50_000
"""Of more samples as many are drawn, and the map is of them alone."""
_NUM_NEIGHBOURS = 15
_LEAST_SAMPLES = 10
_NAMED_CLASSES = 20
_SEED = 0


def write_map(run: Path, round_number: int | None, colour: str, out: Path) -> str:
    """Write the map of one round as a picture.

    Args:
        run: whose round; the features are those that its neighbourhoods were found among.
        round_number: None: the newest with neighbourhoods.
        colour: one of ``COLOURS``.
        out: PNG or SVG.

    Returns:
        What is shown, one line.

    Raises:
        UsageError: a library is missing, no such round or colour, no labels. RunError: the features are damaged.
    """
    check_picture(out, ("umap", "matplotlib"))
    if colour not in COLOURS:
        raise UsageError(f"--colour {colour}: choose one of {', '.join(COLOURS)}")
    subject = open_subject(run, round_number)
    if colour == "label" and subject.audit_labels is None:
        raise UsageError(f"{run} has no labels to colour by: choose --colour entropy, anchor or round")
    count = len(subject.table)
    if count < _LEAST_SAMPLES:
        raise UsageError(f"a map needs {_LEAST_SAMPLES} samples or more, {run} has {count}")
    ids = choose_points(count)
    places = place_features(load_features(subject)[ids])
    number = "all" if len(ids) == count else f"{len(ids):,} drawn of"
    title = f"{shown(run.resolve().name, 40)}, round {subject.round_number}: {number} {count:,} samples by {colour}"
    write_picture(_scatter(subject, ids, places, colour, title), out)
    return title


def choose_points(num_samples: int) -> np.ndarray:
    """The ids that are shown, ascending int64: all, or a drawn ``MAX_POINTS`` of them, always the same."""
    if num_samples <= MAX_POINTS:
        return np.arange(num_samples)
    return np.sort(np.random.default_rng(_SEED).choice(num_samples, MAX_POINTS, replace=False))


def place_features(features: np.ndarray) -> np.ndarray:
    """(n, D) float32 unit-length features to (n, 2) float32 places; the same each time on one machine."""
    from umap import UMAP

    # with a seed umap uses one thread, and says so unless it was asked to
    model = UMAP(n_neighbors=min(_NUM_NEIGHBOURS, len(features) - 1), metric="cosine", random_state=_SEED, n_jobs=1)
    places: np.ndarray = model.fit_transform(features).astype(np.float32)
    return places


def _scatter(subject: Subject, ids: np.ndarray, places: np.ndarray, colour: str, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure((8, 7), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    # as pixels in an SVG too: a mark for each point would be many megabytes
    style: dict[str, Any] = {"s": max(1.0, 20_000 / (len(ids) + 500)), "linewidths": 0, "rasterized": True}
    if colour == "entropy":
        drawn = axes.scatter(places[:, 0], places[:, 1], c=subject.table.entropies[ids], cmap="viridis", **style)
        figure.colorbar(drawn, label="entropy, nats", shrink=0.7)
        return figure
    if colour == "anchor":
        groups = [
            ("instance", ~subject.table.is_anchor[ids], "#b8c4cc"),
            ("anchor", subject.table.is_anchor[ids], "#1f6f8b"),
        ]
    elif colour == "round":
        groups = _round_groups(subject, ids)
    else:
        groups = _class_groups(subject, ids)
    for name, members, shade in groups:
        if members.any():
            axes.scatter(places[members, 0], places[members, 1], color=shade, label=name, **style)
    if len(groups) <= _NAMED_CLASSES + 1:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _class_groups(subject: Subject, ids: np.ndarray) -> list[tuple[str, np.ndarray, Any]]:
    """(name, members among the shown points, colour) of every class that has points."""
    import matplotlib

    assert subject.audit_labels is not None
    labels = subject.audit_labels[ids]
    present = np.unique(labels)
    names = matplotlib.colormaps["tab20" if len(present) <= _NAMED_CLASSES else "hsv"]
    span = max(1, len(present) if len(present) > _NAMED_CLASSES else _NAMED_CLASSES)
    return [
        # a leading underscore would hide a name from the legend
        (
            "no label" if label < 0 else "\u200b" + shown(subject.class_name(label), 30),
            labels == label,
            "#cccccc" if label < 0 else names(place / span),
        )
        for place, label in enumerate(present.tolist())
    ]


def first_rounds(subject: Subject) -> np.ndarray:
    """(N,) int64, the first round up to the subject's in which each sample was an anchor; 0 where it never was."""
    first = np.zeros(len(subject.table), np.int64)
    for number in reversed(rounds_with_tables(subject.root)):
        if subject.round_number is not None and number <= subject.round_number:
            table, _ = read_table(RunLayout(subject.root).round(number).neighbourhoods)
            first[table.is_anchor] = number
    return first


def _round_groups(subject: Subject, ids: np.ndarray) -> list[tuple[str, np.ndarray, Any]]:
    """(name, members among the shown points, colour) of those that were never an anchor, and of each round."""
    import matplotlib

    first = first_rounds(subject)[ids]
    shades = matplotlib.colormaps["viridis_r"]
    last = max(int(first.max(initial=1)), 1)
    groups = [("never an anchor", first == 0, "#cccccc")]
    return groups + [(f"since round {n}", first == n, shades(n / last)) for n in range(1, last + 1)]
