"""The exact sweep over ranks: every rank keeps the rows of a range of samples, and the shards go round a ring.

On CPUs a pair of shards is scored once, for the rows of both: a shard visits half of the other ranks, carries what is
found for its rows with it, and sends that home. On GPUs, where rows are scored against all columns, a shard visits all
of them and carries its features only. Either way a rank never holds more than its own shard, the visiting one and the
one that arrives.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from andscale.distributed import World, all_gather_rows, exchange, gather_records
from andscale.indexing.candidates import merge, rounding, undecided_rows
from andscale.indexing.partials import BLOCK_ROWS, NO_SCORE, Partials

_QUERIES_A_TURN = 4096


@dataclass
class Shard:
    """The rows of a range of samples and what is known of them.

    Attributes:
        start: sample id of the first row, a multiple of BLOCK_ROWS.
        features: (n, D) float32.
        partials: n rows of K exact candidates.
        floors: (n,) float32, similarities up to this are not wanted: K samples are surely nearer.
    """

    start: int
    features: np.ndarray
    partials: Partials
    floors: np.ndarray

    @classmethod
    def begin(cls, start: int, features: np.ndarray, num_neighbours: int) -> "Shard":
        """Nothing known yet."""
        partials = Partials.empty(len(features), num_neighbours)
        return cls(start, features, partials, np.full(len(features), NO_SCORE, np.float32))

    def raise_floors(self) -> None:
        """After candidates came in: two roundings below the K-th score, nothing can become a neighbour."""
        np.maximum(self.floors, self.partials.scores[:, -1] - 2 * rounding(self.features.shape[1]), out=self.floors)

    def arrays(self) -> list[np.ndarray]:
        """Everything but the features, as it travels."""
        return [*self.partials.arrays(), self.floors]


@dataclass(frozen=True)
class Ring:
    """Who holds which samples.

    Attributes:
        num_samples: N.
        world: this rank among all.
    """

    num_samples: int
    world: World = field(default_factory=World)

    def rows(self, rank: int) -> range:
        """The sample ids of a rank: whole blocks, evened out; empty where there are fewer blocks than ranks."""
        blocks = -(-self.num_samples // BLOCK_ROWS)
        first, last = (blocks * r // self.world.world_size * BLOCK_ROWS for r in (rank, rank + 1))
        return range(min(first, self.num_samples), min(last, self.num_samples))

    def neighbour(self, distance: int) -> int:
        """The rank so many places further on."""
        return (self.world.rank + distance) % self.world.world_size


SweepWithin = Callable[[Shard], None]
SweepBetween = Callable[[Shard, Shard, range], None]
SweepRows = Callable[[Shard, Shard], None]
Search = Callable[[np.ndarray, np.ndarray, Shard, Partials], None]


def sweep_pairs_once(own: Shard, ring: Ring, within: SweepWithin, between: SweepBetween) -> None:
    """Score every pair of samples once over all ranks.

    Args:
        own: this rank's shard; its partials are complete afterwards.
        ring: who holds which samples.
        within: scores all pairs of one shard.
        between: scores some blocks (third argument) of the shard of smaller ids against the other, for both.
    """
    size, width = ring.world.world_size, own.partials.scores.shape[1]
    within(own)
    if size == 1:
        return
    visiting = Shard.begin(own.start, own.features, width)
    visiting.floors = own.floors.copy()
    half = size // 2
    for distance in range(1, half + 1):
        visiting = _pass_on(visiting, ring, ring.neighbour(distance), with_findings=True)
        lower, upper = (own, visiting) if own.start <= visiting.start else (visiting, own)
        blocks = range(-(-len(lower.features) // BLOCK_ROWS))
        if 2 * distance == size:
            # both ranks hold this pair of shards: each takes one half of the lower one's blocks
            middle = len(blocks) // 2
            blocks = blocks[:middle] if lower is own else blocks[middle:]
        if len(blocks) and len(upper.features):
            between(lower, upper, blocks)
    home = Shard.begin(own.start, own.features, width)
    exchange(visiting.arrays(), ring.neighbour(half), home.arrays(), ring.neighbour(-half))
    merge(own.partials, home.partials)


def sweep_all_columns(own: Shard, ring: Ring, sweep: SweepRows) -> None:
    """Score this rank's rows against all columns, shard by shard as they come round.

    Args:
        own: this rank's shard; its partials are complete afterwards.
        ring: who holds which samples.
        sweep: scores the rows of the first shard against those of the second, for the first.
    """
    visiting = own
    for distance in range(ring.world.world_size):
        if distance:
            visiting = _pass_on(visiting, ring, ring.neighbour(distance), with_findings=False)
        if len(own.features) and len(visiting.features):
            sweep(own, visiting)


def num_undecided(own: Shard) -> list[int]:
    """How many rows of each rank the sweep could not decide, in rank order."""
    return [int(count) for count in gather_records(len(undecided_rows(own.partials, own.features.shape[1])))]


def decide(own: Shard, ring: Ring, counts: list[int], search: Search) -> None:
    """Search for the rows again that the sweep could not decide, a few thousand at a time, on all ranks together.

    Args:
        own: this rank's shard; the undecided rows get what the search finds instead.
        ring: who holds which samples.
        counts: ``num_undecided``.
        search: (queries (q, D) float32, their sample ids (q,) int64, own shard, Partials of q rows): fills in what it
            finds among the shard's rows, exact candidates and cuts.
    """
    doubtful = undecided_rows(own.partials, own.features.shape[1])
    a_turn = max(1, _QUERIES_A_TURN // ring.world.world_size)
    for start in range(0, max(counts), a_turn):
        rows = doubtful[start : start + a_turn]
        sizes = [max(0, min(count - start, a_turn)) for count in counts]
        queries = gather_arrays(own.features[rows], sizes)
        ids = gather_arrays((rows + own.start).astype(np.int64), sizes)
        found = Partials.empty(len(ids), own.partials.scores.shape[1])
        if len(own.features):
            search(queries, ids, own, found)
        first = sum(sizes[: ring.world.rank])
        answer = _merged_over_ranks(found, slice(first, first + len(rows)), ring)
        own.partials.scores[rows], own.partials.ids[rows] = answer.scores, answer.ids
        own.partials.cuts[rows] = answer.cuts


def gather_arrays(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    """The rows of all ranks in rank order, on every rank; (sum(counts), ...)."""
    import torch

    gathered: np.ndarray = all_gather_rows(torch.from_numpy(np.ascontiguousarray(rows)), counts).numpy()
    return gathered


def _merged_over_ranks(found: Partials, mine: slice, ring: Ring) -> Partials:
    """What all ranks found for the queries that are this rank's."""
    counts = [len(found.ids)] * ring.world.world_size
    parts = (np.split(gather_arrays(a, counts), len(counts)) for a in (found.scores, found.ids, found.cuts))
    answer: Partials | None = None
    for scores, ids, cuts in zip(*parts, strict=True):
        part = Partials.empty(mine.stop - mine.start, scores.shape[1])
        part.scores, part.ids, part.cuts = scores[mine], ids[mine], cuts[mine]
        if answer is None:
            answer = part
        else:
            merge(answer, part)
    assert answer is not None
    return answer


def _pass_on(shard: Shard, ring: Ring, arriving_rank: int, *, with_findings: bool) -> Shard:
    """Send a shard one place back and take the next one from one place ahead."""
    rows, dim = ring.rows(arriving_rank), shard.features.shape[1]
    arriving = Shard.begin(rows.start, np.empty((len(rows), dim), np.float32), shard.partials.scores.shape[1])
    leaving, coming = [shard.features], [arriving.features]
    if with_findings:
        leaving, coming = leaving + shard.arrays(), coming + arriving.arrays()
    exchange(leaving, ring.neighbour(-1), coming, ring.neighbour(1))
    return arriving
