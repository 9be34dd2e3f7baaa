"""Scores of a clustering, with and without true labels, and the report of a run."""

from deepclust_ext.evaluation.metrics import adjusted_rand, clustering_accuracy, normalized_mutual_info
from deepclust_ext.evaluation.scores import ClusterScores, Evaluation, evaluate, knn_accuracy, score_clusters

__all__ = [
    "ClusterScores",
    "Evaluation",
    "adjusted_rand",
    "clustering_accuracy",
    "evaluate",
    "knn_accuracy",
    "normalized_mutual_info",
    "score_clusters",
]
