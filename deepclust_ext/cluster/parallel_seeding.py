"""First centers by k-means||: a few passes over the rows, each of which draws many candidates at once.

Source: B. Bahmani, B. Moseley, A. Vattani, R. Kumar and S. Vassilvitskii, Scalable k-means++, VLDB 2012.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext.cluster.ranks import rows_of_all
from deepclust_ext.cluster.steps import assign_and_sum, cluster_sums, exact_sum, seed_centers, seed_rows
from deepclust_ext.distributed import Shards, shards_of
from deepclust_ext.ops import kmeans_assign
from deepclust_ext.reference.kmeans_assign import centers_of
from deepclust_ext.reference.kmeans_seed import costs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PASSES = 5  # as in the paper's section 5
_OVERSAMPLING = 0.5  # candidates of a pass for each center; the paper's range begins at 0.1
_ITERATIONS = 5  # of Lloyd's on the candidates


@torch.no_grad()
def oversampled_centers(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    metric: str,
    generator: torch.Generator | None,
    weights: Tensor | None = None,  # (N,) float64, above 0
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Return centers (K, D) by k-means||, or by k-means++ where it finds no more candidates than centers.

    With a group each rank has some of the rows; the candidates, which are few, are on every rank.
    """
    shards = Shards((len(rows),), 0) if group is None else shards_of(rows, group)
    # Step 1: one row, by weight.
    uniform = torch.rand(1, 1, dtype=torch.float64, generator=generator, device="cpu").to(rows.device)
    candidates = [seed_rows(rows, uniform, metric, weights, group)]
    labels, distances = kmeans_assign(rows, candidates[0], metric=metric)
    # Steps 2 to 6: in each pass every row is a candidate with a probability of l cost / total.
    for _ in range(_PASSES):
        cost = costs(distances, metric, weights)
        uniform = torch.rand(shards.total, dtype=torch.float64, generator=generator, device="cpu")
        own = uniform[shards.start : shards.stop].to(rows.device)
        more = rows_of_all(rows[own * exact_sum(cost, group) < _OVERSAMPLING * num_clusters * cost], group)
        if not len(more):
            continue
        found, others = kmeans_assign(rows, more, metric=metric)
        labels = torch.where(others < distances, found + sum(map(len, candidates)), labels)
        distances = torch.minimum(others, distances)
        candidates.append(more)
    # Step 7: a candidate weighs what the rows do that are nearest to it.
    chosen = torch.cat(candidates)
    if len(chosen) <= num_clusters:
        return seed_centers(rows, num_clusters, metric, generator, weights, group)
    ones = distances.new_ones(len(rows), 1, dtype=torch.float64) if weights is None else weights.unsqueeze(1)
    shares = cluster_sums(ones, labels, len(chosen), group=group)[0].squeeze(1)
    # Step 8: k-means on the candidates.
    centers = seed_centers(chosen, num_clusters, metric, generator, shares)
    for _ in range(_ITERATIONS):
        _, _, sums, counts = assign_and_sum(chosen, centers, metric, shares)
        centers = centers_of(sums, counts, centers, metric).to(rows.dtype)
    return centers
