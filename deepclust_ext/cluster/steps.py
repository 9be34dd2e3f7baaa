"""The steps of k-means around its two ops; like these, deterministic on any device and number of threads."""

import math

import torch
from torch import Tensor

from deepclust_ext.ops import kmeans_assign, kmeans_seed, kmeans_update
from deepclust_ext.reference.kmeans_seed import integer_scale


def exact_sum(
    values: Tensor,  # (..., N) float64, none negative
) -> Tensor:
    """Return the sums (...) over the last dimension; taken of integers, they are the same in any order."""
    scale = integer_scale(values)
    return (values * scale).long().sum(dim=-1) / scale


def seed_centers(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    metric: str,
    generator: torch.Generator | None,
    weights: Tensor | None = None,  # (N,) float64, above 0
) -> Tensor:
    """Return rows (K, D) chosen by greedy k-means++, as scikit-learn does: from 2 + log K candidates each.

    All random numbers are drawn at the start, and nothing waits for the device. Whole weights choose the rows that as
    many copies of each row would.
    """
    trials = 2 + int(math.log(num_clusters))
    uniform = torch.rand(num_clusters, trials, dtype=torch.float64, generator=generator, device="cpu")
    return rows.index_select(0, kmeans_seed(rows, uniform.to(rows.device), metric=metric, weights=weights))


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
