"""One evaluation for every method: neighbors, k-means and, where there is one, the cluster head against true labels."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext.cluster import KMeans
from deepclust_ext.evaluation.metrics import adjusted_rand, clustering_accuracy, normalized_mutual_info
from deepclust_ext.inference import device_of, map_images
from deepclust_ext.inference.loop import View
from deepclust_ext.methods import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.ops import nearest_neighbors

#: Rows that the silhouette is taken of at most, since it needs all distances among them.
SILHOUETTE_ROWS = 10_000


@dataclass(frozen=True)
class ClusterScores:
    """How clusters agree with true labels, and how they lie.

    Attributes:
        acc: Share of rows on the best one-to-one matching of clusters to classes.
        nmi: Normalised mutual information.
        ari: Adjusted Rand index.
        silhouette: Mean silhouette by cosine distance, of 10,000 rows at most; None unless at least two clusters,
            and fewer than rows, are in use.
        sizes: Rows of every cluster.
    """

    acc: float
    nmi: float
    ari: float
    silhouette: float | None
    sizes: list[int]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` returns.

    Attributes:
        knn_accuracy: Share of images whose class the weighted vote of their neighbors names.
        kmeans: Scores of spherical k-means on the method's rows.
        head: Scores of the clusters that the method itself assigns, or None.
    """

    knn_accuracy: float
    kmeans: ClusterScores
    head: ClusterScores | None

    @property
    def clusters(self) -> ClusterScores:
        """The scores of the method's final clusters: its head's, or without one those of k-means."""
        return self.head or self.kmeans


def evaluate(
    method: ClusteringMethod,
    data: Dataset[Any],  # of (image (C, H, W), class)
    *,
    knn_k: int = 20,
    knn_t: float = 0.07,
    n_init: int = 20,
    seed: int = 0,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
) -> Evaluation:
    """Score a method on labelled images; nothing is trained, and labels are read here alone.

    Args:
        method: Whose rows, and clusters if it has a head, are scored; on its device.
        data: Map-style, of an image and its class.
        knn_k: Neighbors that vote; an image does not vote for itself.
        knn_t: Temperature: a vote weighs exp(cosine / ``knn_t``).
        n_init: Starts of k-means.
        seed: Of k-means, and of the choice of rows for the silhouette.
        test_view: From a batch of images to a batch; None for the images as they are.
        batch_size: Images that are embedded at a time.
        num_workers: Processes that load images.

    Raises:
        ValueError: If there are fewer than two images, or fewer than clusters.
    """
    if len(cast(Sized, data)) < 2:
        raise ValueError(f"data: expected at least 2 images, got {len(cast(Sized, data))}")

    def rows_and_head(images: Tensor) -> tuple[Tensor, ...]:
        head = (method.assign(images).argmax(dim=1),) if isinstance(method, ClusterHeadMethod) else ()
        return (method.embed(images), *head)

    rows, *head, labels = map_images(
        rows_and_head,
        data,
        test_view=test_view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of(method),
        with_labels=True,
    )
    kmeans = KMeans(method.num_clusters, metric="cosine", n_init=n_init, random_state=seed).fit_predict(rows)
    kmeans_scores, *head_scores = (
        score_clusters(labels, predicted, rows, method.num_clusters, seed=seed) for predicted in (kmeans, *head)
    )
    return Evaluation(
        knn_accuracy(rows, labels, k=knn_k, temperature=knn_t),
        kmeans_scores,
        head_scores[0] if head_scores else None,
    )


def knn_accuracy(
    rows: Tensor,  # (N, D)
    labels: Tensor,  # (N,) integers
    *,
    k: int,
    temperature: float,
) -> float:
    """Return the share of rows whose label has the most weight among their k nearest others, by exp(cosine / T)."""
    own = torch.arange(len(rows), device=rows.device)
    cosines, neighbors = nearest_neighbors(rows, rows, k=min(k, len(rows) - 1), exclude=own)
    classes, names = labels.cpu().unique(return_inverse=True)
    weights = ((cosines.double().cpu() - 1) / temperature).exp()
    votes = torch.zeros(len(rows), len(classes), dtype=torch.float64)
    votes.scatter_add_(1, names[neighbors.cpu()], weights)
    return float((votes.argmax(dim=1) == names).double().mean())


def score_clusters(
    labels: Tensor,  # (N,) true classes
    predicted: Tensor,  # (N,) int64
    rows: Tensor,  # (N, D) that the silhouette is taken of
    num_clusters: int,
    *,
    seed: int = 0,
) -> ClusterScores:
    """Return the scores of clusters against true labels."""
    labels, predicted = labels.cpu(), predicted.cpu()
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:SILHOUETTE_ROWS]
    silhouette = None
    if 2 <= len(predicted[some].unique()) < len(some):
        silhouette = float(silhouette_score(rows.cpu()[some].numpy(), predicted[some].numpy(), metric="cosine"))
    return ClusterScores(
        acc=clustering_accuracy(labels, predicted),
        nmi=normalized_mutual_info(labels, predicted),
        ari=adjusted_rand(labels, predicted),
        silhouette=silhouette,
        sizes=predicted.bincount(minlength=num_clusters).tolist(),
    )
