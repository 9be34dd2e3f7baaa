"""The mutual information of pairs by the shares of two heads, and its gradient, without all shares in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Shares of a head that are in memory at a time, of both views together: 1 MB, of which a block has a few.
_TILE = 1 << 18


def teacher_statistics(
    heads: Sequence[tuple[Tensor, Tensor]],  # of each head unit rows (2B, E), first and second of the pairs, and (K, E)
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of shares (H, K), the weights (B,) of the pairs, and the mean of the largest share, ().

    TEMI, section 3: the weight is the product of the teachers' shares of both rows, summed over clusters and averaged
    over heads.
    """
    rows, weight = heads[0]
    wide = torch.promote_types(rows.dtype, torch.float32)
    sums, largest = [], []
    weights = torch.zeros(len(rows) // 2, dtype=wide, device=rows.device)
    for rows, weight in heads:
        total, top = torch.zeros((2, len(weight)), dtype=wide, device=rows.device)
        for block in _blocks(len(rows) // 2, len(weight)):
            first, second = (shares.softmax(dim=1) for shares in _logits(rows, weight, block, temperature))
            weights[block] += (first * second).sum(dim=1) / len(heads)
            total += first.sum(dim=0) + second.sum(dim=0)
            top += first.amax(dim=1).sum() + second.amax(dim=1).sum()
        sums.append(total)
        largest.append(top[0] / len(rows))
    return torch.stack(sums), weights, torch.stack(largest).mean()


def pair_information(
    rows: Tensor,  # (2B, E) of a student, first and second rows of the pairs
    weight: Tensor,  # (K, E) of its last layer
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,) the running mean of the teacher's shares
    weights: Tensor,  # (B,) of the pairs
    beta: float,
    temperature: float,
) -> Tensor:
    r"""Return the mean over pairs and directions, (), of w log sum_k (q_s q_t)^beta / q(k); TEMI, section 3.

    With s and t the logits over the temperature, the logarithm is :math:`lse(\beta s + c) - \beta \, lse(s)`, where
    :math:`c = \beta (t - lse(t)) - \log q`. Its gradient by s is :math:`\beta (softmax(\beta s + c) - softmax(s))`.
    Value and gradient are computed together, block by block, so shares are kept only within a block.
    """
    with torch.autocast(rows.device.type, enabled=False):
        wide = torch.promote_types(rows.dtype, torch.float32)
        given = (rows, weight, teacher_rows, teacher_weight, distribution, weights)
        value: Tensor = _PairInformation.apply(*(part.to(wide) for part in given), beta, temperature)
        return value


class _PairInformation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,  # (2B, E)
        weight: Tensor,  # (K, E)
        teacher_rows: Tensor,  # (2B, E)
        teacher_weight: Tensor,  # (K, E)
        distribution: Tensor,  # (K,)
        weights: Tensor,  # (B,)
        beta: float,
        temperature: float,
    ) -> Tensor:
        pairs = len(weights)
        # A cluster that no teacher has ever chosen has share 0, and 1 / 0 would be infinite times 0.
        log_distribution = distribution.clamp(min=torch.finfo(distribution.dtype).tiny).log()
        value = torch.zeros((), dtype=rows.dtype, device=rows.device)
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None  # frozen features take none
        grad_weight = torch.zeros_like(weight)
        for block in _blocks(pairs, len(weight)):
            students = _logits(rows, weight, block, temperature)
            teachers = _logits(teacher_rows, teacher_weight, block, temperature)
            scale = (weights[block] * (beta / (2 * pairs * temperature))).unsqueeze(1)
            for place, (student, teacher) in enumerate(zip(students, teachers[::-1], strict=True)):
                joint = teacher.sub_(teacher.logsumexp(dim=1, keepdim=True)).add_(student).mul_(beta)
                joint.sub_(log_distribution)
                joint_sum = joint.logsumexp(dim=1, keepdim=True)
                student_sum = student.logsumexp(dim=1, keepdim=True)
                value += (weights[block] * (joint_sum - beta * student_sum).squeeze(1)).sum()
                gradient = joint.sub_(joint_sum).exp_().sub_(student.sub_(student_sum).exp_()).mul_(scale)
                side = slice(block.start + place * pairs, block.stop + place * pairs)
                if grad_rows is not None:
                    grad_rows[side] = gradient @ weight
                grad_weight.addmm_(gradient.T, rows[side])
        ctx.save_for_backward(grad_rows, grad_weight)
        return value / (2 * pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        return None if grad_rows is None else grad * grad_rows, grad * grad_weight, None, None, None, None, None, None


def _blocks(pairs: int, num_clusters: int) -> list[slice]:
    step = max(1, _TILE // (2 * num_clusters))
    return [slice(start, min(start + step, pairs)) for start in range(0, pairs, step)]


def _logits(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    block: slice,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the logits, over the temperature, of the first and of the second rows of some pairs."""
    pairs, wide = len(rows) // 2, torch.promote_types(rows.dtype, torch.float32)
    sides = rows[block], rows[block.start + pairs : block.stop + pairs]
    with torch.autocast(rows.device.type, enabled=False):
        first, second = ((side.to(wide) / temperature) @ weight.to(wide).T for side in sides)
        return first, second
