"""Odd arguments of public functions: what is no right call is an error that names the argument."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepclust_ext import augment_views, batch_hard_mining, diffused_neighbor_gather, nearest_neighbors, sinkhorn_knopp
from deepclust_ext.backbones import grid_positions, load_backbone, random_masks
from deepclust_ext.backbones.resnet import resnet
from deepclust_ext.backbones.small import small_linear_network, small_network
from deepclust_ext.cluster import KMeans, match_labels
from deepclust_ext.data import RandomAffine, RandomGamma, RandomNoise, RandomTurn, make_view, weak_view
from deepclust_ext.evaluation import adjusted_rand, clustering_accuracy, knn_accuracy, score_clusters
from deepclust_ext.losses import MatchedLabelLoss, PrototypeLoss
from deepclust_ext.methods import CLC, HaDis
from deepclust_ext.ops import kmeans_update

ROWS, LABELS, IMAGES = torch.rand(6, 4), torch.arange(6) % 3, torch.rand(2, 3, 8, 8)
FLOAT8 = ROWS.to(torch.float8_e4m3fn)
HUGE, LARGE = 10**30, 2**31
META = ROWS.to("meta")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # torch is giving these dtypes up
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(6), 1.0, 0, torch.quint8)
FAR = ROWS.double() * 1e300

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
    "k-means without values": (lambda: KMeans(2).fit(META), TypeError, "features"),
    "first centers without values": (lambda: KMeans(6, init=META).fit(ROWS), TypeError, "init"),
    "labels of rows without values": (lambda: KMeans(2).fit(ROWS).predict(META), TypeError, "features"),
    "weights without values": (lambda: KMeans(2).fit(ROWS, sample_weight=META[:, 0]), TypeError, "sample_weight"),
    "weights that are sparse": (
        lambda: KMeans(2).fit(ROWS, sample_weight=ROWS[:, 0].to_sparse()),
        TypeError,
        "sample_weight",
    ),
    "weights that are quantized": (lambda: KMeans(2).fit(ROWS, sample_weight=QUANTIZED), TypeError, "sample_weight"),
    "votes without values": (lambda: knn_accuracy(META, LABELS, k=2, temperature=0.1), TypeError, "rows"),
    "votes of NaN": (lambda: knn_accuracy(ROWS * torch.nan, LABELS, k=2, temperature=0.1), ValueError, "rows"),
    "scores without values": (lambda: score_clusters(LABELS, LABELS, META, 3), TypeError, "rows"),
    "matches without values": (lambda: match_labels(LABELS.to("meta"), LABELS.to("meta")), TypeError, "labels"),
    "matches of quantized labels": (lambda: match_labels(QUANTIZED, LABELS), TypeError, "labels"),
    "prototypes of quantized labels": (lambda: PrototypeLoss()(ROWS, ROWS, QUANTIZED, 3), TypeError, "labels"),
    "shares of quantized labels": (lambda: MatchedLabelLoss()(ROWS, QUANTIZED), TypeError, "labels"),
    "accuracy of quantized labels": (lambda: clustering_accuracy(LABELS, QUANTIZED), TypeError, "labels_pred"),
    "accuracy of float8": (lambda: clustering_accuracy(FLOAT8[:, 0], LABELS), TypeError, "labels_true"),
    "a temperature of float8": (lambda: PrototypeLoss(FLOAT8[0, 0]), TypeError, "temperature"),
    "samples beyond 32 bits": (
        lambda: diffused_neighbor_gather(ROWS, ROWS, num_samples=LARGE),
        ValueError,
        "num_samples",
    ),
    "neighbors beyond 32 bits": (lambda: nearest_neighbors(ROWS, ROWS, k=LARGE), ValueError, "k"),
    "sums beyond 32 bits": (lambda: kmeans_update(ROWS, LABELS, LARGE), ValueError, "num_clusters"),
    "views beyond 32 bits": (lambda: augment_views(IMAGES, size=(4, LARGE)), ValueError, "size"),
    "weak views beyond 32 bits": (lambda: weak_view(LARGE), ValueError, "size"),
    "k-means beyond 32 bits": (lambda: KMeans(LARGE).fit(ROWS), ValueError, "n_clusters"),
    "prototypes beyond 32 bits": (lambda: PrototypeLoss()(ROWS, ROWS, LABELS, LARGE), ValueError, "num_clusters"),
    "matches beyond 32 bits": (lambda: match_labels(LABELS, LABELS, LARGE), ValueError, "num_clusters"),
    "scores beyond 32 bits": (lambda: score_clusters(LABELS, LABELS, ROWS, LARGE), ValueError, "num_clusters"),
    "masks beyond 32 bits": (lambda: random_masks(LARGE, 4, 2), ValueError, "batch"),
    "positions beyond 32 bits": (lambda: grid_positions(LARGE, 8), ValueError, "side"),
    "a bank beyond 32 bits": (lambda: HaDis(nn.Identity(), 4, 2, bank_size=LARGE), ValueError, "bank_size"),
    "a queue beyond 32 bits": (lambda: CLC(nn.Identity(), 4, 2, queue_size=LARGE), ValueError, "queue_size"),
    "channels beyond 32 bits": (lambda: load_backbone("small", 8, channels=LARGE), ValueError, "channels"),
    "channels, a tensor": (lambda: load_backbone("small", 8, channels=torch.tensor(3)), TypeError, "channels"),  # type: ignore[arg-type]
    "channels of a ResNet": (lambda: resnet("resnet18", 8, channels=torch.tensor(3)), TypeError, "channels"),  # type: ignore[arg-type]
    "channels of a small one": (lambda: small_linear_network(8, torch.tensor(3)), TypeError, "channels"),  # type: ignore[arg-type]
    "width of a small one": (lambda: small_network(8, 3, torch.tensor(4)), TypeError, "width"),  # type: ignore[arg-type]
    "image size, a tensor": (lambda: load_backbone("flatten", torch.tensor(8)), TypeError, "image_size"),  # type: ignore[arg-type]
    "first centers beyond float32": (lambda: KMeans(6, init=FAR).fit(ROWS), ValueError, "init"),
    "batches beyond float32": (lambda: KMeans(2).fit(ROWS).partial_fit(FAR), ValueError, "features"),
    "clusters that are no integers": (lambda: score_clusters(LABELS, LABELS / 2, ROWS, 3), TypeError, "predicted"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_argument_is_named(case: str) -> None:
    call, error, name = CASES[case]
    with pytest.raises(error, match=f"^{name}: expected "):
        call()


def test_centers_beyond_float32() -> None:
    """Distances to them do not fit; by cosine they have a direction all the same."""
    euclidean, cosine = KMeans(2, random_state=0).fit(ROWS), KMeans(2, metric="cosine", random_state=0).fit(ROWS)
    labels = cosine.predict(ROWS)
    for kmeans in (euclidean, cosine):
        kmeans.cluster_centers_ = kmeans.cluster_centers_.double() * 1e300
    with pytest.raises(ValueError, match=r"^cluster_centers_: expected finite numbers within .*, got .*e\+"):
        euclidean.predict(ROWS)
    assert torch.equal(cosine.predict(ROWS), labels)
    assert torch.equal(cosine.partial_fit(FAR).predict(ROWS), cosine.predict(ROWS * 2))
    assert bool(cosine.cluster_centers_.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_unsigned_integers(dtype: torch.dtype) -> None:
    labels = LABELS.to(dtype)
    loss = PrototypeLoss()
    assert torch.equal(loss(ROWS, ROWS.flip(0), labels, 3), loss(ROWS, ROWS.flip(0), LABELS, 3))
    assert torch.equal(match_labels(labels, labels.flip(0)), match_labels(LABELS, LABELS.flip(0)))


def test_rows_of_two_dtypes_keep_their_range() -> None:
    loss, far = PrototypeLoss(), ROWS.flip(0).double() * 1e300
    torch.testing.assert_close(loss(ROWS, far, LABELS, 3), loss(ROWS, ROWS.flip(0), LABELS, 3))


def test_votes_at_any_temperature() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0], [0.6, -0.8]])
    for temperature in (1e-300, 1e-10, 1e-3, 0.1):
        assert knn_accuracy(rows, [1, 1, 2, 2], k=2, temperature=temperature) == 1


def test_sizes_of_batches_may_be_any() -> None:
    large, whole = (KMeans(2, batch_size=size, random_state=0).fit(ROWS) for size in (LARGE, len(ROWS)))
    assert torch.equal(large.cluster_centers_, whole.cluster_centers_)


def test_what_is_no_fault() -> None:
    assert adjusted_rand(LABELS.bfloat16(), LABELS) == 1
    assert float(RandomGamma(HUGE).gamma) == 1e30
    views = augment_views(IMAGES, size=4, mean=np.full(3, 0.5), std=np.full(3, 0.5))  # type: ignore[arg-type]
    assert torch.equal(views, augment_views(IMAGES, size=4, mean=[0.5] * 3, std=[0.5] * 3))
