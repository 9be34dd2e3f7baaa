"""Fused kernels and training methods for contrastive deep clustering."""

from typing import TYPE_CHECKING, Any

from deepclust_ext.ops import (
    HardPairs,
    HSDStats,
    augment_views,
    batch_hard_mining,
    diffused_neighbor_gather,
    fused_contrastive_loss,
    fused_hsd_loss,
    kmeans_assign,
    kmeans_seed,
    nearest_neighbors,
    sinkhorn_knopp,
)

if TYPE_CHECKING:
    from deepclust_ext.clusterer import DeepClusterer

__version__ = "0.1.0"

__all__ = [
    "DeepClusterer",
    "HSDStats",
    "HardPairs",
    "augment_views",
    "batch_hard_mining",
    "diffused_neighbor_gather",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "kmeans_assign",
    "kmeans_seed",
    "nearest_neighbors",
    "sinkhorn_knopp",
]


def __getattr__(name: str) -> Any:
    """Return the estimator, which takes scikit-learn and all rooms: they are imported by who asks for it."""
    if name == "DeepClusterer":
        from deepclust_ext.clusterer import DeepClusterer

        return DeepClusterer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
