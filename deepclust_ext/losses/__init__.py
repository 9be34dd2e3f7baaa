"""Losses as modules, one file per loss."""

from deepclust_ext.losses.cluster_contrastive import ClusterContrastiveLoss
from deepclust_ext.losses.contrastive import ContrastiveLoss
from deepclust_ext.losses.hsd import HSDLoss
from deepclust_ext.losses.masked_patch import MaskedPatchLoss
from deepclust_ext.losses.matched_label import MatchedLabelLoss
from deepclust_ext.losses.prototype import PrototypeLoss
from deepclust_ext.losses.sinkhorn import SinkhornKnopp

__all__ = [
    "ClusterContrastiveLoss",
    "ContrastiveLoss",
    "HSDLoss",
    "MaskedPatchLoss",
    "MatchedLabelLoss",
    "PrototypeLoss",
    "SinkhornKnopp",
]
