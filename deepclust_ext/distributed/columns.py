"""The contrastive loss between the columns of a matrix whose rows are spread over ranks."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext.distributed.exchange import sum_over_ranks
from deepclust_ext.reference.fused_contrastive_loss import log_sums, losses_of_log_sums
from deepclust_ext.reference.normalize import MIN_NORM

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def column_contrast_and_usage(
    a: Tensor,  # (n, K) float32 or float64
    b: Tensor,  # (n, K)
    temperature: float | Tensor,
    group: "ProcessGroup | None",
) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss (), and the sums (2, K) of the columns of both views, the same on all ranks.

    There are two exchanges: the squares and sums of the 2K columns, then their 2K x 2K products. A column that is 0 on
    all ranks gets no gradient.
    """
    both = torch.cat([a, b], dim=1)  # (n, 2K)
    wide = both.double()  # in which the square of no float32 vanishes
    squares, sums = sum_over_ranks(torch.stack([wide.square().sum(dim=0), wide.sum(dim=0)]), group)
    is_empty = squares == 0
    norms = torch.where(is_empty, 1, squares).sqrt()
    is_short = is_empty | (norms <= MIN_NORM)
    units = torch.where(is_short, wide.detach() / MIN_NORM, wide / torch.where(is_short, 1, norms)).to(both.dtype)
    scores = sum_over_ranks(units.T @ units, group) / temperature  # (2K, 2K)
    count = a.shape[1]
    positive = scores.diagonal(count).repeat(2)
    own = torch.eye(count, dtype=torch.bool, device=a.device).repeat(2, 2)  # each column and its other view
    sums_of_exps = log_sums(scores.masked_fill(own, -torch.inf), 0.0)
    losses = losses_of_log_sums(positive, *sums_of_exps, 2 * count - 2, temperature, 0.0, 0.0)
    return losses.mean(), torch.where(is_empty, sums.detach(), sums).to(both.dtype).view(2, count)
