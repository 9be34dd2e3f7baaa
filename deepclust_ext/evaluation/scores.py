"""One evaluation for every method, against true labels: of neighbors, of k-means, and of the cluster head if any."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext.cluster import KMeans
from deepclust_ext.data.words import item_of
from deepclust_ext.evaluation.metrics import (
    Labels,
    adjusted_rand,
    as_labels,
    clustering_accuracy,
    normalized_mutual_info,
)
from deepclust_ext.inference import device_of, map_images
from deepclust_ext.inference.loop import View
from deepclust_ext.methods import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.ops._checks import (
    check_dtype,
    check_integer,
    check_positive,
    check_size,
    check_tensor,
    check_values,
)
from deepclust_ext.ops.nearest_neighbors import MAX_NEIGHBORS, nearest_neighbors
from deepclust_ext.reference.normalize import l2_normalize

#: Rows whose silhouettes are computed at a time.
SILHOUETTE_ROWS = 65_536


@dataclass(frozen=True)
class ClusterScores:
    """How well clusters agree with true labels, and how compact and separate they are.

    Attributes:
        acc: Share of rows on the best one-to-one matching of clusters to classes.
        nmi: Normalized mutual information.
        ari: Adjusted Rand index.
        silhouette: Mean silhouette by cosine distance, see :func:`cosine_silhouette`.
        sizes: Rows of every cluster.
    """

    acc: float
    nmi: float
    ari: float
    silhouette: float | None
    sizes: list[int]


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

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
    """Score a method on labeled images; nothing is trained.

    Args:
        method: The method, on its device. Its rows are scored, and its clusters if it has a cluster head. Half
            precision is scored in float32, even under autocast.
        data: Map-style; an item is an image and its class, an integer or a name, and anything after these is ignored.
        knn_k: Number of neighbors that vote, at most 256; fewer if there are fewer. An image does not vote for itself.
        knn_t: Temperature: a vote weighs exp(cosine / ``knn_t``).
        n_init: Number of starts of k-means.
        seed: Seed of k-means.
        test_view: Maps a batch of images to a batch; None for unchanged images.
        batch_size: Number of images that are embedded at a time.
        num_workers: Processes that load images.

    Raises:
        TypeError: If an item is no image and its class, or a setting is of the wrong type.
        ValueError: If there are fewer than two images, or fewer than clusters, or a setting is out of range.
    """
    count, item = len(cast(Sized, data)), item_of(data)
    if count < 2:
        raise ValueError(f"data: expected at least 2 {item}s, got {count}")
    # Before anything is embedded, which may take hours.
    if count < method.num_clusters:
        raise ValueError(f"num_clusters: expected at most {count}, the number of {item}s, got {method.num_clusters}")
    _check_vote(knn_k, knn_t, count - 1, ("knn_k", "knn_t"))
    seed = check_integer(seed, "seed", 0, 2**64 - 1)
    n_init = check_integer(n_init, "n_init", 1)
    kmeans = KMeans(method.num_clusters, metric="cosine", n_init=n_init, random_state=seed)

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
    with torch.autocast(rows.device.type, enabled=False):
        found = kmeans.fit_predict(_wide(rows))
        kmeans_scores, *head_scores = (
            score_clusters(labels, predicted, rows, method.num_clusters) for predicted in (found, *head)
        )
        return Evaluation(
            knn_accuracy(rows, labels, k=knn_k, temperature=knn_t),
            kmeans_scores,
            head_scores[0] if head_scores else None,
        )


def knn_accuracy(
    rows: Tensor,  # (N, D)
    labels: Labels,  # (N,)
    *,
    k: int,
    temperature: float,
) -> float:
    """Return the share of rows whose label has the most weight, exp(cosine / T), among their k nearest other rows.

    Args:
        rows: Floating; half precision is computed in float32.
        labels: Integers or names.
        k: Number of neighbors that vote, at most 256; fewer if there are fewer.
        temperature: T, positive.

    Raises:
        TypeError: If ``k`` is no integer, or the rows are no floating tensor with values.
        ValueError: If there are fewer than two rows, or other labels than rows, a row is not finite, or a number is out
            of range.
    """
    _check_rows(rows)
    if len(rows) < 2:
        raise ValueError(f"rows: expected at least 2, got {len(rows)}")
    k = _check_vote(k, temperature, len(rows) - 1, ("k", "temperature"))
    classes, names = np.unique(_labels("labels", labels, len(rows)), return_inverse=True)
    own = torch.arange(len(rows), device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        rows = _wide(rows)
        cosines, neighbors = nearest_neighbors(rows, rows, k=k, exclude=own)
    cosines = cosines.double().cpu()
    if bool(cosines.isnan().any()):
        raise ValueError("rows: expected finite numbers, got NaN or infinity")
    weights = ((cosines - cosines[:, :1]) / temperature).exp()  # of the nearest 1, whatever the temperature
    votes = torch.zeros(len(rows), len(classes), dtype=torch.float64, device="cpu")
    true = torch.from_numpy(names)
    votes.scatter_add_(1, true[neighbors.cpu()], weights)
    return float((votes.argmax(dim=1) == true).double().mean())


def score_clusters(
    labels: Labels,  # (N,) true classes
    predicted: Labels,  # (N,) integers from 0 on
    rows: Tensor,  # (N, D) that the silhouette is taken of
    num_clusters: int,
) -> ClusterScores:
    """Return the scores of clusters against true labels, which are integers or names.

    Raises:
        TypeError: If the rows are no floating tensor, or ``num_clusters`` or a cluster no integer.
        ValueError: If there are other labels or clusters than rows, or clusters are not 0 to ``num_clusters`` - 1.
    """
    _check_rows(rows)
    num_clusters = check_size(num_clusters, "num_clusters")
    true, found = _labels("labels", labels, len(rows)), _labels("predicted", predicted, len(rows))
    if found.dtype.kind not in "iu":
        raise TypeError(f"predicted: expected integers, got {found.dtype}")
    if found.size and not 0 <= found.min() <= found.max() < num_clusters:
        raise ValueError(f"predicted: expected 0 to {num_clusters - 1}, got {found.min()} to {found.max()}")
    return ClusterScores(
        acc=clustering_accuracy(true, found),
        nmi=normalized_mutual_info(true, found),
        ari=adjusted_rand(true, found),
        silhouette=cosine_silhouette(rows, torch.from_numpy(found)),
        sizes=np.bincount(found, minlength=num_clusters).tolist(),
    )


@torch.no_grad()
def cosine_silhouette(
    rows: Tensor,  # (N, D)
    clusters: Tensor,  # (N,) integers
) -> float | None:
    r"""Return the mean silhouette of rows by cosine distance, exactly, without a matrix of distances.

    The silhouette of a row is :math:`(b - a) / \max(a, b)`, with its mean distances :math:`a` to the other rows of its
    cluster and :math:`b` to the rows of the nearest other cluster; it is 0 in a cluster of one row. A mean cosine
    distance is 1 minus the product with the mean of unit rows, so all together take N K D operations.

    Returns:
        The mean, between -1 and 1; None unless at least two clusters, and fewer than rows, are in use.

    Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.
    """
    _, clusters, counts = clusters.to(rows.device).unique(return_inverse=True, return_counts=True)
    if not 2 <= len(counts) < len(rows):
        return None
    sums = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64, device=rows.device)
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    blocks = list(zip(rows.split(SILHOUETTE_ROWS), clusters.split(SILHOUETTE_ROWS), strict=True))
    for block, own in blocks:
        sums.index_add_(0, own, l2_normalize(block.double(), dim=1))
    for block, own in blocks:
        block = l2_normalize(block.double(), dim=1)
        distances = counts - block @ sums.T  # (B, K), of each row to all of a cluster together
        own = own.unsqueeze(1)
        itself = 1 - block.square().sum(dim=1, keepdim=True)  # 1 for a row of zeros, which scikit-learn leaves out too
        others = counts[own] - 1
        inside = (distances.gather(1, own) - itself) / others.clamp(min=1)
        outside = (distances / counts).scatter(1, own, torch.inf).amin(dim=1, keepdim=True)
        spread = torch.maximum(inside, outside)
        silhouettes = (outside - inside) / spread
        total += silhouettes.where((others > 0) & (spread > 1e-12), 0).sum()  # below is rounding, of equal rows
    return float(total / len(rows))


def _check_rows(rows: object) -> None:
    check_tensor(rows, "rows")
    assert isinstance(rows, Tensor)
    check_values(rows, "rows")
    check_dtype(rows, "rows")
    if rows.dim() != 2:
        raise ValueError(f"rows: expected shape (N, D), got {tuple(rows.shape)}")


def _wide(
    rows: Tensor,  # (N, D)
) -> Tensor:
    """Return rows in at least float32: numpy has no bfloat16, and scores of coarse rows are coarse."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _labels(name: str, labels: Labels, count: int) -> NDArray[Any]:
    array = as_labels(name, labels)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one for each row, got {array.shape}")
    return array


def _check_vote(k: object, temperature: float, others: int, names: tuple[str, str]) -> int:
    """Return how many of the other images vote."""
    check_positive(temperature, names[1])
    return min(check_integer(k, names[0], 1, MAX_NEIGHBORS if others > MAX_NEIGHBORS else None), others)
