"""Sums over a part of an anchor's negatives, by the kernels of the contrastive loss: parts add up to all negatives."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepclust_ext import _extension
from deepclust_ext.reference.fused_contrastive_loss import log_sums, scores_of

#: What stands for the logarithm of a sum of nothing: finite, so that gradients are. A weight of nothing is the greater.
NO_SUM, NO_WEIGHT = -1e300, -1e200


class Rows(NamedTuple):
    """Rows of the contrastive loss: two views, or anchors, positives and a queue of negatives."""

    z_a: Tensor  # (B, D)
    z_b: Tensor  # (B, D)
    class_a: Tensor | None  # (B, K)
    class_b: Tensor | None  # (B, K)
    queue: Tensor | None = None  # (M, D)
    class_queue: Tensor | None = None  # (M, K)

    def to(self, dtype: torch.dtype) -> "Rows":
        """Return the rows in a dtype."""
        z_a, z_b, *others = (x if x is None else x.to(dtype) for x in self)
        assert z_a is not None
        assert z_b is not None
        return Rows(z_a, z_b, *others)

    def doubled(self) -> "Rows":
        """Return the rows of both views as anchors, their other views as positives, which are in no sum."""
        z_a, z_b = torch.cat([self.z_a, self.z_b]), torch.cat([self.z_b, self.z_a]).detach()
        if self.class_a is None or self.class_b is None:
            return Rows(z_a, z_b, None, None)
        classes = torch.cat([self.class_a, self.class_b]), torch.cat([self.class_b, self.class_a]).detach()
        return Rows(z_a, z_b, *classes)


class Options(NamedTuple):
    """Arguments of the contrastive loss."""

    temperature: float
    hardness: float
    class_temperature: float
    normalize: bool


def log_sums_of(rows: Rows, options: Options) -> tuple[Tensor, Tensor]:
    r"""Return the logarithms of both sums over the negatives, (anchors,) float64 each.

    These are :math:`\sum \exp((1 + hardness) s)` and :math:`\sum \exp(hardness\, s)`, the second one for ``hardness``
    above 0 alone. A sum of nothing has the logarithm -inf, as has one that is so small beside the positive that no loss
    shows it.
    """
    if not _extension.uses_native(rows.z_a.device.type):
        positive, scores, count = scores_of(*rows, options.temperature, options.class_temperature, options.normalize)
        if not count:
            nothing = positive.detach().double() * 0 - torch.inf
            return nothing, nothing if options.hardness > 0 else torch.zeros_like(nothing)
        finite = torch.stack([x.isfinite().all() for x in rows if x is not None]).all()
        by_growth, by_weight = log_sums(scores.double(), options.hardness)
        return torch.where(finite, by_growth, torch.nan), by_weight
    by_growth, by_weight = _LogSums.apply(*rows, options)
    return by_growth, by_weight


class _LogSums(torch.autograd.Function):
    """The op finds losses of these negatives, and of each anchor the values that its own backward pass starts from.

    These tell the sums, and they are what turns gradients of the sums into gradients of the rows.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, options = inputs
        z_a, z_b, class_a, class_b, queue, class_queue = tensors
        temperature, hardness, class_temperature, normalize = options
        _, values, _ = torch.ops.deepclust_ext.fused_contrastive_loss.default(
            z_a,
            z_b,
            temperature,
            hardness,
            0.0,
            class_a,
            class_b,
            class_temperature,
            queue,
            class_queue,
            normalize,
            "sum",
            False,
        )
        ctx.options = options
        ctx.save_for_backward(*tensors, values)
        slope, weight_slope, shift, share, is_none = _slopes_of(values)
        by_growth = torch.where(is_none, -torch.inf, ((1 + hardness) * share / slope).log() + (1 + hardness) * shift)
        if hardness == 0:
            return by_growth, torch.zeros_like(by_growth)
        return by_growth, torch.where(is_none, -torch.inf, (hardness * share / weight_slope).log() + hardness * shift)

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, grad_weight_sum: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, values = ctx.saved_tensors
        z_a, z_b, class_a, class_b, queue, class_queue = tensors
        temperature, hardness, class_temperature, normalize = ctx.options
        slope, weight_slope, shift, share, is_none = _slopes_of(values)
        slopes = [
            0 * share,  # NaN says that a row was not finite
            torch.where(is_none, 0, grad_sum * slope / share),
            torch.where(is_none, 0, -grad_weight_sum * weight_slope / share),
            shift,
        ]
        wanted = ctx.needs_input_grad[:6]
        gradients = torch.ops.deepclust_ext.fused_contrastive_loss_backward.default(
            z_a.new_ones(values.shape[1]),
            z_a,
            z_b,
            torch.stack(slopes).to(values.dtype),
            values.new_empty(0),
            temperature,
            hardness,
            class_a,
            class_b,
            class_temperature,
            queue,
            class_queue,
            normalize,
            "none",
            wanted,
        )
        return *(grad if want else None for grad, want in zip(gradients, wanted, strict=True)), None


def _slopes_of(
    values: Tensor,  # (4, anchors)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return slope, slope of the weight, shift, share of the sums' own derivatives in them, and where no sum is.

    The share is the derivative of the loss log(1 + G / exp(positive)) by log G.
    """
    positive_slope, slope, weight_slope, shift = values.double()
    return slope, weight_slope, shift, -positive_slope, slope == 0
