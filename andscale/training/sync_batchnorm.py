"""Batch norm over the global batch, on GPUs and on CPUs.

torch.nn.SyncBatchNorm takes CUDA tensors only. This one uses the collectives that both backends have, and counts
values, so that the ranks' shares of a batch may differ.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from andscale.distributed import all_gather_rows, all_reduce_sum, is_distributed
from andscale.errors import UsageError


def convert_sync_batchnorm(network: nn.Module) -> None:
    """Let every batch norm of a network use the statistics of the global batch from now on, in place.

    Parameters and buffers stay the same objects under the same names, so that optimizers, checkpoints and ``model/``
    cannot tell. In training mode every rank must then make the same forward and backward passes.

    Raises:
        UsageError: a batch norm without weights or running statistics.
    """
    for path, parent in list(network.named_modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                if not child.affine or not child.track_running_stats or child.momentum is None:
                    raise UsageError(f"{path}.{name} has no weights or statistics: set model.sync_batchnorm off")
                setattr(parent, name, SyncBatchNorm(child))


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of all ranks' samples together.

        y = weight (x - mean) / sqrt(var + eps) + bias,   running <- (1 - m) running + m (mean, var n / (n - 1))

    with mean and var per channel over all n values of all ranks, and m the momentum.

    Args:
        source: the batch norm that it stands for. Those of timm drop and activate after it: that is done here too.
    """

    def __init__(self, source: _BatchNorm):
        super().__init__(source.num_features, source.eps, source.momentum, device=source.weight.device)
        self.weight, self.bias = source.weight, source.bias
        for name, buffer in source.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.drop = getattr(source, "drop", nn.Identity())
        self.act = getattr(source, "act", nn.Identity())
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape and dtype."""
        assert self.running_mean is not None and self.running_var is not None
        if self.training:
            assert self.num_batches_tracked is not None and self.momentum is not None
            y, mean, var, total = _Normalise.apply(x, self.weight, self.bias, self.eps)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * total / (total - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            y = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        activated: Tensor = self.act(self.drop(y))
        return activated


class _Normalise(torch.autograd.Function):
    """The normalisation by global statistics; one collective forward, one backward.

    With xhat = (x - mean) / sqrt(var + eps) and means over all ranks' values,

        dL/dx = weight / sqrt(var + eps) (dy - mean(dy) - xhat mean(dy xhat))

    The gradients of weight and bias are this rank's sums, for data-parallel training to average.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        """(B, C, ...) -> the same; mean, var: (C,); total: () values a channel over all ranks."""
        mean, var, total = _global_statistics(x)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, var, total)
        return functional.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight, bias."""
        x, weight, mean, inverse, total = ctx.saved_tensors
        axes, shape = _axes(x), (-1, *(1,) * (x.ndim - 2))
        xhat = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        dy_float = dy.to(mean.dtype)
        sums = torch.stack([dy_float.sum(axes), (dy_float * xhat).sum(axes)])
        means = all_reduce_sum(sums.clone()) / total
        dx = (dy_float - means[0].view(shape) - xhat * means[1].view(shape)) * (weight * inverse).view(shape)
        return dx.to(x.dtype), sums[1].to(weight.dtype), sums[0].to(weight.dtype), None


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel over all ranks, and the number of values; float32 at least.

    Ranks exchange means and variances, not sums of squares, whose difference would cancel.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, _axes(x), correction=0)
    count = mean.new_full((1,), x.numel() // x.shape[1])
    ranks = dist.get_world_size() if is_distributed() else 1
    rows = all_gather_rows(torch.cat([mean, var, count])[None], [1] * ranks)  # (ranks, 2 C + 1)
    means, variances, counts = torch.split(rows, [len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    merged = (means * counts).sum(0) / total
    spread = ((variances + (means - merged) ** 2) * counts).sum(0) / total
    return merged, spread, total


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
