"""Training methods, one file per method."""

from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod, OptimizerSettings
from deepclust_ext.methods.clc import CLC
from deepclust_ext.methods.hadis import HaDis
from deepclust_ext.methods.neighborhead import NeighborHead
from deepclust_ext.methods.pici import PICI
from deepclust_ext.methods.sacc import SACC

__all__ = ["CLC", "PICI", "SACC", "ClusterHeadMethod", "ClusteringMethod", "HaDis", "NeighborHead", "OptimizerSettings"]
