"""Estimators with scikit-learn's names, on tensors."""

from deepclust_ext.cluster.kmeans import KMeans

__all__ = ["KMeans"]
