"""Information of pairs by the shares of two heads, and its gradient, in plain PyTorch."""

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.tangents import refuse_tangents

#: Shares of a head that are in memory at a time, of both rows of the pairs: 1 MB, of which a block has a few.
_TILE = 1 << 18


@float32_under_autocast
@torch.no_grad()
def pair_information(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    teacher_rows: Tensor,  # (2B, E)
    teacher_weight: Tensor,  # (K, E)
    distribution: Tensor,  # (K,)
    pair_weights: Tensor,  # (B,)
    *,
    beta: float = 0.6,
    temperature: float = 0.1,
    want_rows: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute in float32 at least; see :func:`deepclust_ext.pair_information` for the contract."""
    given = (rows, weight, teacher_rows, teacher_weight, distribution, pair_weights)
    refuse_tangents("pair_information", *given)
    wide = torch.promote_types(rows.dtype, torch.float32)
    rows, weight, teacher_rows, teacher_weight, distribution, pair_weights = (part.to(wide) for part in given)
    pairs = len(pair_weights)
    log_distribution = distribution.clamp(min=torch.finfo(wide).tiny).log()
    is_finite = distribution.isfinite().all() & pair_weights.isfinite().all()
    information = rows.new_zeros(())
    grad_rows = torch.empty_like(rows) if want_rows else rows.new_empty(0, rows.shape[1])
    grad_weight = torch.zeros_like(weight)
    for block in _blocks(pairs, len(weight)):
        students = _logits(rows, weight, block, temperature)
        teachers = _logits(teacher_rows, teacher_weight, block, temperature)
        scale = (pair_weights[block] * (beta / (2 * pairs * temperature))).unsqueeze(1)
        for place, (student, teacher) in enumerate(zip(students, teachers[::-1], strict=True)):
            is_finite = is_finite & student.isfinite().all() & teacher.isfinite().all()
            # Logarithms of both shares, not the logits: one head may be surer by far than the other.
            joint = beta * (student.log_softmax(dim=1) + teacher.log_softmax(dim=1)) - log_distribution
            information = information + (pair_weights[block] * joint.logsumexp(dim=1)).sum()
            gradient = scale * (joint.softmax(dim=1) - student.softmax(dim=1))
            side = slice(block.start + place * pairs, block.stop + place * pairs)
            if want_rows:
                grad_rows[side] = gradient @ weight
            grad_weight += gradient.T @ rows[side]
    nan = torch.where(is_finite, 0.0, float("nan")).to(wide)
    return information / max(2 * pairs, 1) + nan, grad_rows + nan, grad_weight + nan


@float32_under_autocast
@torch.no_grad()
def pair_statistics(
    rows: Tensor,  # (2B, E)
    weight: Tensor,  # (K, E)
    *,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute in float32 at least; see :func:`deepclust_ext.ops.pair_statistics` for the contract."""
    refuse_tangents("pair_statistics", rows, weight)
    wide = torch.promote_types(rows.dtype, torch.float32)
    rows, weight = rows.to(wide), weight.to(wide)
    pairs = len(rows) // 2
    sums, largest, agreement = rows.new_zeros(len(weight)), rows.new_zeros(()), rows.new_empty(pairs)
    is_finite = torch.ones((), dtype=torch.bool, device=rows.device)
    for block in _blocks(pairs, len(weight)):
        logits = _logits(rows, weight, block, temperature)
        is_finite = is_finite & logits[0].isfinite().all() & logits[1].isfinite().all()
        first, second = (part.softmax(dim=1) for part in logits)
        agreement[block] = (first * second).sum(dim=1)
        sums += first.sum(dim=0) + second.sum(dim=0)
        largest = largest + first.amax(dim=1).sum() + second.amax(dim=1).sum()
    nan = torch.where(is_finite, 0.0, float("nan")).to(wide)
    return sums + nan, agreement + nan, largest / max(len(rows), 1) + nan


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
    pairs = len(rows) // 2
    sides = rows[block], rows[block.start + pairs : block.stop + pairs]
    first, second = ((side / temperature) @ weight.T for side in sides)
    return first, second
