"""Sums over the negatives of all ranks, where each pair of rows is computed by one rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepclust_ext import _extension
from deepclust_ext.distributed.group import Shards
from deepclust_ext.distributed.log_sums import Options, Rows, gradients_of_pairs, values_of_pairs
from deepclust_ext.distributed.ring import Ring

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Tensors = Sequence[Tensor | None]


def sums_of_shared_pairs(
    rows: Rows,  # of this rank, without a queue
    options: Options,
    shards: Shards,
    group: "ProcessGroup",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the scores of this rank's positives and the logarithms of both sums over all negatives, (2n,) float64.

    A rank computes the pairs within its own rows, and those with the rows of about half of the other ranks, which
    arrive block by block. It sends these ranks the sums of their rows, and in backward the gradients, and receives
    those of its own rows. All is added up in a fixed order, whichever rank is first. The sums are :math:`\sum \exp((1 +
    hardness) s)` and :math:`\sum \exp(hardness\, s)`, the second one only for ``hardness`` above 0.
    """
    positive, by_growth, by_weight = _SumsOverAll.apply(*rows[:4], options, shards, group)
    return positive, by_growth, by_weight


def has_pair_kernels(rows: Tensor) -> bool:
    """Return whether kernels compute pairs of two sets of rows for the anchors of both at once: only on the CPU."""
    return rows.device.type == "cpu" and _extension.uses_native("cpu")


class _SumsOverAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, options, shards, group = inputs
        own = _finite_or_nan([None if x is None else x.contiguous() for x in tensors], options)
        count, used = shards.sizes[shards.rank], 2 if options.hardness > 0 else 1
        ring = Ring(_entries(own), shards, group)
        # The pairs within own rows while something travels: the first block, or if it is the only one, the answer.
        values = None if len(ring) == 1 else _log_sums(own, options, [])
        kept: list[Tensor] = []
        for turn, guests in ring:
            kept = guests if len(ring) == 1 else []  # for backward: one block is little beside a rank's rows
            found = _log_sums(_part(own, turn.own), options, guests)[1 : 1 + used]
            mine = 2 * (turn.own.stop - turn.own.start)
            answer = ring.begin_answer(turn, [found[:, mine:].reshape(2 * used, turn.guests)])
            values = _log_sums(own, options, []) if values is None else values
            totals = values[1 : 1 + used].view(used, 2, count)
            _add_logarithms(totals[:, :, turn.own], found[:, :mine])
            (received,) = answer()
            _add_logarithms(totals[:, :, turn.sent], received)
        assert values is not None
        ctx.options, ctx.shards, ctx.group, ctx.used = options, shards, group, used
        ctx.save_for_backward(*own, values, *kept)
        positive, by_growth, by_weight = values.clone()
        return positive, by_growth, by_weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *own, sums = ctx.saved_tensors[:5]
        kept = ctx.saved_tensors[5:]
        options, count = ctx.options, ctx.shards.sizes[ctx.shards.rank]
        wanted = ctx.needs_input_grad[:4]
        values = row_values_of(sums, grads, options.hardness, torch.promote_types(own[0].dtype, torch.float32))
        ring = Ring([*([] if kept else _entries(own)), values.view(8, count).unbind()], ctx.shards, ctx.group)
        of_guests = (any(wanted[:2]), any(wanted[2:]))

        def of_own_pairs() -> list[Tensor | None]:
            return _gradients(own, options, [], values, (*wanted, False, False))[:4]

        # The pairs within own rows while something travels: the first block, or if it has been kept, the answer.
        gradients = None if kept else of_own_pairs()
        for turn, (*guests, their_values) in ring:
            mine = values.view(4, 2, count)[:, :, turn.own].flatten(1)
            both = torch.cat([mine, their_values.view(4, 2 * turn.guests)], dim=1)
            found = _gradients(_part(own, turn.own), options, guests or kept, both, (*wanted, *of_guests))
            answers = [x.view(2, turn.guests, x.shape[1]) for x in found[4:] if x is not None]
            answer = ring.begin_answer(turn, answers)
            gradients = of_own_pairs() if gradients is None else gradients
            _add(gradients, found[:4], turn.own)
            received = [x for pair in answer() for x in pair]
            of_sent = [received.pop(0) if of_guests[place // 2] else None for place in range(4)]
            _add(gradients, of_sent, turn.sent)
        assert gradients is not None
        dtype = own[0].dtype
        return *(None if grad is None else grad.to(dtype) for grad in gradients), None, None, None


def _entries(own: Tensors) -> list[list[Tensor]]:
    """Return what travels of a rank's rows: features of both views, and class vectors if there are any."""
    pairs = ([x for x in pair if x is not None] for pair in (own[:2], own[2:]))
    return [pair for pair in pairs if pair]


def _part(own: Tensors, samples: slice) -> Tensors:
    return [None if x is None else x[samples] for x in own]


def _others(guests: Sequence[Tensor]) -> Tensors:
    """Return the rows (2m, D) of other samples, one view after the other, and their class vectors; None for none."""
    flat = [x.flatten(0, 1) for x in guests]
    return [*flat, *[None] * (2 - len(flat))]


def _log_sums(
    own: Tensors,
    options: Options,
    guests: Sequence[Tensor],  # features (2, m, D) and class vectors (2, m, K), or nothing
) -> Tensor:
    """Return scores of positives and logarithms of sums, (3, anchors), within rows or between these and others."""
    z_a, z_b, class_a, class_b = own
    assert z_a is not None
    assert z_b is not None
    if not has_pair_kernels(z_a):
        return values_of_pairs(Rows(z_a, z_b, class_a, class_b), options, guests)
    queue, class_queue = _others(guests)
    values: Tensor = torch.ops.deepclust_ext.fused_contrastive_loss.log_sums(
        z_a,
        z_b,
        options.temperature,
        options.hardness,
        class_a,
        class_b,
        options.class_temperature,
        queue,
        class_queue,
        options.normalize,
    )
    return values


def _gradients(
    own: Tensors,
    options: Options,
    guests: Sequence[Tensor],
    row_values: Tensor,  # (4, anchors)
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return their gradients by rows and class vectors, then by those of others; None where not wanted."""
    z_a, z_b, class_a, class_b = own
    assert z_a is not None
    if not has_pair_kernels(z_a):
        found = gradients_of_pairs(own, options, guests, row_values, wanted)
        return found[:4] + [x if x is None else x.flatten(0, 1) for x in found[4:]]
    queue, class_queue = _others(guests)
    gradients = torch.ops.deepclust_ext.fused_contrastive_loss_backward.log_sums(
        row_values,
        z_a,
        z_b,
        options.temperature,
        options.hardness,
        class_a,
        class_b,
        options.class_temperature,
        queue,
        class_queue,
        options.normalize,
        wanted,
    )
    return [grad if want else None for grad, want in zip(gradients, wanted, strict=True)]


def row_values_of(
    sums: Tensor,  # (3, 2n)
    grads: Sequence[Tensor],  # of positives and both sums, (2n,) each
    hardness: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return the values that the op's backward pass starts from, (4, 2n): slopes relative to a shift in the dtype."""
    positive_grad, growth_grad, weight_grad = grads
    _, by_growth, by_weight = sums
    is_none = by_growth == -torch.inf
    shift = torch.where(is_none, 0, by_growth / (1 + hardness)).to(dtype).double()
    slope = growth_grad * (1 + hardness) * ((1 + hardness) * shift - by_growth).exp()
    weight_slope = torch.zeros_like(slope)
    if hardness > 0:
        weight_slope = -weight_grad * hardness * (hardness * shift - by_weight).exp()
    values = [
        torch.where(by_growth.isnan(), torch.nan, positive_grad),  # says that a row was not finite
        torch.where(is_none, 0, slope),
        torch.where(is_none, 0, weight_slope),
        shift,
    ]
    return torch.stack(values).to(dtype)


def _add_logarithms(
    total: Tensor,  # (sums, 2, samples)
    part: Tensor,  # as many
) -> None:
    torch.logaddexp(total, part.reshape(total.shape), out=total)


def _add(gradients: Tensors, parts: Tensors, samples: slice) -> None:
    """Add parts to the gradients of some samples, where these are wanted."""
    for gradient, part in zip(gradients, parts, strict=True):
        if gradient is not None and part is not None:
            gradient[samples] += part


def _finite_or_nan(own: Tensors, options: Options) -> Tensors:
    """Return rows, or NaN if the op finds that these rows are not finite, so that all ranks get to know it."""
    z_a, z_b, class_a, class_b = own
    assert z_a is not None
    assert z_b is not None
    if len(z_a) == 0 or (options.normalize and class_a is None):
        return own

    def largest_square(*views: Tensor) -> Tensor:
        wide = torch.promote_types(views[0].dtype, torch.float32)
        return torch.stack([torch.linalg.vector_norm(x, dim=1, dtype=wide).amax() for x in views]).amax() ** 2

    score = (1.0 if options.normalize else largest_square(z_a, z_b)) / options.temperature
    if class_a is not None and class_b is not None:
        score = score + largest_square(class_a, class_b) / options.class_temperature
    if torch.as_tensor(score, device=z_a.device).isfinite():
        return own
    return [None if x is None else torch.full_like(x, torch.nan) for x in own]
