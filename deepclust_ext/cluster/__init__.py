"""K-means on tensors, as an estimator of scikit-learn's, and labels renamed to match another clustering."""

from deepclust_ext.cluster.kmeans import KMeans
from deepclust_ext.cluster.match_labels import match_labels

__all__ = ["KMeans", "match_labels"]
