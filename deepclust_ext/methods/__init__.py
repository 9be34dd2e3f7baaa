"""Training methods, one file per method."""

from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.methods.hadis import HaDis
from deepclust_ext.methods.sacc import SACC

__all__ = ["SACC", "ClusterHeadMethod", "ClusteringMethod", "HaDis"]
