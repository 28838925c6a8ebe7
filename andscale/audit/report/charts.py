"""Figures as inline SVG; colours are CSS variables of the page, texts are escaped.

A figure has a title and a description for those who hear it, and its numbers as text where they are few.
"""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 28, 38
_NUM_BINS, _MAX_MATRIX, _MAX_GROUPS = 40, 20, 8


@dataclass(frozen=True)
class Axes:
    """From values to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / ((high - low) or 1)

    def up(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / ((high - low) or 1)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About ``wanted`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text: 1,200 or 0.25."""
    if abs(value) >= 1_000_000:
        return f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:g}"


def entropy_histogram(entropies: np.ndarray, is_anchor: np.ndarray) -> Markup:
    """How many samples, and how many anchors, have which entropy; (N,) nats and (N,) bool."""
    low, high = float(entropies.min()), float(entropies.max())
    edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
    counts = np.histogram(entropies, edges)[0]
    anchors = np.histogram(entropies[is_anchor], edges)[0]
    axes = Axes((float(edges[0]), float(edges[-1])), (0, float(counts.max())))
    parts = [_frame(axes, "entropy, nats", "samples")]
    for kind, values in (("soft", counts), ("accent", anchors)):
        for left, right, count in zip(edges, edges[1:], values, strict=False):
            parts.append(_bar(axes, kind, (float(left), float(right)), float(count)))
    legend = [("soft", "all samples"), *([("accent", "anchors")] if is_anchor.any() else [])]
    description = (
        f"{len(entropies):,} samples from {low:.3f} to {high:.3f} nats, median {np.median(entropies):.3f}; "
        f"{int(is_anchor.sum()):,} are anchors."
    )
    return _svg("Entropy of all samples and of the anchors", description, [*parts, _legend(legend)])


def tenths_chart(purities: list[float]) -> Markup:
    """purity@1 of the tenths of the samples by rising entropy."""
    axes = Axes((0.4, len(purities) + 0.6), (0, 1))
    parts = [
        _frame(axes, "tenth of the samples, by rising entropy", "purity@1", x_ticks=list(range(1, len(purities) + 1)))
    ]
    for place, purity in enumerate(purities, start=1):
        parts.append(_bar(axes, "accent", (place - 0.4, place + 0.4), purity))
        parts.append(_text(axes.across(place), axes.up(purity) - 4, f"{purity:.2f}", "middle", "value"))
    description = "; ".join(f"tenth {place}: {purity:.4f}" for place, purity in enumerate(purities, start=1))
    return _svg("Purity by entropy tenth", description, parts)


def risk_chart(curve: list[dict[str, float]], auroc: float | None, area: float) -> Markup:
    """Share of wrong nearest neighbours among the most certain samples, over their share of all."""
    points = [(p["coverage"], p["risk"]) for p in curve]
    most = max(risk for _, risk in points) or 1.0
    axes = Axes((0, 1), (0, most * 1.1))
    described = f"AUROC {'undefined' if auroc is None else f'{auroc:.4f}'}, area under the curve {area:.4f}"
    parts = [
        _frame(axes, "coverage: share of samples trusted, most certain first", "risk"),
        _area(axes, points),
        _line(axes, points, "accent"),
        _text(_WIDTH - _RIGHT, 12, described, "end", "value"),
    ]
    last = f"{described}; risk {points[-1][1]:.4f} at full coverage, {points[len(points) // 2][1]:.4f} at half."
    return _svg("Risk over coverage", last, parts)


def occurrence_chart(occurrence: np.ndarray) -> Markup:
    """How many samples are how often the neighbour of others, (N,) int64; groups double in width."""
    most = int(occurrence.max())
    # 0, 1, 2, 3-4, 5-8, 9-16, ..; of long tails each group is 4, 8, .. times as wide as the one before
    for growth in (2, 4, 8, 16, 32, 64):
        starts = [0, 1, *(growth**i + 1 for i in range(most.bit_length()) if growth**i + 1 <= most)]
        starts = [start for start in starts if start <= most]
        if len(starts) <= _MAX_GROUPS:
            break
    ends = [*(start - 1 for start in starts[1:]), most]
    counts = np.histogram(occurrence, [*starts, most + 1])[0]
    names = [f"{a}" if a == b else f"{a}\u2013{b}" for a, b in zip(starts, ends, strict=True)]
    axes = Axes((-0.6, len(counts) - 0.4), (0, float(counts.max()) * 1.08))
    parts = [_frame(axes, "times among the neighbours of others", "samples", x_ticks=[])]
    for place, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        parts.append(_bar(axes, "accent", (place - 0.4, place + 0.4), count))
        parts.append(_text(axes.across(place), _HEIGHT - _BOTTOM + 14, _short_range(name), "middle", "tick"))
        parts.append(_text(axes.across(place), axes.up(count) - 4, _short(count), "middle", "value"))
    description = "; ".join(
        f"{name} times: {count:,} samples" for name, count in zip(names, counts.tolist(), strict=True)
    )
    return _svg("How often samples are neighbours of others", description, parts)


def rounds_chart(rounds: list[dict[str, float]]) -> Markup:
    """purity@1 of all and of the anchors by round."""
    numbers = [r["round"] for r in rounds]
    axes = Axes((numbers[0] - 0.2, numbers[-1] + 0.2), (0, 1))
    parts = [_frame(axes, "round", "purity@1", x_ticks=numbers if len(numbers) <= 12 else None)]
    for kind, key in (("soft", "purity_at_1"), ("accent", "purity_of_anchors")):
        points = [(r["round"], r[key]) for r in rounds if r[key] is not None]
        parts.append(_line(axes, points, kind))
        parts += [
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(kind, axes.across(x), axes.up(y))
            for x, y in points
        ]
    description = "; ".join(
        f"round {r['round']}: all {r['purity_at_1']:.4f}, anchors "
        + ("none" if r["purity_of_anchors"] is None else f"{r['purity_of_anchors']:.4f}")
        for r in rounds
    )
    parts.append(_legend([("soft", "all samples"), ("accent", "anchors")]))
    return _svg("Purity by round", description, parts)


def confusion_chart(counts: np.ndarray, names: list[str]) -> Markup | None:
    """A map of (C, C) counts, rows by class, columns by the nearest neighbour's; None for many classes."""
    size = len(names)
    if not 1 < size <= _MAX_MATRIX:
        return None
    cell = min(30.0, (_WIDTH - 120) / size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left, top = 112.0, 22.0
    parts = [_text(left, 13, "class of the nearest neighbour, in the same order", "start", "tick")]
    for row, name in enumerate(names):
        middle = top + (row + 0.5) * cell
        short = name if len(name) <= 15 else name[:14] + "…"
        parts.append(_text(left - 6, middle + 4, short, "end", "tick"))
        for column in range(size):
            share = float(shares[row, column])
            kind = "cell" if row == column else "cell wrong"
            parts.append(
                Markup(
                    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="opacity:{:.3f}"/>'
                ).format(kind, left + column * cell, top + row * cell, cell - 1, cell - 1, max(0.05, share**0.6))
            )
            if share >= 0.005 and cell >= 20:
                text = f"{100 * share:.0f}"
                parts.append(_text(left + (column + 0.5) * cell, middle + 4, text, "middle", "value"))
    right = float(np.trace(counts) / max(1, counts.sum()))
    description = f"Rows: classes; shares of their samples in percent. {100 * right:.1f} % lie on the diagonal."
    return _svg("Confusion between classes", description, parts, height=top + size * cell + 6)


def _short_range(name: str) -> str:
    """Of a long range where it begins."""
    return name if len(name) <= 7 else name.split("\u2013", maxsplit=1)[0] + "+"


def _short(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.2f}M"
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count}"


def _frame(axes: Axes, x_name: str, y_name: str, x_ticks: list[float] | None = None) -> Markup:
    parts = [_text(_WIDTH - _RIGHT, _HEIGHT - 6, x_name, "end", "axis"), _text(4, 12, y_name, "start", "axis")]
    for value in ticks(*axes.y, 4):
        height = axes.up(value)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, _WIDTH - _RIGHT, height, height
            )
        )
        parts.append(_text(_LEFT - 6, height + 4, _tick(value), "end", "tick"))
    for value in ticks(*axes.x) if x_ticks is None else x_ticks:
        parts.append(_text(axes.across(value), _HEIGHT - _BOTTOM + 14, _tick(value), "middle", "tick"))
    return Markup("").join(parts)


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1_000_000 else f"{value / 1000:g}k"
    return number(value)


def _bar(axes: Axes, kind: str, span: tuple[float, float], value: float) -> Markup:
    if not value:
        return Markup("")
    left, right, top = axes.across(span[0]), axes.across(span[1]), axes.up(value)
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, left, top, max(0.5, right - left - 0.6), axes.up(axes.y[0]) - top
    )


def _line(axes: Axes, points: list[tuple[float, float]], kind: str) -> Markup:
    path = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in points)
    return Markup('<polyline class="line {}" points="{}"/>').format(kind, path)


def _area(axes: Axes, points: list[tuple[float, float]]) -> Markup:
    floor = axes.up(axes.y[0])
    ends = f"{axes.across(points[0][0]):.1f},{floor:.1f}", f"{axes.across(points[-1][0]):.1f},{floor:.1f}"
    path = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in points)
    return Markup('<polygon class="area" points="{} {} {}"/>').format(ends[0], path, ends[1])


def _legend(entries: list[tuple[str, str]]) -> Markup:
    parts, right = [], _WIDTH - _RIGHT
    for kind, name in reversed(entries):
        right -= 7 * len(name)
        parts.append(Markup('<rect class="{}" x="{}" y="3" width="9" height="9"/>').format(kind, right - 14))
        parts.append(_text(right - 1, 12, name, "start", "axis"))
        right -= 26
    return Markup("").join(parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _svg(title: str, description: str, parts: list[Markup], height: float = _HEIGHT) -> Markup:
    return Markup('<svg role="img" viewBox="0 0 {} {:.0f}"><title>{}</title><desc>{}</desc>{}</svg>').format(
        _WIDTH, height, title, description, Markup("").join(parts)
    )
