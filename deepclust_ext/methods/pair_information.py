"""What NeighborHead makes of its heads: statistics of all teachers, and the information of pairs with its gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepclust_ext import ops

#: What is smaller counts as this, as in torch's normalize.
_LEAST_NORM = 1e-12


def teacher_statistics(
    heads: Iterable[tuple[Tensor, Tensor]],  # of each head unit rows (2B, E), first and second of the pairs, and (K, E)
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of shares (H, K), the weights (B,) of the pairs, and the mean of the largest share, ().

    TEMI, section 3: the weight is the product of the teachers' shares of both rows, summed over clusters and averaged
    over heads.
    """
    found = [ops.pair_statistics(*_widened(*head), temperature=temperature) for head in heads]
    sums, agreement, largest = (torch.stack(each) for each in zip(*found, strict=True))
    return sums, agreement.mean(dim=0), largest.mean()


def pair_information(
    rows: Tensor,  # (2B, E) of a student, first and second rows of the pairs
    weight: Tensor,  # (K, E) of its last layer
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,) the running mean of the teacher's shares
    pair_weights: Tensor,  # (B,)
    beta: float,
    temperature: float,
) -> Tensor:
    """Return the information, (), of :func:`deepclust_ext.pair_information`, with gradients by student and weight."""
    given = _widened(rows, weight, teacher_rows, teacher_weight, distribution, pair_weights)
    value: Tensor = _PairInformation.apply(*given, beta, temperature)
    return value


class _PairInformation(torch.autograd.Function):
    """The op's value; its gradients, which come with it, are only scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,  # (2B, E)
        weight: Tensor,  # (K, E)
        teacher_rows: Tensor,  # (2B, E)
        teacher_weight: Tensor,  # (K, E)
        distribution: Tensor,  # (K,)
        pair_weights: Tensor,  # (B,)
        beta: float,
        temperature: float,
    ) -> Tensor:
        information, grad_rows, grad_weight = ops.pair_information(
            rows,
            weight,
            teacher_rows,
            teacher_weight,
            distribution,
            pair_weights,
            beta=beta,
            temperature=temperature,
            want_rows=ctx.needs_input_grad[0],  # frozen features take none
        )
        ctx.save_for_backward(grad_rows, grad_weight)
        return information

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        return grad * grad_rows if ctx.needs_input_grad[0] else None, grad * grad_weight, *[None] * 6


def scaled_unit_rows(
    rows: Tensor,  # (K, E)
    scales: Tensor,  # (K, 1)
) -> Tensor:
    """Return each row divided by its norm and times its scale, (K, E).

    For the backward pass one factor of each row is kept. Torch's normalize would keep all unit rows.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=_LEAST_NORM)
    scaled: Tensor = rows * (scales / norms)
    return scaled


def _widened(*given: Tensor) -> list[Tensor]:
    """Return all in float32, or float64 if the first is: a backbone may give features of another dtype than a head."""
    wide = torch.promote_types(given[0].dtype, torch.float32)
    return [part.to(wide) for part in given]
