"""Estimators with scikit-learn's names, on tensors, and labels in the names of others."""

from deepclust_ext.cluster.kmeans import KMeans
from deepclust_ext.cluster.match_labels import match_labels

__all__ = ["KMeans", "match_labels"]
