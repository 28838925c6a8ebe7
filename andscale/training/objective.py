"""The objective of Anchor Neighbourhood Discovery, exact over the whole memory bank, rows on many ranks.

With the members S_i = {i} for instances and {i} + N_k(x_i) for anchors,

    loss_i = -log sum_{j in S_i} p_ij = lse_i - lse_{S_i},                       (eq 2 and 7)
    d loss_i / d x_i = (o_i - o_{S_i}) / tau,

where lse_i = logsumexp_j(x_i.m_j / tau) and o_i = sum_j p_ij m_j run over all N rows, and lse_{S_i}, o_{S_i} over the
members alone. Both pairs are attention over a set of rows, and both merge over ranks as in online softmax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from andscale.distributed import all_gather_rows, all_reduce_max, all_reduce_sum
from andscale.training.memory_bank import MemoryBank

_TILE_ROWS = 16_384


@dataclass(frozen=True)
class Attention:
    """Attention of B features over some rows of the memory.

    Attributes:
        lse: (B,) float32, logsumexp of similarity / tau, nats; -inf over no rows.
        mean: (B, D) float32, the rows' mean under the softmax; 0 over no rows.
    """

    lse: Tensor
    mean: Tensor


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
    """Losses whose gradient by the features is known already."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor, losses: Tensor, grads: Tensor) -> Tensor:
        """(b, D) features, (b,) losses, (b, D) d loss / d feature -> (b,) losses."""
        ctx.save_for_backward(grads)
        return losses.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """(b,) upstream -> (b, D) for the features."""
        (grads,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return upstream[0][:, None] * grads, None, None


def batch_objective(
    features: Tensor,
    sample_ids: Tensor,
    members: Tensor,
    memory: MemoryBank,
    temperature: float,
    counts: list[int],
) -> ObjectiveResult:
    """The mean of eq 7 over the global batch, from this rank's share of it.

    Args:
        features: (b, D) float32, unit length, this rank's share, with gradient.
        sample_ids: (b,) int64.
        members: (b, k + 1) int64, ids of S_i, the sample itself among them; -1 fills unused places (instances).
        memory: this rank's rows of the bank; constant here.
        temperature: tau > 0.
        counts: the share of every rank; their sum is B.

    Returns:
        The loss to call backward on, and the gathered batch for the memory update.
    """
    rank_start = _start_of_this_rank(counts)
    here = slice(rank_start, rank_start + len(features))
    all_features = all_gather_rows(features.detach(), counts)
    all_ids = all_gather_rows(sample_ids, counts)
    all_members = all_gather_rows(members, counts)
    over_all, over_members = merge_over_ranks(
        attend_rows(all_features, memory.values, temperature),
        attend_members(all_features, all_members, memory, temperature),
    )
    losses = over_all.lse - over_members.lse
    grads = (over_all.mean - over_members.mean) / temperature
    local = _ClosedFormGradient.apply(features, losses[here], grads[here])
    return ObjectiveResult(
        loss=local.sum() * (len(counts) / len(losses)),
        mean_loss=losses.mean(),
        features=all_features,
        sample_ids=all_ids,
    )


@torch.no_grad()
def attend_rows(features: Tensor, rows: Tensor, temperature: float) -> Attention:
    """Attention over all given rows, in tiles, so that nothing of size (B, N) lives.

    Args:
        features: (B, D) float32.
        rows: (n, D) float32.
        temperature: tau > 0.
    """
    highest = features.new_full((len(features),), -torch.inf)
    total = features.new_zeros(len(features))
    weighted = torch.zeros_like(features)
    for tile in torch.split(rows, _TILE_ROWS):
        scores = features @ tile.T / temperature  # (B, tile)
        new_highest = torch.maximum(highest, scores.amax(dim=1))
        scale = torch.exp(highest - new_highest)
        weights = torch.exp(scores.sub_(new_highest[:, None]))
        total = total * scale + weights.sum(dim=1)
        weighted = weighted * scale[:, None] + weights @ tile
        highest = new_highest
    if not len(rows):
        return Attention(highest, weighted)
    return Attention(highest + total.log(), weighted / total[:, None])


@torch.no_grad()
def attend_members(features: Tensor, members: Tensor, memory: MemoryBank, temperature: float) -> Attention:
    """Attention over those members that this rank holds.

    Args:
        features: (B, D) float32.
        members: (B, k + 1) int64, -1 where unused.
        memory: this rank's rows.
        temperature: tau > 0.
    """
    positions, here = memory.locate(members)
    rows = memory.values[positions] if len(memory.values) else features.new_zeros((*members.shape, features.shape[1]))
    scores = torch.einsum("bd,bkd->bk", features, rows) / temperature
    scores = scores.masked_fill(~here, -torch.inf)
    lse = torch.logsumexp(scores, dim=1)
    # a row of -inf only (no member here) has lse -inf: its weights are 0, not exp(-inf + inf)
    weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[:, None])
    return Attention(lse, torch.einsum("bk,bkd->bd", weights, rows))


@torch.no_grad()
def merge_over_ranks(*parts: Attention) -> list[Attention]:
    """Merge each rank's attention into the attention over all ranks' rows: two all-reduces for all parts together.

    lse = log sum_r exp(lse_r),   mean = sum_r exp(lse_r - lse) mean_r
    """
    local = torch.stack([part.lse for part in parts])  # (parts, B)
    highest = all_reduce_max(local.clone())
    weights = torch.exp(local - highest)
    sums = torch.cat(
        [torch.cat([w[:, None], w[:, None] * part.mean], dim=1) for w, part in zip(weights, parts, strict=True)],
        dim=1,
    )  # (B, parts * (1 + D))
    all_reduce_sum(sums)
    merged = []
    for total, shift in zip(sums.chunk(len(parts), dim=1), highest, strict=True):
        weight = total[:, :1]
        merged.append(Attention(shift + weight[:, 0].log(), total[:, 1:] / weight))
    return merged


def _start_of_this_rank(counts: list[int]) -> int:
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else 0
    return sum(counts[:rank])
