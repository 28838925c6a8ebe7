"""Discovery in the mode that fits, checked against float64, brought together on rank 0."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from andscale.config import IndexConfig
from andscale.distributed import gather_records
from andscale.indexing.approximate import ApproximateDiscovery, discover_approximately
from andscale.indexing.device_sweep import has_gpu, measure_device
from andscale.indexing.exact import Discovery, Request, discover
from andscale.indexing.float64_check import Claims, check_against_float64, check_rows, compare_with_float64
from andscale.indexing.mode import choose_mode
from andscale.indexing.ring import Ring, gather_arrays

_TIMED_FROM = 1_000_000
"""A GPU is timed from here on: below, no machine takes an hour."""


@dataclass(frozen=True)
class Answer:
    """What a discovery found and how.

    Attributes:
        found: of all samples on rank 0, of its own on the others.
        entropy_stderr: (n,) float32, nats; None where entropies are exact.
        figures: JSON values for the manifest: mode, engine, and how well it did.
    """

    found: Discovery
    entropy_stderr: np.ndarray | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def discover_checked(
    features: np.ndarray,
    request: Request,
    settings: IndexConfig,
    ring: Ring,
    seed: int = 0,
    open_index: Callable[[], Any] | None = None,
) -> Answer:
    """Discover, check some rows against float64, and bring the answer together on rank 0.

    Args:
        features: (n, D) float32, this rank's.
        request: K, tau and how.
        settings: ``mode`` and ``check_rows``.
        ring: who holds which samples.
        seed: of the rows that are checked, and of approximate discovery.
        open_index: gives the FAISS index over all features, on every rank; called in approximate mode only.

    Raises:
        UsageError: unsuitable settings or features.
        RunError: the answer disagrees with float64.
    """
    mode = _agreed_mode(settings, features, ring)
    rows = check_rows(ring.num_samples, settings.check_rows, seed)
    if mode == "exact":
        found = discover(features, request, ring)
        check_against_float64(features, _claims(found, ring), request.temperature, rows, ring)
        figures: dict[str, Any] = {"num_searched_again": found.num_searched_again}
        _say(ring, f"swept {ring.num_samples:,} samples, {found.engine}", figures["num_searched_again"])
        _say(ring, f"{len(rows)} rows searched again in float64: the same neighbours and entropies")
    else:
        index = open_index() if open_index else None
        found = discover_approximately(features, request, index, seed, ring)
        quality = compare_with_float64(features, _claims(found, ring), request.temperature, rows, ring)
        figures = found.figures | quality
        _say(ring, f"swept {ring.num_samples:,} samples approximately, {found.engine}")
        _say(ring, f"{len(rows)} rows against float64: " + ", ".join(f"{n} {v:.4g}" for n, v in quality.items()))
    figures = {"mode": mode, "engine": found.engine, "world_size": ring.world.world_size} | figures
    stderr = found.entropy_stderr if isinstance(found, ApproximateDiscovery) else None
    if stderr is not None:
        stderr = gather_arrays(stderr, _counts(ring))
    return Answer(gather_discovery(found, ring), stderr, figures)


def _agreed_mode(settings: IndexConfig, features: np.ndarray, ring: Ring) -> str:
    """Rank 0's choice, on every rank."""
    chosen = ""
    if ring.world.is_main:
        measure = measure_device if ring.num_samples >= _TIMED_FROM and has_gpu() else None
        dim = features.shape[-1]
        mode = choose_mode(settings.mode, ring.num_samples, dim, ring.world.world_size, measure)
        chosen = mode.name
        if mode.exact_s is not None:
            print(mode, flush=True)
    return str(gather_records(chosen)[0])


def _claims(found: Discovery, ring: Ring) -> Claims:
    start = ring.rows(ring.world.rank).start
    return Claims(start, found.neighbour_ids, found.similarities, found.entropies, "float16" in found.engine)


def gather_discovery(found: Discovery, ring: Ring) -> Discovery:
    """All ranks' answers, in the order of sample ids."""
    counts = _counts(ring)
    return replace(
        found,
        neighbour_ids=gather_arrays(found.neighbour_ids, counts),
        similarities=gather_arrays(found.similarities, counts),
        entropies=gather_arrays(found.entropies, counts),
    )


def _counts(ring: Ring) -> list[int]:
    return [len(ring.rows(rank)) for rank in range(ring.world.world_size)]


def _say(ring: Ring, line: str, num_searched_again: int = 0) -> None:
    if ring.world.is_main:
        ranks = f" on {ring.world.world_size} ranks" if "swept" in line and ring.world.world_size > 1 else ""
        again = f", {num_searched_again:,} rows searched again for ties" if num_searched_again else ""
        print(line + ranks + again, flush=True)
