"""Spherical k-means for pseudo-labels and final clusters, on scikit-learn."""

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import normalize


def spherical_kmeans(
    rows: Tensor,  # (N, D)
    num_clusters: int,
    *,
    seed: int,
    n_init: int,
) -> Tensor:
    """Return labels (N,) int64 of k-means on the rows divided by their L2 norm.

    Args:
        rows: What to cluster, on any device.
        num_clusters: K.
        seed: Of the k-means++ starts.
        n_init: Starts, of which the one with the least inertia is returned.

    Raises:
        ValueError: If there are fewer rows than clusters.
    """
    if len(rows) < num_clusters:
        raise ValueError(f"num_clusters: expected at most {len(rows)}, the number of rows, got {num_clusters}")
    kmeans = KMeans(num_clusters, n_init=n_init, random_state=seed)
    # With several threads the order of scikit-learn's sums, and so the last bit of a centre, changes from run to run.
    with threadpool_limits(limits=1):
        kmeans.fit(normalize(rows, dim=1).cpu().numpy())
    return torch.from_numpy(kmeans.labels_).long()
