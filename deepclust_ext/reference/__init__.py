"""Plain-PyTorch definitions of every op.

Besides the kernels, only these functions contain the mathematics. Tests take them in float64 as the truth, benchmarks
time them as a rival, and the ops fall back to them where there is no native kernel. They build every N x N matrix, work
on any device and in any floating dtype, and are differentiable by autograd.
"""

from deepclust_ext.reference.augment_views import augment_views
from deepclust_ext.reference.batch_hard_mining import HardPairs, batch_hard_mining
from deepclust_ext.reference.diffused_neighbor_gather import diffused_neighbor_gather
from deepclust_ext.reference.fused_contrastive_loss import fused_contrastive_loss
from deepclust_ext.reference.fused_hsd_loss import HSDStats, fused_hsd_loss
from deepclust_ext.reference.kmeans_assign import kmeans_assign, kmeans_step, kmeans_update
from deepclust_ext.reference.kmeans_seed import kmeans_seed
from deepclust_ext.reference.nearest_neighbors import nearest_neighbors
from deepclust_ext.reference.pair_information import pair_information, pair_statistics
from deepclust_ext.reference.sinkhorn_knopp import sinkhorn_knopp

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
