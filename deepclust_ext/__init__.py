"""Fused kernels and training methods for contrastive deep clustering."""

from deepclust_ext.ops import (
    HardPairs,
    HSDStats,
    augment_views,
    batch_hard_mining,
    diffused_neighbor_gather,
    fused_contrastive_loss,
    fused_hsd_loss,
    kmeans_assign,
    nearest_neighbors,
    sinkhorn_knopp,
)

__version__ = "0.1.0"

__all__ = [
    "HSDStats",
    "HardPairs",
    "augment_views",
    "batch_hard_mining",
    "diffused_neighbor_gather",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "kmeans_assign",
    "nearest_neighbors",
    "sinkhorn_knopp",
]
