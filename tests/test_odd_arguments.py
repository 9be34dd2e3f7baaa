"""Odd arguments of public functions: what is no right call is an error that names the argument."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepclust_ext import augment_views, batch_hard_mining, sinkhorn_knopp
from deepclust_ext.cluster import KMeans, match_labels
from deepclust_ext.data import RandomAffine, RandomGamma, RandomNoise, RandomTurn, make_view, weak_view
from deepclust_ext.evaluation import adjusted_rand, clustering_accuracy, knn_accuracy, score_clusters
from deepclust_ext.losses import PrototypeLoss
from deepclust_ext.ops import kmeans_update

ROWS, LABELS, IMAGES = torch.rand(6, 4), torch.arange(6) % 3, torch.rand(2, 3, 8, 8)
FLOAT8 = ROWS.to(torch.float8_e4m3fn)
HUGE = 10**30

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "mean of views, a number": (lambda: augment_views(IMAGES, size=4, mean=0.5, std=[0.5] * 3), TypeError, "mean"),  # type: ignore[arg-type]
    "std of views, a generator": (
        lambda: augment_views(IMAGES, size=4, mean=[0.5] * 3, std=torch.Generator()),  # type: ignore[arg-type]
        TypeError,
        "std",
    ),
    "a first row of two": (lambda: batch_hard_mining(ROWS, ROWS, first_row=torch.ones(2)), TypeError, "first_row"),  # type: ignore[arg-type]
    "a first row, False": (lambda: batch_hard_mining(ROWS, ROWS, first_row=False), TypeError, "first_row"),
    "views of sparse images": (lambda: weak_view(4)(IMAGES.to_sparse()), TypeError, "images"),
    "iterations beyond 64 bits": (lambda: sinkhorn_knopp(ROWS, num_iters=HUGE), ValueError, "num_iters"),
    "clusters beyond 64 bits": (lambda: kmeans_update(ROWS, LABELS, HUGE), ValueError, "num_clusters"),
    "clusters to match": (lambda: match_labels(LABELS, LABELS, HUGE), ValueError, "num_clusters"),
    "batches beyond 64 bits": (lambda: KMeans(2, batch_size=HUGE).fit(ROWS), ValueError, "batch_size"),
    "k-means of float8": (lambda: KMeans(2).fit(FLOAT8), TypeError, "features"),
    "prototypes of integers": (lambda: PrototypeLoss()(ROWS.int(), ROWS.int(), LABELS, 3), TypeError, "query"),
    "prototypes of float8": (lambda: PrototypeLoss()(ROWS, FLOAT8, LABELS, 3), TypeError, "key"),
    "prototypes on two devices": (lambda: PrototypeLoss()(ROWS, ROWS.to("meta"), LABELS, 3), ValueError, "key"),
    "labels on another device": (lambda: PrototypeLoss()(ROWS, ROWS, LABELS.to("meta"), 3), ValueError, "labels"),
    "clusters of prototypes": (lambda: PrototypeLoss()(ROWS, ROWS, LABELS, HUGE), ValueError, "num_clusters"),
    "a view's name, a number": (lambda: make_view(3), TypeError, "name"),  # type: ignore[arg-type]
    "a view's name, a list": (lambda: make_view([1]), TypeError, "name"),  # type: ignore[arg-type]
    "affine of float8": (lambda: RandomAffine()(IMAGES.to(torch.float8_e4m3fn)), TypeError, "images"),
    "noise on float8": (lambda: RandomNoise()(IMAGES.to(torch.float8_e4m3fn)), TypeError, "images"),
    "turns of sparse images": (lambda: RandomTurn()(IMAGES.to_sparse()), TypeError, "images"),
    "labels that are sparse": (lambda: adjusted_rand(LABELS.to_sparse(), LABELS), TypeError, "labels_true"),
    "labels without values": (lambda: clustering_accuracy(LABELS, LABELS.to("meta")), TypeError, "labels_pred"),
    "labels that are complex": (lambda: adjusted_rand(LABELS, LABELS.to(torch.complex64)), TypeError, "labels_pred"),
    "votes of no rows": (lambda: knn_accuracy(None, LABELS, k=2, temperature=0.1), TypeError, "rows"),  # type: ignore[arg-type]
    "votes of a number": (lambda: knn_accuracy(torch.tensor(0.5), LABELS, k=2, temperature=0.1), ValueError, "rows"),
    "scores of an array": (lambda: score_clusters(LABELS, LABELS, ROWS.numpy(), 3), TypeError, "rows"),  # type: ignore[arg-type]
    "scores of no clusters": (lambda: score_clusters(LABELS, LABELS, ROWS, None), TypeError, "num_clusters"),  # type: ignore[arg-type]
    "clusters below 0": (lambda: score_clusters(LABELS, -LABELS, ROWS, 3), ValueError, "predicted"),
    "clusters that are missing": (lambda: score_clusters(LABELS, LABELS, ROWS, 2), ValueError, "predicted"),
    "clusters that are no integers": (lambda: score_clusters(LABELS, LABELS / 2, ROWS, 3), TypeError, "predicted"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_argument_is_named(case: str) -> None:
    call, error, name = CASES[case]
    with pytest.raises(error, match=f"^{name}: expected "):
        call()


def test_what_is_no_fault() -> None:
    assert adjusted_rand(LABELS.bfloat16(), LABELS) == 1
    assert float(RandomGamma(HUGE).gamma) == 1e30
    views = augment_views(IMAGES, size=4, mean=np.full(3, 0.5), std=np.full(3, 0.5))  # type: ignore[arg-type]
    assert torch.equal(views, augment_views(IMAGES, size=4, mean=[0.5] * 3, std=[0.5] * 3))
