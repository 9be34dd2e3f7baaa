"""Checks of a run after each epoch: one without labels, and scores if there are labels."""

from collections.abc import Mapping, Sized
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from deepclust_ext.cluster import KMeans
from deepclust_ext.evaluation import clustering_accuracy, normalized_mutual_info
from deepclust_ext.inference import map_images
from deepclust_ext.methods import ClusterHeadMethod
from deepclust_ext.methods.shared import spread
from deepclust_ext.training import Trainer

#: Images at least that the probe looks at, and how many for each cluster.
IMAGES, IMAGES_PER_CLUSTER = 512, 4
#: Under which name the clusters of an epoch wait for the next.
BEFORE = "probe_clusters"


class Probe:
    """Called by :meth:`deepclust_ext.training.Trainer.fit` after each epoch.

    It examines up to 512 images at equal distances. ``probe_rank`` is the effective rank of their rows, which falls
    towards 1 in a collapse. ``probe_clusters`` is the exponential of the entropy of their clusters' sizes, which is K
    if all are equal. ``probe_agreement`` is the share of images that have stayed in their cluster since the epoch
    before, on the best matching of both. A method without a cluster head gets clusters by k-means with one start.

    Args:
        trainer: The trainer of the run.
        labels: (N,) true classes, or None.
        every: Epochs between two scores of all images by labels, ``acc`` and ``nmi``; 0 for none.
    """

    #: Which entries share an axis in a figure.
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "directions of rows": ("probe_rank",),
        "clusters in use": ("probe_clusters",),
        "share": ("probe_agreement", "acc", "nmi"),
    }

    def __init__(self, trainer: Trainer, labels: Tensor | None = None, every: int = 0) -> None:
        self._trainer, self._labels, self._every = trainer, labels, every
        self._images: Dataset[Any] = trainer.data["images"]
        count = len(cast(Sized, self._images))
        sample = min(count, max(IMAGES, IMAGES_PER_CLUSTER * trainer.method.num_clusters))
        self._places = [place * count // sample for place in range(sample)]

    def __call__(self, record: Mapping[str, float]) -> dict[str, float]:
        """Return the entries for the record of an epoch."""
        with torch.random.fork_rng(devices=()):  # a look must not change the run
            rows, clusters = self._look(Subset(self._images, self._places))
            shares = clusters.bincount(minlength=1).double() / len(clusters)
            found = {
                "probe_rank": float(spread(rows)["effective_rank"]),
                "probe_clusters": float(torch.special.entr(shares).sum().exp()),
            }
            before = self._trainer.kept.get(BEFORE)
            if before is not None:
                found["probe_agreement"] = clustering_accuracy(before, clusters)
            self._trainer.kept[BEFORE] = clusters
            if self._every and record["epoch"] % self._every == 0:
                clusters = self._trainer.cluster()
                found["acc"] = clustering_accuracy(self._labels, clusters)  # type: ignore[arg-type]
                found["nmi"] = normalized_mutual_info(self._labels, clusters)  # type: ignore[arg-type]
        return found

    def _look(self, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Return rows (S, D) and clusters (S,) of some images, both on the CPU."""
        trainer, method = self._trainer, self._trainer.method

        def rows_and_clusters(batch: Tensor) -> tuple[Tensor, ...]:
            rows = method.embed(batch).float().cpu()
            return (rows, method.assign(batch).argmax(1).cpu()) if isinstance(method, ClusterHeadMethod) else (rows,)

        rows, *clusters = map_images(
            rows_and_clusters,
            images,
            test_view=trainer.test_view,
            batch_size=trainer.config.batch_size,
            device=next(method.parameters()).device,
            **trainer.ranks.inference(),
        )
        if clusters:
            return rows, clusters[0]
        kmeans = KMeans(method.num_clusters, metric="cosine", n_init=1, random_state=trainer.config.seed)
        return rows, kmeans.fit_predict(rows)
