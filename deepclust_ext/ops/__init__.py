"""The public functions, one file per op."""

from deepclust_ext.ops.batch_hard_mining import batch_hard_mining
from deepclust_ext.ops.fused_contrastive_loss import fused_contrastive_loss
from deepclust_ext.ops.fused_hsd_loss import fused_hsd_loss
from deepclust_ext.ops.kmeans_assign import kmeans_assign, kmeans_update
from deepclust_ext.ops.sinkhorn_knopp import sinkhorn_knopp
from deepclust_ext.reference import HardPairs, HSDStats

__all__ = [
    "HSDStats",
    "HardPairs",
    "batch_hard_mining",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "kmeans_assign",
    "kmeans_update",
    "sinkhorn_knopp",
]
