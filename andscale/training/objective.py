"""The objective of Anchor Neighbourhood Discovery, exact over the whole memory bank, rows on many ranks.

With the members S_i = {i} for instances and {i} + N_k(x_i) for anchors,

    loss_i = -log sum_{j in S_i} p_ij = lse_i - lse_{S_i},                       (eq 2 and 7)
    d loss_i / d x_i = (o_i - o_{S_i}) / tau,

where lse_i = logsumexp_j(x_i.m_j / tau) and o_i = sum_j p_ij m_j run over all N rows, and lse_{S_i}, o_{S_i} over the
members alone. Both pairs are attention over a set of rows, and both add up over ranks (``attention.py``). A step has
one gather and one all-reduce, of B (k + D) and 2 B (1 + D) numbers; with tau < 0.02 a second one, of 2 B.

The sampled objective (sampled softmax) replaces the sum over all N rows by members, exact, plus an estimate of the
others from m drawn rows (``sampled_rows.py``): sum_{j in S_i} e_ij + sum_{drawn j not in S_i} h_j e_ij, where a drawn
row stands for h_j rows. The estimate has no bias; its logarithm has one of about -variance / (2 sum^2), which goes to
zero as m goes to N, where the objective is the exact one. Noise-contrastive estimation, which instance discrimination
used, would need a guess of the sum as a constant besides.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from andscale.config import MethodConfig
from andscale.data.device_feed import to_device
from andscale.distributed import all_gather_rows, all_reduce_max, all_reduce_sum
from andscale.training.attention import (
    NO_SHIFT,
    PartialAttention,
    attend_nothing,
    attend_rows,
    merge_parts,
    needs_shift,
    rounded,
)
from andscale.training.memory_bank import MemoryBank
from andscale.training.sampled_rows import draw_rows


@dataclass(frozen=True)
class ObjectiveOptions:
    """How the objective is computed.

    Attributes:
        num_negatives: m of the sampled objective; None: exact.
        score_dtype: of features and rows in the products; sums are float32.
        key: seed, round, epoch, step: what a draw depends on.
    """

    num_negatives: int | None = None
    score_dtype: torch.dtype = torch.float32
    key: tuple[int, ...] = (0,)

    @classmethod
    def from_config(cls, method: MethodConfig, seed: int) -> "ObjectiveOptions":
        """As a run's config says; ``at`` adds the step."""
        return cls(
            num_negatives=method.num_negatives if method.objective == "sampled" else None,
            score_dtype=torch.bfloat16 if method.score_dtype == "bfloat16" else torch.float32,
            key=(seed,),
        )

    def at(self, round_number: int, epoch: int, step: int) -> "ObjectiveOptions":
        """The same for one step. Micro-batches of a step may share it: they draw the same rows."""
        return replace(self, key=(self.key[0], round_number, epoch, step))


@dataclass(frozen=True)
class ObjectiveResult:
    """Losses of this rank's share of a batch.

    Attributes:
        loss: scalar; its backward gives this rank's share of the gradient of the global mean, times world_size,
            which DDP's averaging over ranks takes out again.
        mean_loss: scalar float32, the mean over the global batch, the same on every rank.
        features: (B, D) the global batch's features, detached.
        sample_ids: (B,) int64, the global batch's ids.
    """

    loss: Tensor
    mean_loss: Tensor
    features: Tensor
    sample_ids: Tensor


class _ClosedFormGradient(torch.autograd.Function):
    """A loss whose gradient by the features is known already."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """(b, D) features, scalar loss, (b, D) d loss / d features -> the loss."""
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """Scalar upstream -> (b, D) for the features."""
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return upstream[0] * gradient, None, None


def batch_objective(  # noqa: PLR0913 - a step's inputs, and how to compute
    features: Tensor,
    sample_ids: Tensor,
    members: Tensor,
    memory: MemoryBank,
    temperature: float,
    counts: list[int],
    *,
    options: ObjectiveOptions | None = None,
) -> ObjectiveResult:
    """The mean of eq 7 over the global batch, from this rank's share of it.

    Args:
        features: (b, D) float32, unit length, this rank's share, with gradient.
        sample_ids: (b,) int64.
        members: (b, k + 1) int64, ids of S_i, the sample itself among them, none twice; -1 fills unused places
            (instances).
        memory: this rank's rows of the bank; constant here.
        temperature: tau > 0.
        counts: the share of every rank; their sum is B.
        options: exact and float32 by default.

    Returns:
        The loss to call backward on, and the gathered batch for the memory update.
    """
    options = options or ObjectiveOptions()
    all_features, all_ids, all_members = _gather_batch(features.detach(), sample_ids, members, counts)
    over_members = attend_members(all_features, all_members, memory, temperature, options.score_dtype)
    if options.num_negatives is None:
        over_all = attend_rows(all_features, memory.values, temperature, options.score_dtype)
    else:
        others = attend_sampled(all_features, all_members, memory, temperature, options)
        over_all = _add(others, over_members)
    sums, shift = merge_over_ranks(over_all, over_members)
    losses = sums[:, :, 0].log()
    if shift is not None:
        losses += shift
    losses = losses[0] - losses[1]

    first = start_of_this_rank(counts)
    mine = slice(first, first + len(features))
    means = sums[:, mine, 1:] / sums[:, mine, :1]
    weight = len(counts) / len(losses)
    loss = _ClosedFormGradient.apply(
        features, losses[mine].sum() * weight, (means[0] - means[1]) * (weight / temperature)
    )
    return ObjectiveResult(loss, losses.mean(), all_features, all_ids)


@torch.no_grad()
def attend_members(
    features: Tensor,
    members: Tensor,
    memory: MemoryBank,
    temperature: float,
    score_dtype: torch.dtype = torch.float32,
) -> PartialAttention:
    """Attention over those members that this rank holds.

    Args:
        features: (B, D) float32.
        members: (B, k + 1) int64, -1 where unused.
        memory: this rank's rows.
        temperature: tau > 0.
        score_dtype: as for ``attend_rows``, so that a member weighs the same in both.
    """
    if not len(memory.values):
        return attend_nothing(features, temperature)
    positions, here = memory.locate(members)
    rows = rounded(memory.values[positions], score_dtype)  # (B, k + 1, D)
    scores = torch.bmm(rows, rounded(features, score_dtype)[:, :, None])[..., 0] / temperature
    scores.masked_fill_(~here, -torch.inf)
    shift = _shift(scores, temperature)
    weights = _weights(scores, shift)
    weighted = torch.bmm(weights[:, None], rows)[:, 0]
    return PartialAttention(torch.cat([weights.sum(dim=1, keepdim=True), weighted], dim=1), shift)


@torch.no_grad()
def attend_sampled(
    features: Tensor, members: Tensor, memory: MemoryBank, temperature: float, options: ObjectiveOptions
) -> PartialAttention:
    """Estimate of the attention over all rows of this rank but the members, from the drawn ones among them.

    Keeps B m / world_size scores.

    Args:
        features: (B, D) float32.
        members: (B, k + 1) int64, -1 where unused.
        memory: this rank's rows; only those drawn are touched.
        temperature: tau > 0.
        options: m and the key of the draw.
    """
    assert options.num_negatives is not None
    num_strata = min(options.num_negatives, memory.num_samples)
    ids, sizes = draw_rows(memory.num_samples, num_strata, options.key)
    first, last = ids.searchsorted([memory.rows.start, memory.rows.stop])
    if first == last:
        return attend_nothing(features, temperature)
    drawn = to_device(ids[first:last], features.device)
    rows = rounded(memory.values[drawn - memory.rows.start], options.score_dtype)
    scores = rounded(features, options.score_dtype) / temperature @ rows.T
    scores += to_device(sizes[first:last], scores.device).to(scores.dtype).log()
    # a member that was drawn: where its stratum's row lies among this rank's draws, if it is that row
    place = ((members + 1) * num_strata - 1) // memory.num_samples - int(first)
    is_here = (place >= 0) & (place < len(drawn))
    place = place.clamp(0, len(drawn) - 1)
    is_hit = is_here & (drawn[place] == members)
    hits = torch.where(is_hit, -torch.inf, 0.0).to(scores)
    scores.scatter_add_(1, place, hits)
    shift = _shift(scores, temperature)
    weights = _weights(scores, shift)
    return PartialAttention(torch.cat([weights.sum(dim=1, keepdim=True), weights @ rows], dim=1), shift)


@torch.no_grad()
def merge_over_ranks(*parts: PartialAttention) -> tuple[Tensor, Tensor | None]:
    """Add up each rank's attention: one all-reduce for all parts together, and one for their shifts if there are any.

    Returns:
        Sums (parts, B, 1 + D) float32 and shifts (parts, B) of the attention over all ranks' rows.
    """
    sums = torch.stack([part.sums for part in parts])
    shifts = [part.shift for part in parts if part.shift is not None]
    if not shifts:
        return all_reduce_sum(sums), None
    local = torch.stack(shifts)
    highest = all_reduce_max(local.clone())
    sums *= torch.exp(local - highest)[..., None]
    return all_reduce_sum(sums), highest


def _gather_batch(
    features: Tensor, sample_ids: Tensor, members: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, ids and members of all ranks, in one gather of their bits."""
    if len(counts) == 1:
        return features, sample_ids, members
    dim = features.shape[1]
    words = [features.contiguous(), sample_ids[:, None].contiguous(), members.contiguous()]
    gathered = all_gather_rows(torch.cat([values.view(torch.int32) for values in words], dim=1), counts)
    whole_numbers = gathered[:, dim:].contiguous().view(torch.int64)
    return gathered[:, :dim].contiguous().view(torch.float32), whole_numbers[:, 0], whole_numbers[:, 1:]


def _add(*parts: PartialAttention) -> PartialAttention:
    """Attention over different rows of this rank together."""
    sums, shifts = torch.stack([part.sums for part in parts]), [p.shift for p in parts if p.shift is not None]
    return merge_parts(sums, torch.stack(shifts) if shifts else None)


def _shift(scores: Tensor, temperature: float) -> Tensor | None:
    """The largest of each row of (B, n) scores, where exponents need a shift."""
    return scores.amax(dim=1).clamp(min=NO_SHIFT) if needs_shift(temperature) else None


def _weights(scores: Tensor, shift: Tensor | None) -> Tensor:
    """exp(scores - shift), in place."""
    return scores.exp_() if shift is None else scores.sub_(shift[:, None]).exp_()


def start_of_this_rank(counts: list[int]) -> int:
    """Where this rank's share begins in a batch gathered in rank order."""
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else 0
    return sum(counts[:rank])
