"""``python -m benchmarks``: ours beside its peers on this machine's CPU, as tables and a plot."""

import argparse
import datetime
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import bench, table
from benchmarks.more import Section, run_section, sections
from benchmarks.plot import plot_growth

_PLOT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks-growth"
_SECTION_LIMIT_S = 300
_LIBRARIES = ("numpy", "torch", "faiss-cpu", "scikit-learn", "pynndescent", "usearch", "numba")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a run of seconds; its figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=Path, metavar="PATH", help="of the plot, without suffix (docs/benchmarks-growth)"
    )
    options = parser.parse_args(arguments)
    plot = options.plot or (None if options.quick else _PLOT)
    results = bench.run(bench.quick_settings() if options.quick else bench.Settings())
    more = run_more(quick=options.quick)
    print(f"\n{report(results)}\n{report_more(more)}")
    if plot:
        titles = {results.jobs[name].title: points for name, points in results.growth.items()}
        files = plot_growth(titles, plot, caption(results), results.jobs["ours"].title)
        print("wrote", *files)
    if options.json:
        figures = record(results) | {"more": {section.command: text for section, text in more.items()}}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print("wrote", options.json)


def report(results: bench.Results) -> str:
    """Everything that was measured, as Markdown."""
    settings = results.settings
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    rows = min(settings.judged_rows, settings.num_rows)
    lines = [
        f"{datetime.date.today()}; {bench.machine()}; {versions}",
        "",
        f"N = {settings.num_rows:,}, {caption(results)}.",
        "Peers ran in turn: seconds are medians over rounds, ratios medians of each round's ratio.",
        f"Recall@k and the largest |H - H_float64|: on {rows:,} rows; rounding ties count as right.",
        "Peak memory: of the first call, above what the process held before; of ranks, the largest.",
        "",
        table.comparison(results),
        "",
        table.verdicts(results.measurements),
        "",
        "Growth (median of three calls where one takes less than 2 s, else one call):",
        "",
        table.growth(results),
        "",
        f"The comparison and the growth took {results.took_s:.0f} s.",
    ]
    return "\n".join(lines)


def run_more(*, quick: bool) -> dict[Section, str]:
    """What the other benchmarks print."""
    printed = {}
    for section in sections(quick=quick):
        started = time.monotonic()
        printed[section] = run_section(section, _SECTION_LIMIT_S)
        bench.say(f"{section.command}: {time.monotonic() - started:.1f} s")
    return printed


def report_more(printed: dict[Section, str]) -> str:
    """Each under its title."""
    texts = []
    for section, text in printed.items():
        fence = "" if text.startswith("|") else "\n```"
        texts.append(f"\n{section.title} (`{section.command}`):\n{fence}\n{text}{fence}")
    return "\n".join(texts)


def caption(results: bench.Results) -> str:
    """What all figures have in common."""
    return f"D = {bench.DIM}, k = 1, tau = {bench.TAU}, clustered unit vectors, {results.num_threads} threads"


def record(results: bench.Results) -> dict[str, Any]:
    """Every figure, for programs."""
    return {
        "date": str(datetime.date.today()),
        "machine": bench.machine(),
        "num_threads": results.num_threads,
        "num_rows": results.settings.num_rows,
        "took_s": results.took_s,
        "jobs": {
            name: {
                "title": results.jobs[name].title,
                "seconds": list(found.seconds.values()),
                "peak_bytes": found.peak_bytes,
                "problem": found.problem,
            }
            for name, found in results.measurements.items()
        },
        "targets": {
            target.title: table.ratio(results.measurements[target.numerator], results.measurements[target.denominator])
            for target in table.targets()
        },
        "growth_s": results.growth,
    }


if __name__ == "__main__":
    main()
