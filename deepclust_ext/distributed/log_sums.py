"""Sums over a part of an anchor's negatives, by the kernels of the contrastive loss; parts add up to all negatives."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepclust_ext import _extension
from deepclust_ext.ops.fused_contrastive_loss import unit_rows
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
        """Return the rows of both views as anchors, with their other views as positives, which are in no sum."""
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
    above 0 alone. A sum without negatives has the logarithm -inf. So has a sum that is so much smaller than the
    positive that it does not change the loss.
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


def positive_scores(rows: Rows, options: Options) -> Tensor:
    """Return the scores of the positives, (B,) float64."""
    wide = torch.promote_types(rows.z_a.dtype, torch.float32)
    a, b = (unit_rows(z.to(wide)) if options.normalize else z.to(wide) for z in (rows.z_a, rows.z_b))
    positive = (a * b).sum(dim=1).double() / options.temperature
    if rows.class_a is not None and rows.class_b is not None:
        products = rows.class_a.to(wide) * rows.class_b.to(wide)
        positive = positive + products.sum(dim=1).double() / options.class_temperature
    return positive


def values_of_pairs(
    rows: Rows,  # without a queue
    options: Options,
    guests: Sequence[Tensor],  # features (2, m, D) and class vectors (2, m, K) of other samples, or nothing
) -> Tensor:
    """Return scores of positives and logarithms of both sums, (3, anchors), within rows or between them and guests.

    Between rows and guests both are anchors, the rows first, and scores of positives are 0.
    """
    if not guests:
        return torch.stack([positive_scores(rows, options).repeat(2), *log_sums_of(rows, options)])
    others = Rows(*guests[0], *(guests[1] if len(guests) > 1 else (None, None)))
    sums = []
    for anchors, negatives in ((rows, others), (others, rows)):
        queue = torch.cat([negatives.z_a, negatives.z_b])
        classes = [x for x in (negatives.class_a, negatives.class_b) if x is not None]
        all_rows = anchors.doubled()._replace(queue=queue, class_queue=torch.cat(classes) if classes else None)
        sums.append(log_sums_of(all_rows, options))
    by_growth, by_weight = (torch.cat(parts) for parts in zip(*sums, strict=True))
    return torch.stack([torch.zeros_like(by_growth), by_growth, by_weight])


def gradients_of_pairs(
    own: Sequence[Tensor | None],  # z_a, z_b, class_a, class_b
    options: Options,
    guests: Sequence[Tensor],
    row_values: Tensor,  # (4, anchors) slopes relative to a shift, as the op's backward pass starts from
    wanted: Sequence[bool],  # of these, then of the guests' features and class vectors
) -> list[Tensor | None]:
    """Return the gradients of :func:`values_of_pairs`'s inputs, in the accumulation dtype; sums are computed again."""
    tensors = [*own, *guests, *[None] * (2 - len(guests))]
    leaves = [x if x is None else x.detach().requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)]
    z_a, z_b, class_a, class_b, *others = leaves
    assert z_a is not None
    assert z_b is not None
    positive_slope, slope, weight_slope, shift = row_values.double()
    growth = 1 + options.hardness
    with torch.enable_grad():
        rows = Rows(z_a, z_b, class_a, class_b)
        positive, by_growth, by_weight = values_of_pairs(rows, options, [x for x in others if x is not None])
        total = (slope / growth * (by_growth - growth * shift).exp()).sum()
        if options.hardness > 0:
            weights = (by_weight - options.hardness * shift).exp()
            total = total - (weight_slope / options.hardness * weights).sum()
        if not guests:
            total = total + (positive_slope * positive).sum()
    asked = [x for x in leaves if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(total, asked, materialize_grads=True))
    wide = torch.promote_types(z_a.dtype, torch.float32)
    return [next(found).to(wide) if x is not None and x.requires_grad else None for x in leaves]


class _LogSums(torch.autograd.Function):
    """Runs the op on these negatives; it also returns the values of each anchor that its backward pass starts from.

    The sums follow from these values, and with them gradients of the sums become gradients of the rows.
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
    """Return slope, slope of the weight, shift, the share of the sums' derivatives in them, and where there is no sum.

    The share is the derivative of the loss log(1 + G / exp(positive)) by log G.
    """
    positive_slope, slope, weight_slope, shift = values.double()
    return slope, weight_slope, shift, -positive_slope, slope == 0
