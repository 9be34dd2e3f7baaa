"""Training methods, one file per method."""

from deepclust_ext.methods.base import ClusteringMethod
from deepclust_ext.methods.hadis import HaDis

__all__ = ["ClusteringMethod", "HaDis"]
