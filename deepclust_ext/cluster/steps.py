"""The steps of k-means around its two ops; like these, deterministic on any device and number of threads."""

import math

import torch
from torch import Tensor

from deepclust_ext.ops import kmeans_assign, kmeans_update


def exact_sum(
    values: Tensor,  # (..., N) float64, none negative
) -> Tensor:
    """Return the sums (...) over the last dimension; taken of integers, they are the same in any order."""
    scale = _integer_scale(values)
    return (values * scale).long().sum(dim=-1) / scale


def _integer_scale(
    values: Tensor,  # (..., N) float64, none negative
) -> Tensor:
    """Return by what to multiply values so that they hardly lose as integers, yet the sum of a row fits int64, ()."""
    return 2.0 ** (62 - values.shape[-1].bit_length()) / values.amax().clamp(min=1e-280)  # which leaves it finite


def costs(
    distances: Tensor,  # (..., N) of kmeans_assign
    metric: str,
    weights: Tensor | None = None,  # (N,) float64
) -> Tensor:
    """Return what rows add to the inertia, (..., N) float64: squared Euclidean or cosine distances, times weights."""
    distances = distances.double()
    each = distances.square() if metric == "euclidean" else distances.clamp(min=0)
    return each if weights is None else each * weights


def seed_centers(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    metric: str,
    generator: torch.Generator | None,
    weights: Tensor | None = None,  # (N,) float64, above 0
) -> Tensor:
    """Return rows (K, D) chosen by greedy k-means++, as scikit-learn does.

    Each next center is, of 2 + log K rows drawn with probabilities proportional to their cost, the one that leaves the
    least total cost. All random numbers are drawn at the start, and nothing waits for the device. Whole weights choose
    the rows that as many copies of each row would.
    """
    trials = 2 + int(math.log(num_clusters))
    uniform = torch.rand(num_clusters, trials, dtype=torch.float64, generator=generator, device="cpu")
    uniform = uniform.to(rows.device)
    if weights is None:
        chosen = [(uniform[0, :1] * len(rows)).long()]
    else:
        chosen = [_drawn(weights, _integer_scale(weights), uniform[0, :1])]

    def costs_to(
        index: Tensor,  # (C,)
    ) -> Tensor:
        centers = rows.index_select(0, index).split(1)
        return costs(
            torch.stack([kmeans_assign(rows, center, metric=metric)[1] for center in centers]), metric, weights
        )

    least = costs_to(chosen[0]).squeeze(0)
    for step in range(1, num_clusters):
        scale = _integer_scale(least)
        candidates = _drawn(least, scale, uniform[step])
        left = torch.minimum(costs_to(candidates), least)  # (trials, N)
        best = (left * scale).long().sum(dim=1).argmin(dim=0, keepdim=True)
        least = left.index_select(0, best).squeeze(0)
        chosen.append(candidates.index_select(0, best))
    return rows.index_select(0, torch.cat(chosen))


def _drawn(
    shares: Tensor,  # (N,) float64, none negative
    scale: Tensor,  # () of _integer_scale
    uniform: Tensor,  # (C,) float64, in [0, 1)
) -> Tensor:
    """Return the places (C,) that uniform numbers fall on, each as often as its share says."""
    cumulative = (shares * scale).long().cumsum(dim=0)
    drawn = (uniform * cumulative[-1]).long()
    # Where all shares are 0 the search ends behind the last row.
    return torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(shares) - 1)


def assign_and_sum(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
    metric: str,
    weights: Tensor | None = None,  # (N,) float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels (N,), distances (N,), and the sums (K, D) and counts (K,) of :func:`cluster_sums`."""
    labels, distances = kmeans_assign(rows, centers, metric=metric)
    return labels, distances, *cluster_sums(rows, labels, len(centers), weights)


def cluster_sums(
    rows: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    num_clusters: int,
    weights: Tensor | None = None,  # (N,) float64
) -> tuple[Tensor, Tensor]:
    """Return per cluster the sum (K, D) of its rows and their number (K,), or both in float64 with weights."""
    if weights is None:
        return kmeans_update(rows, labels, num_clusters)
    column = weights.unsqueeze(1)
    sums, _ = kmeans_update(torch.cat([rows.double() * column, column], dim=1), labels, num_clusters)
    return sums[:, :-1], sums[:, -1]


def fill_empty(
    labels: Tensor,  # (N,)
    distances: Tensor,  # (N,)
    counts: Tensor,  # (K,), of rows or sums of weights
) -> Tensor:
    """Return labels (N,) by which each empty cluster has one row: the farthest from their centers, in order.

    Every cluster keeps its nearest row, and rows at their center stay: with fewer distinct rows than clusters, some
    clusters remain empty.
    """
    order = distances.sort(descending=True, stable=True).indices
    place = torch.arange(len(order), device=order.device)
    nearest = place.new_zeros(len(counts)).scatter_reduce(0, labels[order], place, "amax")
    free = distances[order] > 0
    free[nearest[labels]] = False
    empty = (counts == 0).nonzero().squeeze(1)
    moved = order[free][: len(empty)]
    return labels.index_copy(0, moved, empty[: len(moved)])
