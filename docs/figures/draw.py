"""Draws the figures of docs/concepts.md: ``python docs/figures/draw.py`` writes them beside this file.

The points are made up; neighbours, probabilities and entropies are computed from them by the equations.
"""

import math
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STYLE = """
  .panel { fill: #fff; stroke: #cfd8dc }
  .box { fill: #e0f2f1; stroke: #00897b; stroke-width: 1.5 }
  .file { fill: #eceff1; stroke: #90a4ae; stroke-width: 1.2 }
  .line { stroke: #607d8b; stroke-width: 1.6; fill: none }
  .thin { stroke: #90a4ae; stroke-width: 1; fill: none }
  .head { fill: #607d8b }
  .anchor { fill: #00897b }
  .instance { fill: #fff; stroke: #78909c; stroke-width: 1.4 }
  .pair { stroke: #00897b; stroke-width: 7; stroke-linecap: round; opacity: .3 }
  .accent { fill: #ef6c00 }
  .accent-line { stroke: #ef6c00; stroke-width: 2; fill: none }
  text { font: 14px sans-serif; fill: #263238 }
  .small { font-size: 12px; fill: #546e7a }
  .bold { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #263238; stroke: #455a64 }
    .box { fill: #004d40 }
    .file { fill: #37474f; stroke: #78909c }
    .instance { fill: #263238; stroke: #b0bec5 }
    .line, .thin { stroke: #90a4ae }
    .head { fill: #90a4ae }
    .anchor { fill: #26a69a }
    .pair { stroke: #26a69a; opacity: .4 }
    text { fill: #eceff1 }
    .small { fill: #b0bec5 }
  }
"""
TAU = 0.02
"""Of the made-up points; they lie closer together than 128 numbers do."""


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A figure on a panel of its own, so that it reads on light and on dark pages."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="panel" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """One line; ``kind`` is a class of the style."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, words: tuple[str, ...], kind: str = "box") -> str:
    """A rounded box of 44 pixels with one or two lines in it, centred at (x, y)."""
    lines = [text(x, y + 5, words[0], "bold" if kind == "box" else "")]
    if len(words) == 2:
        lines = [text(x, y - 3, words[0], "bold" if kind == "box" else ""), text(x, y + 14, words[1], "small")]
    shape = f'<rect class="{kind}" x="{x - width / 2:.1f}" y="{y - 22:.1f}" width="{width}" height="44" rx="6"/>'
    return "\n".join([shape, *lines])


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "line", head: str = "head") -> str:
    """A straight arrow whose tip is at (x2, y2)."""
    angle = math.atan2(y2 - y1, x2 - x1)
    points = " ".join(
        f"{x2 - 9 * math.cos(angle + turn):.1f},{y2 - 9 * math.sin(angle + turn):.1f}" for turn in (-0.42, 0.42)
    )
    end_x, end_y = x2 - 6 * math.cos(angle), y2 - 6 * math.sin(angle)
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{end_x:.1f}" y2="{end_y:.1f}"/>'
        f'<polygon class="{head}" points="{x2:.1f},{y2:.1f} {points}"/>'
    )


def rounds() -> str:
    """Which job reads and writes what."""
    parts = []
    columns = {0: 120, 1: 360, 2: 600}
    for number, x in columns.items():
        parts.append(text(x, 30, f"round {number}" + (" ... R" if number == 2 else ""), "bold"))
        if number:
            parts += [
                box(x, 70, 150, ("index job", "neighbours, entropies")),
                box(x, 142, 150, ("neighbourhoods/",), "file"),
                arrow(x, 92, x, 120),
                arrow(x, 164, x, 192),
            ]
        parts += [
            box(x, 214, 150, ("training job", "images in")),
            box(x - 39, 286, 76, ("memory/",), "file"),
            box(x + 43, 286, 68, ("model/",), "file"),
            arrow(x - 39, 236, x - 39, 264),
            arrow(x + 43, 236, x + 43, 264),
            box(x + 43, 358, 112, ("evaluation",)),
            arrow(x + 43, 308, x + 43, 336),
        ]
    for number in (0, 1):
        x, following = columns[number], columns[number + 1]
        # memory to the next index job, memory and model to the next training job
        way = f"M{x - 60} 308 V324 H{x + 110} V70"
        parts.append(f'<path class="line" d="{way}"/>' + arrow(x + 110, 70, following - 75, 70))
        parts.append(f'<path class="line" d="M{x + 77} 286 H{x + 125} V222"/>')
        parts.append(arrow(x + 125, 222, following - 75, 222))
        parts.append(arrow(x + 110, 206, following - 75, 206))
    return svg(720, 392, "Rounds: training jobs leave a memory, index jobs make neighbourhoods of it", parts)


def made_up_points() -> list[tuple[float, float]]:
    """60 points of the plane: two dense groups, a loose one, and stragglers."""
    draw = random.Random(5)
    groups = [(-0.46, 0.12, 0.055, 18), (0.02, -0.20, 0.06, 16), (0.46, 0.14, 0.14, 16), (0.0, 0.12, 0.3, 10)]
    return [
        (draw.gauss(x, spread), draw.gauss(y, 0.8 * spread)) for x, y, spread, count in groups for _ in range(count)
    ]


def fit(points: list[tuple[float, float]], frame: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """Points in pixels, stretched over the frame (left, top, right, bottom)."""
    left, top, right, bottom = frame
    (least_x, most_x), (least_y, most_y) = ((min(values), max(values)) for values in zip(*points, strict=True))
    return [
        (
            left + (right - left) * (x - least_x) / (most_x - least_x),
            bottom - (bottom - top) * (y - least_y) / (most_y - least_y),
        )
        for x, y in points
    ]


def probabilities(points: list[tuple[float, float]]) -> list[list[float]]:
    """p_ij = exp(x_i.x_j / tau) / sum_k exp(x_i.x_k / tau), the points lifted onto the unit sphere."""
    lifted = [(x, y, math.sqrt(1 - x * x - y * y)) for x, y in points]
    rows = []
    for a in lifted:
        scores = [math.exp((sum(p * q for p, q in zip(a, b, strict=True)) - 1) / TAU) for b in lifted]
        rows.append([score / sum(scores) for score in scores])
    return rows


def entropies(rows: list[list[float]]) -> list[float]:
    """H_i = - sum_j p_ij log p_ij, nats (eq 5)."""
    return [-sum(p * math.log(p) for p in row if p > 0) for row in rows]


def by_entropy(rows: list[list[float]]) -> list[int]:
    """Numbers of the points, lowest entropy first, equal ones by number."""
    found = entropies(rows)
    return sorted(range(len(rows)), key=lambda i: (found[i], i))


def nearest(rows: list[list[float]], i: int) -> int:
    """The most similar other point."""
    return -max((p, -j) for j, p in enumerate(rows[i]) if j != i)[1]


def neighbourhoods() -> str:
    """Points, the quarter of lowest entropy as anchors, each with its nearest neighbour."""
    points = made_up_points()
    rows = probabilities(points)
    anchors = by_entropy(rows)[: len(points) // 4]
    place = fit(points, (30, 72, 570, 300))
    parts = [
        f'<line class="pair" x1="{place[i][0]:.1f}" y1="{place[i][1]:.1f}" '
        f'x2="{place[nearest(rows, i)][0]:.1f}" y2="{place[nearest(rows, i)][1]:.1f}"/>'
        for i in anchors
    ]
    parts += [
        f'<circle class="{"anchor" if i in anchors else "instance"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        for i, (x, y) in enumerate(place)
    ]
    legend = [("anchor", "anchor: pulled to its neighbourhood"), ("instance", "instance: pulled to itself alone")]
    for row, (kind, words) in enumerate(legend):
        parts.append(f'<circle class="{kind}" cx="24" cy="{24 + 22 * row}" r="5"/>')
        parts.append(text(38, 29 + 22 * row, words, "small", "start"))
    return svg(600, 330, "A quarter of the samples are anchors, each with its nearest neighbour", parts)


def entropy() -> str:
    """p_ij of the most and the least certain point, largest first."""
    rows = probabilities(made_up_points())
    order, found = by_entropy(rows), entropies(rows)
    parts = []
    for left, i, words in ((50, order[0], "certain"), (380, order[-1], "uncertain")):
        values = sorted(rows[i], reverse=True)[:24]
        parts.append(text(left + 130, 28, f"{words}: H = {found[i]:.2f} nats", "bold"))
        for number, value in enumerate(values):
            height = 150 * value / max(rows[order[0]])
            parts.append(
                f'<rect class="{"accent" if number == 0 else "anchor"}" x="{left + 11 * number}" '
                f'y="{200 - height:.1f}" width="8" height="{max(height, 0.5):.1f}"/>'
            )
        parts.append(f'<line class="thin" x1="{left - 6}" y1="200.5" x2="{left + 266}" y2="200.5"/>')
        parts.append(text(left + 130, 222, "samples j, most similar first (orange: itself)", "small"))
    parts.append('<g transform="translate(26 130) rotate(-90)">' + text(0, 0, "p_ij", "small") + "</g>")
    return svg(680, 240, "Low entropy: few samples share the probability. High entropy: many do", parts)


def curriculum() -> str:
    """Which share of the samples are anchors, round by round."""
    parts = [text(170, 26, "lowest entropy", "small", "start"), text(590, 26, "highest", "small", "end")]
    parts.append(arrow(270, 22, 532, 22, "thin"))
    for number in range(5):
        y = 42 + 32 * number
        parts.append(text(70, y + 16, f"round {number}", "bold"))
        for cell in range(20):
            kind = "anchor" if cell < 20 * number // 4 else "instance"
            parts.append(f'<rect class="{kind}" x="{170 + 21 * cell}" y="{y}" width="17" height="22" rx="3"/>')
        parts.append(text(648, y + 16, ("no anchors", "N / 4", "N / 2", "3 N / 4", "all N")[number], "small"))
    return svg(700, 214, "Anchors by round, for R = 4", parts)


def memory() -> str:
    """The update of a memory row, on the unit circle: eta = 0.5."""
    x, y, radius = 90.0, 262.0, 215.0
    old, new, eta = math.radians(24), math.radians(76), 0.5
    mean = tuple((1 - eta) * a + eta * b for a, b in zip(_point(old), _point(new), strict=True))
    angle = math.atan2(mean[1], mean[0])
    parts = [f'<path class="thin" d="M{x + radius} {y} A{radius} {radius} 0 0 0 {x} {y - radius}"/>']
    for direction, kind, head in ((old, "line", "head"), (new, "line", "head"), (angle, "accent-line", "accent")):
        end = _point(direction)
        parts.append(arrow(x, y, x + radius * end[0], y - radius * end[1], kind, head))
    a, b = _point(old), _point(new)
    parts.append(
        f'<line class="thin" stroke-dasharray="4 4" x1="{x + radius * a[0]:.1f}" y1="{y - radius * a[1]:.1f}" '
        f'x2="{x + radius * b[0]:.1f}" y2="{y - radius * b[1]:.1f}"/>'
    )
    parts.append(f'<circle class="accent" cx="{x + radius * mean[0]:.1f}" cy="{y - radius * mean[1]:.1f}" r="4"/>')
    labels = [(old, "m_i, as it was"), (new, "x_i, the sample's feature now"), (angle, "m_i, as it is kept")]
    for direction, words in labels:
        end = _point(direction)
        parts.append(text(x + radius * end[0] + 12, y - radius * end[1] + 2, words, "", "start"))
    parts.append(
        text(330, 250, "m_i &#8592; (1 - &#951;) m_i + &#951; x_i, then back to unit length", "small", "start")
    )
    return svg(640, 284, "A row of the memory moves towards the feature, and stays on the sphere", parts)


def _point(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


FIGURES = {
    "rounds": rounds,
    "neighbourhoods": neighbourhoods,
    "entropy": entropy,
    "curriculum": curriculum,
    "memory": memory,
}


def main() -> None:
    """Write every figure."""
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
