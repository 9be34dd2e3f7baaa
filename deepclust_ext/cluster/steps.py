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
) -> Tensor:
    """Return what rows add to the inertia, (..., N) float64: squared Euclidean or cosine distances."""
    distances = distances.double()
    return distances.square() if metric == "euclidean" else distances.clamp(min=0)


def seed_centers(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    metric: str,
    generator: torch.Generator | None,
) -> Tensor:
    """Return rows (K, D) chosen by greedy k-means++, as scikit-learn does.

    Each next center is, of 2 + log K rows drawn with probabilities proportional to their cost, the one that leaves the
    least total cost. All random numbers are drawn at the start, and nothing waits for the device.
    """
    trials = 2 + int(math.log(num_clusters))
    uniform = torch.rand(num_clusters, trials, dtype=torch.float64, generator=generator, device="cpu")
    uniform = uniform.to(rows.device)
    chosen = [(uniform[0, :1] * len(rows)).long()]

    def costs_to(
        index: Tensor,  # (C,)
    ) -> Tensor:
        centers = rows.index_select(0, index).split(1)
        return costs(torch.stack([kmeans_assign(rows, center, metric=metric)[1] for center in centers]), metric)

    least = costs_to(chosen[0]).squeeze(0)
    for step in range(1, num_clusters):
        scale = _integer_scale(least)
        cumulative = (least * scale).long().cumsum(dim=0)
        drawn = (uniform[step] * cumulative[-1]).long()
        # Where all costs are 0 the search ends behind the last row.
        candidates = torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(rows) - 1)
        left = torch.minimum(costs_to(candidates), least)  # (trials, N)
        best = (left * scale).long().sum(dim=1).argmin(dim=0, keepdim=True)
        least = left.index_select(0, best).squeeze(0)
        chosen.append(candidates.index_select(0, best))
    return rows.index_select(0, torch.cat(chosen))


def assign_and_sum(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
    metric: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels (N,), distances (N,), and per cluster the sums (K, D) and counts (K,) of its rows."""
    labels, distances = kmeans_assign(rows, centers, metric=metric)
    return labels, distances, *kmeans_update(rows, labels, len(centers))


def fill_empty(
    labels: Tensor,  # (N,)
    distances: Tensor,  # (N,)
    counts: Tensor,  # (K,)
) -> Tensor:
    """Return labels (N,) by which each empty cluster has one row: the farthest from their centers, in order.

    Every cluster keeps its nearest row, and rows at their center stay: with fewer distinct rows than clusters, some
    clusters remain empty.
    """
    order = distances.sort(descending=True, stable=True).indices
    place = torch.arange(len(order), device=order.device)
    nearest = torch.zeros_like(counts).scatter_reduce(0, labels[order], place, "amax")
    free = distances[order] > 0
    free[nearest[labels]] = False
    empty = (counts == 0).nonzero().squeeze(1)
    moved = order[free][: len(empty)]
    return labels.index_copy(0, moved, empty[: len(moved)])
