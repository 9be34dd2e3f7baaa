"""The public functions, one file per op."""

from deepclust_ext.ops.augment_views import augment_views
from deepclust_ext.ops.batch_hard_mining import batch_hard_mining
from deepclust_ext.ops.diffused_neighbor_gather import diffused_neighbor_gather
from deepclust_ext.ops.fused_contrastive_loss import fused_contrastive_loss
from deepclust_ext.ops.fused_hsd_loss import fused_hsd_loss
from deepclust_ext.ops.kmeans_assign import kmeans_assign, kmeans_step, kmeans_update
from deepclust_ext.ops.kmeans_seed import kmeans_seed
from deepclust_ext.ops.nearest_neighbors import nearest_neighbors
from deepclust_ext.ops.pair_information import pair_information, pair_statistics
from deepclust_ext.ops.sinkhorn_knopp import sinkhorn_knopp
from deepclust_ext.reference import HardPairs, HSDStats

__all__ = [
    "HSDStats",
    "HardPairs",
    "augment_views",
    "batch_hard_mining",
    "diffused_neighbor_gather",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "kmeans_assign",
    "kmeans_seed",
    "kmeans_step",
    "kmeans_update",
    "nearest_neighbors",
    "pair_information",
    "pair_statistics",
    "sinkhorn_knopp",
]
