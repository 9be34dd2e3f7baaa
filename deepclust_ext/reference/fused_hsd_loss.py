"""Hardness-aware self-distillation loss, in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deepclust_ext.reference.batch_hard_mining import HardPairs, batch_hard_mining
from deepclust_ext.reference.temperature import positive_or_nan


class HSDStats(NamedTuple):
    """What tells a converged batch from a collapsed one; every field is a 0-dimensional tensor without gradient.

    Shares are of all anchors; mean distances are over the anchors that have such a pair (0 if none has).
    """

    zero_negative_weight: Tensor  # share of anchors whose negative carries no weight
    zero_positive_weight: Tensor  # share of anchors whose positive carries no weight
    no_negative: Tensor  # share of anchors without any negative
    mean_positive_distance: Tensor
    mean_negative_distance: Tensor


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
    loss, stats = hsd_loss_of_pairs(batch_hard_mining(teacher, student, normalize=normalize), temperature, reduction)
    return (loss, stats) if return_stats else loss


def hsd_loss_of_pairs(pairs: HardPairs, temperature: float | Tensor, reduction: str) -> tuple[Tensor, HSDStats]:
    """Return the loss of pairs that have been mined, and its statistics."""
    temperature = positive_or_nan(temperature)
    positive_weight = (pairs.positive_distance - pairs.positive_teacher_distance).clamp(min=0).detach()
    negative_weight = (pairs.negative_teacher_distance - pairs.negative_distance).clamp(min=0).detach()
    positive_logit = positive_weight * pairs.positive_distance / temperature
    negative_logit = negative_weight * pairs.negative_distance / temperature
    loss = -logsigmoid(negative_logit - positive_logit)
    if reduction != "none":
        loss = loss.sum() / (max(len(loss), 1) if reduction == "mean" else 1)
    return loss, _collect_stats(pairs, positive_weight, negative_weight)


@torch.no_grad()
def _collect_stats(
    pairs: HardPairs,
    positive_weight: Tensor,  # (N,)
    negative_weight: Tensor,  # (N,)
) -> HSDStats:
    has_positive, has_negative = pairs.positive_index >= 0, pairs.negative_index >= 0
    count = max(len(positive_weight), 1)
    return HSDStats(
        (negative_weight == 0).sum() / count,
        (positive_weight == 0).sum() / count,
        (~has_negative).sum() / count,
        pairs.positive_distance.sum() / has_positive.sum().clamp(min=1),
        pairs.negative_distance.sum() / has_negative.sum().clamp(min=1),
    )
