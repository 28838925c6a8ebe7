"""Exact neighbours (eq 1) and entropies (eq 5) of all samples, in one sweep over their similarities.

On CPUs every pair of samples is scored once, in float32, by compiled tiles (cpu_sweep.py); on GPUs rows are scored
against all columns (gpu_sweep.py). Both hand over sums, a few more candidates than neighbours, and a bound on what they
left out. Candidates are scored again in float64 and put into the canonical order; rows that the bound leaves open are
searched again as a whole. So the neighbours are those of float64, on any device, for any number of threads and ranks.
"""

from dataclasses import dataclass

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.candidates import DenseSearch, add_candidates, search_all
from andscale.indexing.cpu_sweep import RowState, default_threads, sweep_between, sweep_within
from andscale.indexing.device_sweep import DeviceRequest, has_gpu, sweep_on_device
from andscale.indexing.partials import NO_SCORE, Partials
from andscale.indexing.ring import Ring, Shard, decide, num_undecided, sweep_all_columns, sweep_pairs_once
from andscale.metrics import Progress
from andscale.store.feature_rows import check_features

_MARGIN = 8
"""Candidates beyond k: room for rounding and for short runs of ties."""

_SHARP_TEMPERATURE = 0.01
"""Below this, float32 similarities divided by tau are too coarse for the promised entropies: float64 then."""


@dataclass(frozen=True)
class Discovery:
    """Neighbourhoods of the n samples of a rank; of all N samples where there is one rank.

    Attributes:
        neighbour_ids: (n, K) int64, nearest first, ties by smaller id, the sample itself left out by id.
        similarities: (n, K) float32.
        entropies: (n,) float32, nats (eq 5).
        num_searched_again: rows, over all ranks, that float32 could not decide.
        engine: what scored the pairs: "cpu float32", "gpu float16", ...
    """

    neighbour_ids: np.ndarray
    similarities: np.ndarray
    entropies: np.ndarray
    num_searched_again: int = 0
    engine: str = ""


@dataclass(frozen=True)
class Request:
    """What to find.

    Attributes:
        num_neighbours: K.
        temperature: tau.
        precision: of the scores on a GPU: "auto", "float32" or "float16".
        num_threads: of the CPU sweep; None: one a core.
    """

    num_neighbours: int
    temperature: float
    precision: str = "auto"
    num_threads: int | None = None

    def check(self, num_samples: int) -> None:
        """Raise UsageError for k >= N, k < 1 or a temperature that is not positive."""
        k = self.num_neighbours
        if k < 1:
            raise UsageError(f"k = {k}: at least one neighbour is needed")
        if k >= num_samples:
            raise UsageError(
                f"k = {k} neighbours cannot be had from {num_samples} samples: k must be at most {num_samples - 1}"
            )
        if not self.temperature > 0 or not np.isfinite(self.temperature):
            raise UsageError(f"temperature = {self.temperature}: it must be a positive number")


def discover(features: np.ndarray, request: Request, ring: Ring | None = None) -> Discovery:
    """Neighbours (eq 1) and entropies (eq 5) of every sample among all samples.

        H_i = log sum_j e^{d_ij} - sum_j e^{d_ij} d_ij / sum_j e^{d_ij},   d_ij = (s_ij - 1) / tau

    Args:
        features: (n, D) float32, unit length: the samples ``ring.rows(rank)``.
        request: K, tau and how.
        ring: who holds which samples; None: this process holds all.

    Returns:
        The answer for those samples.

    Raises:
        UsageError: K or tau out of range; features of another dtype or shape.
        RunError: features that are not finite or not of unit length; their ids are named.
    """
    ring = Ring(len(features)) if ring is None else ring
    request.check(ring.num_samples)
    features = checked_features(features, ring)
    own = Shard.begin(ring.rows(ring.world.rank).start, features, request.num_neighbours)
    num_threads = request.num_threads or default_threads()
    if request.temperature < _SHARP_TEMPERATURE:
        engine = "cpu float64"
        _sweep_in_float64(own, ring, request.temperature, num_threads)
    elif has_gpu():
        precision = "float16" if request.precision == "auto" else request.precision
        engine = sweep_on_device(own, ring, DeviceRequest(request.temperature, precision, num_threads))
    else:
        engine = "cpu float32"
        _sweep_on_cpu(own, ring, request, num_threads)
    num_searched_again = _decide_in_float64(own, ring, request.temperature, num_threads)
    found = own.partials
    # rounding can leave a value of 1e-8 on the wrong side of zero
    entropies = np.maximum(found.entropies(), 0).astype(np.float32)
    return Discovery(found.ids, found.scores, entropies, num_searched_again, engine)


def checked_features(features: np.ndarray, ring: Ring) -> np.ndarray:
    """This rank's features, C-contiguous; UsageError or RunError unless they are what ``discover`` takes."""
    rows = ring.rows(ring.world.rank)
    if features.ndim != 2 or features.dtype != np.float32:
        raise UsageError(f"features are {features.dtype} of shape {features.shape}: float32 of shape (N, D) is needed")
    if len(features) != len(rows):
        raise UsageError(f"rank {ring.world.rank} was given {len(features)} features, its share is {len(rows)}")
    check_features("features", np.arange(rows.start, rows.stop), features)
    return np.ascontiguousarray(features)


def _sweep_on_cpu(own: Shard, ring: Ring, request: Request, num_threads: int) -> None:
    num_candidates = min(request.num_neighbours + _MARGIN, ring.num_samples)
    temperature = request.temperature

    def begin(shard: Shard) -> RowState:
        return RowState.begin(shard.start, shard.features, num_candidates, shard.floors)

    def within(shard: Shard) -> None:
        if len(shard.features):
            state = begin(shard)
            sweep_within(state, temperature, num_threads, progress)
            _absorb(shard, state, shard, num_threads)

    def between(lower: Shard, upper: Shard, blocks: range) -> None:
        states = begin(lower), begin(upper)
        sweep_between(*states, blocks, temperature, num_threads, progress)
        _absorb(lower, states[0], upper, num_threads)
        _absorb(upper, states[1], lower, num_threads)

    # each pair once, over all ranks
    num_pairs = ring.num_samples * (ring.num_samples + 1) // 2 // ring.world.world_size
    with Progress("neighbourhoods", num_pairs, "pairs", enabled=ring.world.is_main) as progress:
        sweep_pairs_once(own, ring, within, between)


def _decide_in_float64(own: Shard, ring: Ring, temperature: float, num_threads: int) -> int:
    counts = num_undecided(own)
    total = sum(counts) * len(own.features)
    with Progress("searched again", total, "pairs", enabled=ring.world.is_main) as progress:
        dense = DenseSearch(temperature, num_threads, progress)

        def search(queries: np.ndarray, ids: np.ndarray, shard: Shard, found: Partials) -> None:
            search_all(queries, ids, shard.features, shard.start, found, dense)

        decide(own, ring, counts, search)
    return sum(counts)


def _absorb(shard: Shard, state: RowState, columns: Shard, num_threads: int) -> None:
    """Take over what a sweep of some columns found for a shard's rows."""
    num_rows, found = len(shard.features), shard.partials
    found.weight_sums += state.sums[0, :num_rows]
    found.weighted_exponents += state.sums[1, :num_rows]
    # a threshold that never rose has left nothing out
    cuts = np.where(state.thresholds[:num_rows] > NO_SCORE, state.thresholds[:num_rows], NO_SCORE)
    np.maximum(found.cuts, cuts, out=found.cuts)
    ids = state.ids[:num_rows]
    add_candidates(found, shard.features, columns.features, columns.start, ids, num_threads)
    shard.raise_floors()


def _sweep_in_float64(own: Shard, ring: Ring, temperature: float, num_threads: int) -> None:
    total = len(own.features) * ring.num_samples
    with Progress("neighbourhoods in float64", total, "pairs", enabled=ring.world.is_main) as progress:
        search = DenseSearch(temperature, num_threads, progress)
        ids = np.arange(own.start, own.start + len(own.features), dtype=np.int64)

        def sweep(rows: Shard, columns: Shard) -> None:
            search_all(rows.features, ids, columns.features, columns.start, rows.partials, search)

        sweep_all_columns(own, ring, sweep)
