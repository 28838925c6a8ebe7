"""How rows of a table go from round to round at equal epochs, and how far two of them are apart, seed by seed."""

import statistics
from pathlib import Path
from typing import Any

from andscale.reproduction.plan import PlannedRun

Curve = list[tuple[int, list[float]]]
"""Epochs, and the percent of every seed after them."""


def epochs_until(run: PlannedRun, round_number: int) -> int:
    """Epochs that a run has trained for when a round of it ends."""
    rounds = [r for r in range(round_number + 1) if run.config.method.trains(r)]
    return len(rounds) * run.config.optim.num_epochs


def difference(above: Curve, below: Curve) -> Curve:
    """``above`` minus ``below`` after the same epochs and of the same seed, where both have it."""
    others = dict(below)
    both = [(epochs, mine, others[epochs]) for epochs, mine in above if epochs in others]
    return [(epochs, [a - b for a, b in zip(mine, theirs, strict=True)]) for epochs, mine, theirs in both]


def curves_markdown(rows: list[dict[str, Any]], heading: str, compared: tuple[str, str]) -> list[str]:
    """A table of one column's curves, a row each, and a last row of how far the two compared ones are apart.

    Args:
        rows: of ``collect``, with ``rounds``.
        heading: of the column.
        compared: labels of two rows with the same seeds.
    """
    curves = _curves(rows, heading)
    apart = difference(curves[compared[0]], curves[compared[1]])
    epochs = sorted({at for curve in curves.values() for at, _ in curve})

    def row(label: str, curve: Curve, sign: str = "") -> str:
        found = dict(curve)
        cells = [spread(found[at], sign, digits=2) if at in found else "" for at in epochs]
        return f"| {label} | {' | '.join(cells)} |"

    return [
        f"| {heading}, after epochs | {' | '.join(map(str, epochs))} |",
        f"| --- |{' ---: |' * len(epochs)}",
        *(row(label, curve) for label, curve in curves.items()),
        row(f"{compared[0]} - {compared[1]}", apart, "+"),
    ]


def draw_curves(record: dict[str, Any], out: Path) -> None:
    """A panel a column: every row's mean over epochs, with a band from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    headings = list(record["rows"][0]["values"])
    figure = Figure((3.6 * len(headings), 3.4), layout="constrained")
    panels = figure.subplots(1, len(headings), squeeze=False)[0]
    for heading, panel in zip(headings, panels, strict=True):
        for label, curve in _curves(record["rows"], heading).items():
            epochs, values = [at for at, _ in curve], [found for _, found in curve]
            (line,) = panel.plot(epochs, [statistics.mean(v) for v in values], "o-", markersize=3, label=label)
            panel.fill_between(
                epochs, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2
            )
        panel.set_xlabel("epochs")
        panel.set_title(f"{heading}, %", size=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7)
    figure.suptitle(f"{record['table']}, {record['scale']} (lines: mean; bands: lowest to highest seed)", size=8)
    figure.savefig(out)


def spread(values: list[float], sign: str = "", *, digits: int = 1) -> str:
    """Mean and, of several seeds, standard deviation."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _curves(rows: list[dict[str, Any]], heading: str) -> dict[str, Curve]:
    return {row["label"]: [(at["epochs"], at["values"][heading]) for at in row["rounds"]] for row in rows}
