"""Training methods, one file per method."""

from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod, OptimizerSettings
from deepclust_ext.methods.boost import Boost
from deepclust_ext.methods.clc import CLC
from deepclust_ext.methods.hadis import HaDis
from deepclust_ext.methods.neighborhead import NeighborHead
from deepclust_ext.methods.pici import PICI
from deepclust_ext.methods.sacc import SACC
from deepclust_ext.methods.turtle import TURTLE

__all__ = [
    "CLC",
    "PICI",
    "SACC",
    "TURTLE",
    "Boost",
    "ClusterHeadMethod",
    "ClusteringMethod",
    "HaDis",
    "NeighborHead",
    "OptimizerSettings",
]
