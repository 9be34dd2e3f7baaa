"""First centers by k-means||: a few passes over the rows, each of which draws many candidates at once.

Source: B. Bahmani, B. Moseley, A. Vattani, R. Kumar and S. Vassilvitskii, Scalable k-means++, VLDB 2012.
"""

import torch
from torch import Tensor

from deepclust_ext.cluster.steps import assign_and_sum, exact_sum, seed_centers
from deepclust_ext.ops import kmeans_assign, kmeans_seed, kmeans_update
from deepclust_ext.reference.kmeans_assign import centers_of
from deepclust_ext.reference.kmeans_seed import costs

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
) -> Tensor:
    """Return centers (K, D) by k-means||, or by k-means++ where it finds no more candidates than centers."""
    # Step 1: one row, by weight.
    uniform = torch.rand(1, 1, dtype=torch.float64, generator=generator, device="cpu").to(rows.device)
    places = kmeans_seed(rows, uniform, metric=metric, weights=weights)
    candidates = [rows.index_select(0, places)]
    labels, distances = kmeans_assign(rows, candidates[0], metric=metric)
    # Steps 2 to 6: in each pass every row is a candidate with a probability of l cost / total.
    for _ in range(_PASSES):
        cost = costs(distances, metric, weights)
        uniform = torch.rand(len(rows), dtype=torch.float64, generator=generator, device="cpu").to(rows.device)
        drawn = uniform * exact_sum(cost) < _OVERSAMPLING * num_clusters * cost
        if not bool(drawn.any()):
            continue
        more = rows[drawn]
        found, others = kmeans_assign(rows, more, metric=metric)
        labels = torch.where(others < distances, found + sum(map(len, candidates)), labels)
        distances = torch.minimum(others, distances)
        candidates.append(more)
    # Step 7: a candidate weighs what the rows do that are nearest to it.
    chosen = torch.cat(candidates)
    if len(chosen) <= num_clusters:
        return seed_centers(rows, num_clusters, metric, generator, weights)
    ones = distances.new_ones(len(rows), 1, dtype=torch.float64) if weights is None else weights.unsqueeze(1)
    shares = kmeans_update(ones, labels, len(chosen))[0].squeeze(1)
    # Step 8: k-means on the candidates.
    centers = seed_centers(chosen, num_clusters, metric, generator, shares)
    for _ in range(_ITERATIONS):
        _, _, sums, counts = assign_and_sum(chosen, centers, metric, shares)
        centers = centers_of(sums, counts, centers, metric).to(rows.dtype)
    return centers
