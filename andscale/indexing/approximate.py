"""Neighbours and entropies beyond the exact range: near samples are scored in full, far ones are drawn from.

Samples are put into an order in which near ones stand together and cut into blocks. Pairs of near blocks are scored
in full by the tiles of the exact sweep; what the other pairs add to the softmax is estimated without bias from a
stratified sample of them, and how wrong that may be is part of the answer. Neighbours come from the near blocks and,
where one is given, from a FAISS index.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from andscale.errors import UsageError
from andscale.indexing.candidates import add_candidates, merge
from andscale.indexing.clusters import cluster_order
from andscale.indexing.cpu_sweep import RowState, default_threads
from andscale.indexing.exact import Discovery, Request, checked_features
from andscale.indexing.faiss_index import index_kind
from andscale.indexing.near_blocks import BlockPairs, pair_blocks, sweep_pairs
from andscale.indexing.partials import BLOCK_ROWS, NO_ID, NO_SCORE, Partials
from andscale.indexing.ring import Ring, gather_arrays
from andscale.indexing.row_sweep import Strata, draw_far, draw_middle, estimate_rows
from andscale.metrics import Progress

_MARGIN = 4
"""Candidates beyond K that are scored again in float64."""

_MAX_CENTRES = 16_384
_LEAST_TEMPERATURE = 0.01
_SEARCHED_ROWS = 65_536


@dataclass(frozen=True)
class Effort:
    """What may be scored for the rows of a block of 480.

    Attributes:
        num_near: blocks that are scored in full, beside the block itself and those that ask for it.
        num_middle: blocks that a tenth is drawn from.
    """

    num_near: int = 8
    num_middle: int = 16


@dataclass(frozen=True)
class ApproximateDiscovery(Discovery):
    """A ``Discovery`` whose neighbours may miss nearer ones and whose entropies are estimates.

    Attributes:
        entropy_stderr: (n,) float32, nats, the standard error of each entropy; errors beyond three of them are some
            five times as frequent as a normal distribution's (docs/scale.md).
        figures: near_fraction (of all pairs of blocks), mean_entropy_stderr_nats: for the manifest.
    """

    entropy_stderr: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    figures: dict[str, Any] = field(default_factory=dict)


def discover_approximately(
    features: np.ndarray,
    request: Request,
    index: Any = None,
    seed: int = 0,
    ring: Ring | None = None,
    *,
    effort: Effort | None = None,
) -> ApproximateDiscovery:
    """Neighbours (eq 1), mostly the nearest, and estimates of the entropies (eq 5), with their standard errors.

        H_i = ln S_i - ln 2 T_i / S_i,   S_i = sum_j 2^x_ij,   T_i = sum_j 2^x_ij x_ij,
        x_ij = (s_ij - 1) log2(e) / tau

    S and T are exact over the near blocks, which hold the sample itself once, and a stratified estimate over all
    others: its expectation over seeds is S and T themselves. H is a smooth function of them, so its bias is O(1/m) in
    the m samples drawn: of the order of its variance in nats^2 (1e-3 where the standard error is 0.03), and small
    beside the standard error. That is the delta method's, from the scatter of repetitions of the estimate; few
    repetitions are drawn, so half of a row's variance is its own and half the mean of its block's. Where one heavy
    sample lies in a far block and is not drawn, the row's own scatter cannot know of it.

    The answer is the same for the same seed, kind of machine and index, for any number of threads and ranks. Every
    rank holds all features, twice.

    Args:
        features: (n, D) float32, unit length: the samples ``ring.rows(rank)``.
        request: K, tau, threads.
        index: a FAISS index over all features, whose answers join the candidates; None, or ``flat``, which would
            take longer than the exact sweep: near blocks alone.
        seed: of the clusters and of the draws.
        ring: who holds which samples; None: this process holds all.
        effort: what is scored.

    Returns:
        The answer for those samples.

    Raises:
        UsageError: K or tau out of range; features of another dtype or shape.
        RunError: features that are not finite or not of unit length; their ids are named.
    """
    ring = Ring(len(features)) if ring is None else ring
    request.check(ring.num_samples)
    if request.temperature < _LEAST_TEMPERATURE:
        raise UsageError(
            f"temperature = {request.temperature}: approximate entropies need at least {_LEAST_TEMPERATURE}; "
            'take index.mode = "exact"'
        )
    features = gather_arrays(
        checked_features(features, ring), [len(ring.rows(rank)) for rank in range(ring.world.world_size)]
    )
    work = _Work(features, request, effort or Effort(), seed, ring)
    partials = work.sweep()
    results = work.estimate()
    if index is not None and index_kind(index) != "flat":
        work.add_from_index(partials, index)
    return work.collect(partials, results)


class _Work:
    """One rank's part: the blocks ``self.blocks`` of the order."""

    def __init__(self, features: np.ndarray, request: Request, effort: Effort, seed: int, ring: Ring):
        num_blocks = -(-len(features) // BLOCK_ROWS)
        self.request, self.seed, self.ring, self.original = request, seed, ring, features
        self.num_threads = request.num_threads or default_threads()
        self.order = cluster_order(features, max(1, min(num_blocks, _MAX_CENTRES)), seed)
        self.features = features[self.order]
        # K neighbours must be there, whatever stands in the last block
        least = -(-(request.num_neighbours + 1) // BLOCK_ROWS)
        self.pairs: BlockPairs = pair_blocks(self.features, max(effort.num_near, least), effort.num_middle)
        self.state: RowState = self._begin()

    def shares(self) -> list[range]:
        """The blocks of every rank: consecutive ones, so most near pairs lie within a rank."""
        size, count = self.ring.world.world_size, self.pairs.num_blocks
        return [range(count * rank // size, count * (rank + 1) // size) for rank in range(size)]

    @property
    def blocks(self) -> range:
        """This rank's blocks."""
        return self.shares()[self.ring.world.rank]

    def rows(self, blocks: range) -> slice:
        """The places of blocks in the order."""
        return slice(blocks.start * BLOCK_ROWS, min(blocks.stop * BLOCK_ROWS, len(self.order)))

    def own_ids(self) -> np.ndarray:
        """The sample ids of this rank's rows, (n,) int64."""
        return self.order[self.rows(self.blocks)]

    def _begin(self) -> RowState:
        # rows of other ranks take no candidates; their sums are not read
        cuts = np.full(len(self.order), np.inf, np.float32)
        cuts[self.rows(self.blocks)] = NO_SCORE
        return RowState.begin(0, self.features, min(self.request.num_neighbours + _MARGIN, len(self.order)), cuts)

    def sweep(self) -> Partials:
        """Score the near pairs of this rank's blocks; returns its rows' K best, ids being sample ids."""
        near, own = self.pairs.near, self.blocks
        near = near[((near >= own.start) & (near < own.stop)).any(axis=1)]
        is_main = self.ring.world.is_main
        with Progress("near pairs", len(near) * BLOCK_ROWS**2, "pairs", enabled=is_main) as progress:
            if len(near):
                sweep_pairs(self.state, near, self.request.temperature, self.num_threads, progress)
        rows = self.rows(own)
        partials = Partials.empty(rows.stop - rows.start, self.request.num_neighbours)
        places = self.state.ids[rows]
        ids = np.where(places >= 0, self.order[places], NO_ID)
        # by sample ids, which the canonical order goes by
        add_candidates(partials, self.features[rows], self.original, 0, ids, self.num_threads)
        return partials

    def add_from_index(self, partials: Partials, index: Any) -> None:
        """Add what a FAISS index finds for this rank's rows."""
        from andscale.indexing.index_search import search

        ids = self.own_ids()
        count = min(self.request.num_neighbours + 1, len(self.order))  # one may be the sample itself
        with Progress("index", len(ids), "samples", enabled=self.ring.world.is_main) as progress:
            for start in range(0, len(ids), _SEARCHED_ROWS):
                turn = slice(start, start + _SEARCHED_ROWS)
                queries = self.original[ids[turn]]
                _, found = search(index, queries, count)
                known = np.column_stack([ids[turn], partials.ids[turn]])
                found[(found[:, :, None] == known[:, None, :]).any(axis=2)] = NO_ID
                part = Partials.empty(len(found), self.request.num_neighbours)
                add_candidates(part, queries, self.original, 0, found, self.num_threads)
                mine = Partials.empty(len(found), self.request.num_neighbours)
                mine.scores, mine.ids = partials.scores[turn], partials.ids[turn]
                merge(mine, part)
                progress.advance(len(found))

    def estimate(self) -> np.ndarray:
        """Entropy and its variance, (2, n) float64, of this rank's rows."""
        temperature, rows = self.request.temperature, self.rows(self.blocks)
        far, far_size = draw_far(self.features, self.seed, temperature)
        draws = draw_middle(self.features, self.seed, temperature), far
        strata = Strata(self.pairs.near_lists(), self.pairs.middle_lists(), far_size)
        results = estimate_rows(self.features, self.blocks, self.state.sums, draws, strata, self.num_threads)
        entropies, variances = results[0], results[1].reshape(-1, BLOCK_ROWS)
        filled = np.arange(results.shape[1]).reshape(-1, BLOCK_ROWS) < rows.stop - rows.start
        shared = (variances * filled).sum(axis=1, keepdims=True) / np.maximum(filled.sum(axis=1, keepdims=True), 1)
        variances = (variances + shared) / 2
        return np.stack([entropies, variances.ravel()])[:, : rows.stop - rows.start]

    def collect(self, partials: Partials, results: np.ndarray) -> ApproximateDiscovery:
        """Bring the rows of all ranks into the order of ids and cut out this rank's."""
        rows = [self.rows(blocks) for blocks in self.shares()]
        counts = [span.stop - span.start for span in rows]
        own = self.ring.rows(self.ring.world.rank)
        place = np.empty(len(self.order), np.int64)
        place[self.order] = np.arange(len(self.order))
        mine = place[own.start : own.stop]
        entropies, variances = gather_arrays(np.ascontiguousarray(results.T), counts)[mine].T
        highest = np.log(len(self.order))
        pairs = self.pairs
        return ApproximateDiscovery(
            neighbour_ids=gather_arrays(partials.ids, counts)[mine],
            similarities=gather_arrays(partials.scores, counts)[mine],
            entropies=np.clip(entropies, 0, highest).astype(np.float32),
            engine="cpu float32, near blocks",
            entropy_stderr=np.sqrt(variances).astype(np.float32),
            figures={
                "near_fraction": round((2 * len(pairs.near) - pairs.num_blocks) / pairs.num_blocks**2, 6),
                "mean_entropy_stderr_nats": round(float(np.sqrt(gather_arrays(results[1], counts)).mean()), 6),
            },
        )
