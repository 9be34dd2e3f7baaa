"""Batch normalization over the images of all ranks."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from deepclust_ext.distributed import resolve_group

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


def synchronize_batch_norm(method: nn.Module, process_group: "Group" = None) -> None:
    """Let every batch normalization of a method take mean and variance over the images of all ranks.

    On CUDA that is torch's ``SyncBatchNorm``; on the CPU, which that refuses, it is :class:`RankBatchNorm`. Parameters
    and buffers stay the same tensors with the same names.
    """
    on_cuda = next(method.parameters()).device.type == "cuda"
    for parent in list(method.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                if on_cuda:
                    group = None if process_group is None else resolve_group(process_group)
                    made = nn.SyncBatchNorm.convert_sync_batchnorm(child, group)
                else:
                    made = RankBatchNorm(child, process_group)
                parent.register_module(name, made.train(child.training))


class RankBatchNorm(_BatchNorm):
    """A batch normalization over the images of all ranks, whatever number each rank has.

    Args:
        norm: The normalization whose parameters and buffers it takes.
        process_group: The ranks; None for all. Only with None can the module be copied.
    """

    def __init__(self, norm: _BatchNorm, process_group: "Group" = None) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, "meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, because this may replace a normalization of any."""

    def forward(
        self,
        input: Tensor,  # (B, C, ...)
    ) -> Tensor:
        """Return the normalized input (B, C, ...), in its dtype."""
        if not self.training:
            plain: Tensor = super().forward(input)
            return plain
        result: Tensor
        result, mean, variance, count = _Normalize.apply(
            input, self.weight, self.bias, self.eps, resolve_group(self.process_group)
        )
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return result


class _Normalize(torch.autograd.Function):
    """The normalization by mean and variance over all ranks, and its gradient, for which two sums go over the ranks."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any) -> Any:
        wide = torch.promote_types(input.dtype, torch.float32)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        values = input.to(wide)
        variance, mean = torch.var_mean(values, axes, correction=0)
        # In double precision, so that the result is as near to that of one process as its own sums are.
        own = torch.cat([mean.double(), variance.double(), mean.new_full((1,), values[:, 0].numel()).double()])
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, own, group=group)
        means, variances, counts = torch.stack(gathered).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        result = batch_norm(values, mean.to(wide), variance.to(wide), weight, bias, training=False, eps=eps)
        ctx.save_for_backward(values, weight, mean.to(wide), (variance + eps).rsqrt().to(wide), count.to(wide))
        ctx.group, ctx.axes = group, axes
        ctx.mark_non_differentiable(mean, variance, count)
        return result.to(input.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        values, weight, mean, inverse, count = ctx.saved_tensors
        shape = [-1 if axis == 1 else 1 for axis in range(values.dim())]
        given = grad.to(values.dtype)
        rows = (values - mean.view(shape)) * inverse.view(shape)
        sums = torch.stack([given.sum(ctx.axes), (given * rows).sum(ctx.axes)])
        # What a parameter gets here is averaged with all others; the input's gradient needs the sums over all images.
        own = sums.clone()
        dist.all_reduce(sums, group=ctx.group)
        first, second = (sums / count).view(2, *shape)
        scale = inverse if weight is None else inverse * weight
        result = (given - first - rows * second) * scale.view(shape)
        grads = (None, None) if weight is None else (own[1].to(weight.dtype), own[0].to(weight.dtype))
        return (result.to(grad.dtype), *grads, None, None)
