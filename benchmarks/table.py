"""The measurements as Markdown: the comparison, the targets, the growth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bench import Results
from benchmarks.measuring import Measurement, ratio
from benchmarks.peers import all_peers

NOT_KNOWN = "-"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Target:
    """A ratio of seconds that ought to be reached.

    Attributes:
        title: of the row.
        numerator: short name of a job.
        denominator: likewise.
        aim: hoped for.
        required: the least that is accepted.
        at_least: whether larger is better.
    """

    title: str
    numerator: str
    denominator: str
    aim: float
    required: float
    at_least: bool = False

    def verdict(self, value: float | None) -> str:
        """Whether a measured ratio reaches the aim, what is required, or neither."""
        if value is None:
            return "not measured"
        sign = 1 if self.at_least else -1
        if sign * value >= sign * self.aim:
            return "aim reached"
        return "required reached, aim missed" if sign * value >= sign * self.required else "missed"


def targets() -> list[Target]:
    """What the comparison is held against."""
    return [
        Target("original algorithm / andscale", "original", "ours", 8, 5.5, at_least=True),
        Target("andscale / FAISS IndexFlatIP", "ours", "faiss", 0.35, 0.55),
        Target("andscale / bare GEMM", "ours", "gemm", 0.6, 0.95),
        Target("andscale k = 50 / k = 1", "ours k=50", "ours", 1.4, 1.8),
        Target("1 rank / 2 ranks, one thread each", "1 rank", "2 ranks", 1.8, 1.8, at_least=True),
    ]


def comparison(results: Results) -> str:
    """One row a job: what it gives, how right, how fast, how much memory."""
    header = ["", "gives", "recall", "error of H (nats)", "seconds", "runs", "peak memory (MiB)", "x andscale"]
    peers, rows = all_peers(), []
    ours = results.measurements["ours"]
    for name, job in results.jobs.items():
        found = results.measurements[name]
        gives = peers[job.peer].gives if job.peer in peers else "neighbours, H"
        times = ratio(found, ours)
        rows.append([
            job.title, found.problem if found.median is None else gives, *_accuracy(results, name),
            seconds(found.median), str(len(found.seconds)),
            NOT_KNOWN if found.peak_bytes is None else f"{found.peak_bytes / 1024**2:,.0f}", number(times, 2),
        ])  # fmt: skip
    return markdown(header, rows)


def verdicts(measurements: dict[str, Measurement]) -> str:
    """One row a target."""
    rows = []
    for target in targets():
        value = ratio(measurements[target.numerator], measurements[target.denominator])
        sign = ">=" if target.at_least else "<="
        required = NOT_KNOWN if target.required == target.aim else f"{sign} {target.required:g}"
        rows.append([target.title, f"{sign} {target.aim:g}", required, number(value, 2), target.verdict(value)])
    return markdown(["ratio of seconds", "aim", "required", "measured", "verdict"], rows)


def growth(results: Results) -> str:
    """One row a size, one column a method; "not run" where the time did not suffice."""
    names = list(results.growth)
    rows = [
        [f"{size:,}", *(seconds(results.growth[name].get(size), missing=NOT_RUN) for name in names)]
        for size in results.settings.sizes
    ]
    return markdown(["N", *(f"{results.jobs[name].title} (s)" for name in names)], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal: words to the left, figures to the right."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    is_figure = [
        all(row[c][:1].isdigit() or row[c] in (NOT_KNOWN, NOT_RUN) for row in rows) for c in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if figure else cell.ljust(width)
            for cell, width, figure in zip(cells, widths, is_figure, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = "".join(
        f"|{'-' * (width + 1)}:" if figure else f"|{'-' * (width + 2)}"
        for width, figure in zip(widths, is_figure, strict=True)
    )
    return "\n".join([line(header), rule + "|", *map(line, rows)])


def number(value: float | None, digits: int) -> str:
    """A figure with so many decimals."""
    return NOT_KNOWN if value is None else f"{value:,.{digits}f}"


def seconds(value: float | None, missing: str = NOT_KNOWN) -> str:
    """Three significant digits, or what stands for none."""
    if value is None:
        return missing
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _accuracy(results: Results, name: str) -> list[str]:
    found, truth = results.measurements[name], results.truth
    recall = truth.recall(np.array(found.ids), results.jobs[name].k) if found.ids else None
    error = truth.entropy_error(np.array(found.entropies)) if found.entropies else None
    return [number(recall, 4), NOT_KNOWN if error is None else f"{error:.1e}"]
