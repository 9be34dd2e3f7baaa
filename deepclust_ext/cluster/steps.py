"""The steps of k-means around its two ops; like these, deterministic on any device and number of threads."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext.cluster.ranks import fill_empty_over_ranks, scale_over_ranks, seeds_over_ranks, total_rows
from deepclust_ext.distributed import sum_over_ranks
from deepclust_ext.ops import kmeans_assign, kmeans_seed, kmeans_update
from deepclust_ext.reference.kmeans_seed import integer_scale

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def exact_sum(
    values: Tensor,  # (..., N) float64, none negative; with a group (n,) of this rank
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Return the sums (...) over the last dimension; taken of integers, they are the same in any order."""
    scale = integer_scale(values) if group is None else scale_over_ranks(values, total_rows(values, group), group)
    sums = (values * scale).long().sum(dim=-1)
    return (sums if group is None else sum_over_ranks(sums, group)) / scale


def seed_centers(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    metric: str,
    generator: torch.Generator | None,
    weights: Tensor | None = None,  # (N,) float64, above 0
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Return rows (K, D) chosen by greedy k-means++, as scikit-learn does: from 2 + log K candidates each.

    All random numbers are drawn at the start, and nothing waits for the device. With whole weights the same rows are
    chosen as from that many copies of each row.
    """
    trials = 2 + int(math.log(num_clusters))
    uniform = torch.rand(num_clusters, trials, dtype=torch.float64, generator=generator, device="cpu")
    return seed_rows(rows, uniform.to(rows.device), metric, weights, group)


def seed_rows(
    rows: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C) float64
    metric: str,
    weights: Tensor | None,  # (N,) float64, above 0
    group: "ProcessGroup | None",
) -> Tensor:
    """Return the rows (K, D) that random numbers choose."""
    if group is not None:
        return seeds_over_ranks(rows, uniform, metric, weights, group)
    return rows.index_select(0, kmeans_seed(rows, uniform, metric=metric, weights=weights))


def assign_and_sum(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
    metric: str,
    weights: Tensor | None = None,  # (N,) float64
    group: "ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels (N,), distances (N,), and the sums (K, D) and counts (K,) of :func:`cluster_sums`."""
    labels, distances = kmeans_assign(rows, centers, metric=metric)
    return labels, distances, *cluster_sums(rows, labels, len(centers), weights, group)


def cluster_sums(
    rows: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    num_clusters: int,
    weights: Tensor | None = None,  # (N,) float64
    group: "ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor]:
    """Return per cluster the sum (K, D) of its rows and their number (K,), or both in float64 with weights.

    With a group these are of the rows of all ranks, which exchange sums and numbers together, in float64.
    """
    if weights is None:
        sums, counts = kmeans_update(rows, labels, num_clusters)
    else:
        column = weights.unsqueeze(1)
        both, _ = kmeans_update(torch.cat([rows.double() * column, column], dim=1), labels, num_clusters)
        sums, counts = both[:, :-1], both[:, -1]
    if group is None:
        return sums, counts
    everything = sum_over_ranks(torch.cat([sums.double(), counts.double().unsqueeze(1)], dim=1), group)
    return everything[:, :-1].to(sums.dtype), everything[:, -1].to(counts.dtype)


def fill_empty(
    labels: Tensor,  # (N,)
    distances: Tensor,  # (N,)
    counts: Tensor,  # (K,), of rows or sums of weights
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Return labels (N,) that give each empty cluster one row, first the row that is farthest from its center.

    Every cluster keeps its nearest row, and rows at their center stay. So with fewer distinct rows than clusters, some
    clusters remain empty. With a group rows and counts are those of all ranks, and the labels those of this rank.
    """
    if group is not None:
        return fill_empty_over_ranks(labels, distances, counts, group)
    order = distances.sort(descending=True, stable=True).indices
    place = torch.arange(len(order), device=order.device)
    nearest = place.new_zeros(len(counts)).scatter_reduce(0, labels[order], place, "amax")
    free = distances[order] > 0
    free[nearest[labels]] = False
    empty = (counts == 0).nonzero().squeeze(1)
    moved = order[free][: len(empty)]
    return labels.index_copy(0, moved, empty[: len(moved)])
