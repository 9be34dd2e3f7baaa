"""Assignment of rows to their nearest centroids, and the sums of the clusters, in plain PyTorch."""

import math

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.reference.tangents import refuse_tangents


@float32_under_autocast
@torch.no_grad()
def kmeans_assign(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    *,
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor]:
    """Assign by a full N x K matrix; see :func:`deepclust_ext.kmeans_assign` for the contract."""
    refuse_tangents("kmeans_assign", features, centroids)
    accumulation = torch.promote_types(features.dtype, torch.float32)
    rows, columns = features.to(accumulation), centroids.to(accumulation)
    finite = torch.isfinite(rows).all(dim=1) & torch.isfinite(columns).all()  # (N,)
    if metric == "cosine":
        pairs = 1 - l2_normalize(rows, dim=1) @ l2_normalize(columns, dim=1).T  # (N, K)
    else:  # by differences: the form with a matrix product cancels
        pairs = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    labels = pairs.argmin(dim=1)
    distances = pairs.gather(1, labels.unsqueeze(1)).squeeze(1)
    return torch.where(finite, labels, -1), torch.where(finite, distances, math.nan).to(features.dtype)


@float32_under_autocast
@torch.no_grad()
def kmeans_step(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    *,
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Assign, then move the centers; see :func:`deepclust_ext.ops.kmeans_step` for the contract."""
    refuse_tangents("kmeans_step", features, centroids)
    labels, _ = kmeans_assign(features, centroids, metric=metric)
    sums, counts = kmeans_update(features, labels, len(centroids))
    centers = centers_of(sums, counts, centroids, metric)
    shift = (centers.double() - centroids.to(sums.dtype).double()).square().sum()
    return labels, centers, counts, torch.stack([shift, (counts == 0).sum().double()])


@torch.no_grad()
def kmeans_update(
    features: Tensor,  # (N, D)
    labels: Tensor,  # (N,) int64
    num_clusters: int,
) -> tuple[Tensor, Tensor]:
    """Add the rows of each label; see :func:`deepclust_ext.ops.kmeans_update` for the contract."""
    refuse_tangents("kmeans_update", features)
    accumulation = torch.promote_types(features.dtype, torch.float32)
    target = torch.where((labels >= 0) & (labels < num_clusters), labels, num_clusters)
    # In float64 the error does not grow with the number of rows.
    sums = features.new_zeros((num_clusters + 1, features.shape[1]), dtype=torch.float64)
    counts = torch.zeros(num_clusters + 1, dtype=torch.int64, device=features.device)
    sums.index_add_(0, target, features.double())
    counts.index_add_(0, target, torch.ones_like(labels))
    return sums[:-1].to(accumulation, copy=True), counts[:-1].clone()


def centers_of(
    sums: Tensor,  # (K, D)
    counts: Tensor,  # (K,)
    old: Tensor,  # (K, D)
    metric: str,
) -> Tensor:
    """Return means, or for cosine unit sums, (K, D) in the sums' dtype; an old center stays where there is none."""
    sizes = counts.unsqueeze(1) if metric == "euclidean" else sums.norm(dim=1, keepdim=True)
    return torch.where(sizes > 0, sums / sizes, old.to(sums.dtype))
