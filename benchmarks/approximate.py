"""``python -m benchmarks.approximate``: approximate discovery beside the exact sweep on this machine's CPU."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from andscale.indexing.approximate import ApproximateDiscovery, Effort, discover_approximately
from andscale.indexing.exact import Discovery, Request, discover
from andscale.indexing.index_building import build_index
from andscale.indexing.selection import select_anchors
from benchmarks.data import clustered_unit_vectors

_EFFORTS = (Effort(2, 4), Effort(4, 8), Effort(), Effort(16, 24), Effort(32, 48))


@dataclass(frozen=True)
class Row:
    """One setting beside the exact answer.

    Attributes:
        name: what was run.
        seconds: of the discovery, clusters included.
        index_seconds: of building the FAISS index that it used; 0 without one.
        rank_correlation: Spearman's, of the entropies.
        overlap: share of the exact quarter of lowest entropy that was selected.
        recall_at_1: share of samples whose nearest neighbour was found.
        mean_stderr: mean of entropy_stderr, nats.
        rms_error: root mean square of the entropies' true errors, nats.
        coverage: share of samples whose true entropy is within two standard errors.
    """

    name: str
    seconds: float
    index_seconds: float
    rank_correlation: float
    overlap: float
    recall_at_1: float
    mean_stderr: float
    rms_error: float
    coverage: float


def measure(num_samples: int, dim: int = 128, repeats: int = 3, index_kind: str | None = None) -> list[Row]:
    """The exact sweep and approximate ones of several efforts, on overlapping clusters (benchmarks/data.py).

    Args:
        num_samples: N.
        dim: D.
        repeats: runs of each; the median time is told, and figures are of the last one's seed.
        index_kind: a FAISS index to join, as the last row.
    """
    features = clustered_unit_vectors(num_samples, dim)
    request = Request(num_neighbours=1, temperature=0.1)
    # compile, and wake the thread pools
    discover(features[:2000], request)
    discover_approximately(features[:2000], request)
    exact_seconds, exact = _timed(lambda _: discover(features, request), min(repeats, 2))
    rows = [Row("exact", exact_seconds, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0)]
    for effort in _EFFORTS:
        seconds, found = _timed(
            lambda seed, e=effort: discover_approximately(features, request, None, seed, effort=e), repeats
        )
        rows.append(_compare(f"{effort.num_near} near, {effort.num_middle} middle", found, exact, (seconds, 0.0)))
    if index_kind is not None:
        started = time.perf_counter()
        index = build_index(features, index_kind)
        index_seconds = time.perf_counter() - started
        seconds, found = _timed(lambda seed: discover_approximately(features, request, index, seed), 1)
        rows.append(_compare(f"default effort and {index_kind}", found, exact, (seconds, index_seconds)))
    return rows


def report(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | s | of exact | index s | rank corr. | overlap | recall@1 | mean stderr | rms error | within 2 stderr |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.seconds:.2f} | {r.seconds / rows[0].seconds:.3f} | {r.index_seconds:.1f} | "
            f"{r.rank_correlation:.4f} | {r.overlap:.4f} | {r.recall_at_1:.4f} | {r.mean_stderr:.4f} | "
            f"{r.rms_error:.4f} | {r.coverage:.3f} |"
        )
    return "\n".join(lines)


def _timed(run: Callable[[int], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of run(seed) for some seeds, and what the last one found."""
    times = []
    for seed in range(repeats):
        started = time.perf_counter()
        found = run(seed)
        times.append(time.perf_counter() - started)
    return float(np.median(times)), found


def _compare(name: str, found: ApproximateDiscovery, exact: Discovery, seconds: tuple[float, float]) -> Row:
    error = found.entropies.astype(np.float64) - exact.entropies
    chosen, right = (select_anchors(d.entropies, 1, 4) for d in (found, exact))
    ranks = [np.argsort(np.argsort(d.entropies, kind="stable"), kind="stable") for d in (found, exact)]
    return Row(
        name,
        *seconds,
        rank_correlation=float(np.corrcoef(*ranks)[0, 1]),
        overlap=float((chosen & right).sum() / right.sum()),
        recall_at_1=float((found.similarities[:, 0] >= exact.similarities[:, 0]).mean()),
        mean_stderr=float(found.entropy_stderr.mean()),
        rms_error=float(np.sqrt((error**2).mean())),
        coverage=float((np.abs(error) <= 2 * found.entropy_stderr + 1e-5).mean()),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.approximate", description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000, help="N (200,000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each setting (3)")
    parser.add_argument("--index", metavar="KIND", help="add a row with a FAISS index of this kind")
    options = parser.parse_args(arguments)
    print(report(measure(options.samples, repeats=options.repeats, index_kind=options.index)))


if __name__ == "__main__":
    main()
