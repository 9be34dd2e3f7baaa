"""Centers of a stream of batches, as scikit-learn's MiniBatchKMeans moves them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext.cluster.steps import assign_and_sum, cluster_sums, fill_empty
from deepclust_ext.reference.kmeans_assign import centers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Stream:
    """Centers that are the means of all rows they ever got; sums are in float64, because they keep growing."""

    def __init__(
        self,
        centers: Tensor,  # (K, D)
        metric: str,
        counts: Tensor | None = None,  # (K,) int64, or float64 sums of weights, of the rows that the centers stand for
    ) -> None:
        self.centers = centers
        self.metric = metric
        self.counts = torch.zeros(len(centers), dtype=torch.int64, device=centers.device) if counts is None else counts
        self.sums = centers.double() * self.counts.unsqueeze(1)

    def step(
        self,
        rows: Tensor,  # (B, D) of the centers' dtype and device
        weights: Tensor | None = None,  # (B,) float64, above 0
        group: "ProcessGroup | None" = None,
    ) -> None:
        """Take in one batch, of which each rank has some rows; a cluster that never had a row takes the farthest."""
        labels, distances, sums, counts = assign_and_sum(rows, self.centers, self.metric, weights, group)
        if bool((self.counts + counts == 0).any()):
            labels = fill_empty(labels, distances, self.counts + counts, group)
            sums, counts = cluster_sums(rows, labels, len(self.centers), weights, group)
        self.sums = self.sums + sums
        self.counts = self.counts + counts
        self.centers = centers_of(self.sums, self.counts, self.centers, self.metric).to(self.centers.dtype)
