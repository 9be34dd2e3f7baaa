"""Hardness-aware self-distillation loss, in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deepclust_ext.reference.autocast import float32_under_autocast, with_range
from deepclust_ext.reference.batch_hard_mining import HardPairs, batch_hard_mining
from deepclust_ext.reference.temperature import positive_or_nan


class HSDStats(NamedTuple):
    """Statistics that distinguish a converged batch from a collapsed one, as 0-dimensional tensors without gradient.

    Shares are those of all anchors; mean distances are over the anchors that have such a pair (0 if none has).
    """

    zero_negative_weight: Tensor  # share of anchors whose negative carries no weight
    zero_positive_weight: Tensor  # share of anchors whose positive carries no weight
    no_negative: Tensor  # share of anchors without any negative
    mean_positive_distance: Tensor
    mean_negative_distance: Tensor


@float32_under_autocast
def fused_hsd_loss(
    teacher: Tensor,  # (N, D)
    student: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, HSDStats]:
    """Loss from full N x N distance matrices; see :func:`deepclust_ext.fused_hsd_loss` for the contract."""
    rows = (teacher, student) if normalize else (with_range(teacher), with_range(student))
    loss, stats = hsd_loss_of_pairs(batch_hard_mining(*rows, normalize=normalize), temperature, reduction)
    loss = loss.to(teacher.dtype)
    return (loss, stats) if return_stats else loss


def hsd_loss_of_pairs(pairs: HardPairs, temperature: float | Tensor, reduction: str) -> tuple[Tensor, HSDStats]:
    """Return the loss of pairs that have been mined, and its statistics."""
    loss, sums = hsd_losses_of_pairs(pairs, temperature)
    count = len(loss)
    if reduction != "none":
        loss = loss.sum() / (max(count, 1) if reduction == "mean" else 1)
    return loss, stats_of_sums(sums, count)


def hsd_losses_of_pairs(pairs: HardPairs, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (N,) of pairs that have been mined, and the sums (7,) that :func:`stats_of_sums` takes."""
    temperature = positive_or_nan(temperature)
    pairs = HardPairs._make(map(with_range, pairs))
    positive_weight = (pairs.positive_distance - pairs.positive_teacher_distance).clamp(min=0).detach()
    negative_weight = (pairs.negative_teacher_distance - pairs.negative_distance).clamp(min=0).detach()
    positive_logit = positive_weight * pairs.positive_distance / temperature
    negative_logit = negative_weight * pairs.negative_distance / temperature
    return -logsigmoid(negative_logit - positive_logit), _stat_sums(pairs, positive_weight, negative_weight)


@torch.no_grad()
def _stat_sums(
    pairs: HardPairs,
    positive_weight: Tensor,  # (N,)
    negative_weight: Tensor,  # (N,)
) -> Tensor:
    has_positive, has_negative = pairs.positive_index >= 0, pairs.negative_index >= 0
    values = (
        negative_weight == 0,
        positive_weight == 0,
        ~has_negative,
        pairs.positive_distance,
        pairs.negative_distance,
        has_positive,
        has_negative,
    )
    sums = torch.stack([value.double().sum() for value in values])
    return sums.to(torch.promote_types(positive_weight.dtype, torch.float32))


def stats_of_sums(
    sums: Tensor,  # (7,)
    count: int,
) -> HSDStats:
    """Return the statistics of ``count`` anchors."""
    shares, (positive, negative, positives, negatives) = sums[:3] / max(count, 1), sums[3:]
    return HSDStats._make((*shares, positive / positives.clamp(min=1), negative / negatives.clamp(min=1)))
