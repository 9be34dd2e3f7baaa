"""The images that show what a cluster is: those at its middle, at its edge, and the least certain."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

Indices = NDArray[np.int64]

#: Images of one gallery, and of all galleries of one kind together, where there are so many clusters.
MOST_SHOWN, FEWEST_SHOWN, ALL_SHOWN = 12, 3, 2400


@dataclass(frozen=True)
class Galleries:
    """The clusters of images, and which images to show of each.

    Attributes:
        clusters: (N,) the cluster of an image's largest share.
        seconds: (N,) the cluster of its second largest share; -1 if there is only one cluster.
        confidences: (N,) the largest share.
        typicality: (N,) cosine of an image's row with the mean of its cluster's rows.
        middle: For each cluster the images nearest to that mean, nearest first.
        edge: Those farthest from it, farthest first.
        uncertain: Those whose two largest shares differ least.
    """

    clusters: Indices
    seconds: Indices
    confidences: NDArray[np.float32]
    typicality: NDArray[np.float32]
    middle: list[Indices]
    edge: list[Indices]
    uncertain: list[Indices]

    def shown(self) -> list[int]:
        """Return all images of the galleries, first those that stand first."""
        galleries = [*self.middle, *self.edge, *self.uncertain]
        longest = max(map(len, galleries))
        return list(dict.fromkeys(int(part[rank]) for rank in range(longest) for part in galleries if rank < len(part)))

    def most_typical_first(self) -> Indices:
        """Return all images, the most typical first, so that any beginning has images of all clusters."""
        order = np.lexsort((-self.typicality, self.clusters))
        starts = np.searchsorted(self.clusters[order], self.clusters[order])
        sizes = np.bincount(self.clusters)[self.clusters[order]]
        return order[np.argsort((np.arange(len(order)) - starts) / sizes, kind="stable")]


def make_galleries(
    rows: Tensor,  # (N, D) unit
    shares: Tensor,  # (N, K)
) -> Galleries:
    """Return the clusters of images and which of them to show: 12 of each kind, fewer with many clusters.

    Equal images are taken in their order, so equal rows and shares give equal galleries.
    """
    values, num_clusters = shares.float().numpy(), shares.shape[1]
    places = np.arange(len(values))
    clusters = values.argmax(axis=1)
    confidences = values[places, clusters]
    others = values.copy()
    others[places, clusters] = -np.inf
    seconds = others.argmax(axis=1) if num_clusters > 1 else np.full(len(values), -1)
    margins = confidences - others[places, seconds] if num_clusters > 1 else confidences
    named = torch.from_numpy(clusters)
    sums = rows.double().new_zeros(num_clusters, rows.shape[1]).index_add_(0, named, rows.double())
    typicality = (rows.double() * normalize(sums, dim=1)[named]).sum(dim=1).float().numpy()
    count = max(FEWEST_SHOWN, min(MOST_SHOWN, ALL_SHOWN // num_clusters))

    def first_of_each(order: Indices) -> list[Indices]:
        """Return for each cluster the first of its images in this order."""
        order = order[np.argsort(clusters[order], kind="stable")]
        ends = np.searchsorted(clusters[order], np.arange(num_clusters + 1))
        return [order[start : min(start + count, end)] for start, end in pairwise(ends)]

    return Galleries(
        clusters=clusters,
        seconds=seconds,
        confidences=confidences,
        typicality=typicality,
        middle=first_of_each(np.argsort(-typicality, kind="stable")),
        edge=first_of_each(np.argsort(typicality, kind="stable")),
        uncertain=first_of_each(np.argsort(margins, kind="stable")),
    )
