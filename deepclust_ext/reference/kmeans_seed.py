"""Greedy k-means++ in plain PyTorch: rows chosen one by one as first centers, from given random numbers."""

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.kmeans_assign import kmeans_assign
from deepclust_ext.reference.tangents import refuse_tangents


@float32_under_autocast
@torch.no_grad()
def kmeans_seed(
    features: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C) float64, in [0, 1)
    *,
    metric: str = "euclidean",
    weights: Tensor | None = None,  # (N,) float64, none negative
) -> Tensor:
    """Choose by all distances to every candidate; see :func:`deepclust_ext.ops.kmeans_seed` for the contract."""
    refuse_tangents("kmeans_seed", features, uniform, *([] if weights is None else [weights]))
    rows = features.to(torch.promote_types(features.dtype, torch.float32))

    def costs_to(
        places: Tensor,  # (C,)
    ) -> Tensor:
        centers = rows.index_select(0, places).split(1)
        distances = [kmeans_assign(rows, center, metric=metric)[1] for center in centers]
        return costs(torch.stack(distances), metric, weights)

    if weights is None:
        chosen = [(uniform[0, :1] * len(rows)).long()]
    else:
        chosen = [_drawn(weights, integer_scale(weights), uniform[0, :1])]
    least = costs_to(chosen[0]).squeeze(0)
    for row in uniform[1:]:
        scale = integer_scale(least)
        candidates = _drawn(least, scale, row)
        left = torch.minimum(costs_to(candidates), least)  # (C, N)
        best = (left * scale).long().sum(dim=1).argmin(dim=0, keepdim=True)
        least = left.index_select(0, best).squeeze(0)
        chosen.append(candidates.index_select(0, best))
    return torch.where(torch.isfinite(rows).all(), torch.cat(chosen), -1)


def costs(
    distances: Tensor,  # (..., N) of kmeans_assign
    metric: str,
    weights: Tensor | None = None,  # (N,) float64
) -> Tensor:
    """Return what rows add to the inertia, (..., N) float64: squared Euclidean or cosine distances, times weights."""
    distances = distances.double()
    each = distances.square() if metric == "euclidean" else distances.clamp(min=0)
    return each if weights is None else each * weights


def integer_scale(
    values: Tensor,  # (..., N) float64, none negative
) -> Tensor:
    """Return the factor () that makes values integers with little loss, while the sum of a row still fits int64."""
    return 2.0 ** (62 - values.shape[-1].bit_length()) / values.amax().clamp(min=1e-280)  # which leaves it finite


def _drawn(
    shares: Tensor,  # (N,) float64, none negative
    scale: Tensor,  # () of integer_scale
    uniform: Tensor,  # (C,) float64, in [0, 1)
) -> Tensor:
    """Return the indices (C,) that uniform numbers choose, each in proportion to its share."""
    cumulative = (shares * scale).long().cumsum(dim=0)
    drawn = (uniform * cumulative[-1]).long()
    # Where all shares are 0 the search ends behind the last row.
    return torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(shares) - 1)
