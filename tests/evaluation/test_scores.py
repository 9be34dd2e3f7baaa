"""evaluate: hand cases of its parts, every method, and what is wrong with data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import TensorDataset

from deepclust_ext.evaluation.scores import cosine_silhouette, evaluate, knn_accuracy, score_clusters
from deepclust_ext.methods import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.methods.shared import InferenceNetwork
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS


class Pixels(ClusteringMethod):
    """Two clusters of the normalized pixels."""

    num_clusters = 2

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def training_step(
        self,
        views: Sequence[Tensor],
        pseudo_labels: Tensor | None = None,
        index: Tensor | None = None,
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("evaluation does not train")

    def inference_network(self) -> nn.Module:
        return InferenceNetwork(nn.Flatten(), nn.Identity())

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        raise AssertionError("evaluation does not train")


def two_directions(count: int = 40) -> TensorDataset:
    """Images near (1, 0) of class 3 and images near (0, 1) of class 7."""
    directions = torch.eye(2)[torch.arange(count) % 2]
    images = directions + 0.1 * torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images.view(count, 1, 1, 2), torch.tensor([3, 7])[torch.arange(count) % 2])


def test_two_directions_are_found() -> None:
    result = evaluate(Pixels(), two_directions(), knn_k=5, batch_size=7)
    assert result.knn_accuracy == 1
    assert [result.kmeans.acc, result.kmeans.nmi, result.kmeans.ari] == pytest.approx([1, 1, 1])
    assert result.kmeans.sizes == [20, 20]
    assert result.kmeans.silhouette is not None
    assert result.kmeans.silhouette > 0.9
    assert result.head is None
    assert result.clusters is result.kmeans


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_scored_the_same_at_every_call(name: str) -> None:
    method = METHODS[name].method()
    images = torch.rand(60, 1, 8, 8)
    data = TensorDataset(images, torch.arange(60) % 3)
    result = evaluate(method, data)
    assert result == evaluate(method, data)
    assert method.training
    assert sum(result.kmeans.sizes) == 60
    assert len(result.kmeans.sizes) == NUM_CLUSTERS
    if isinstance(method, ClusterHeadMethod):
        head = method.assign(images).argmax(dim=1)
        assert result.head is not None
        assert result.clusters is result.head
        assert result.head.sizes == head.bincount(minlength=NUM_CLUSTERS).tolist()
    else:
        assert result.head is None


def test_scores_are_of_the_test_view() -> None:
    data = two_directions()
    # All images alike: nothing is left to be found.
    result = evaluate(Pixels(), data, knn_k=5, test_view=torch.ones_like)
    assert result.kmeans.acc == pytest.approx(0.5, abs=0.05)
    assert evaluate(Pixels(), data, knn_k=5, test_view=lambda images: images.flip(3)).kmeans.acc == 1


def test_neighbors_vote_with_their_cosines_and_not_for_themselves() -> None:
    angles = torch.tensor([0.0, 0.1, 0.5, 0.6, 0.7])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([5, 9, 9, 9, 5])
    expected = 0
    for row in range(5):
        votes = {5: 0.0, 9: 0.0}
        nearest = sorted((i for i in range(5) if i != row), key=lambda i: float((angles[i] - angles[row]).abs()))
        for other in nearest[:3]:
            votes[int(labels[other])] += math.exp(math.cos(float(angles[other] - angles[row])) / 0.1)
        expected += max(votes, key=lambda label: votes[label]) == int(labels[row])
    assert knn_accuracy(rows, labels, k=3, temperature=0.1) == expected / 5


def test_one_neighbor_agrees_with_scikit_learn() -> None:
    rows, labels = normalize(torch.randn(80, 5), dim=1), torch.randint(4, (80,))
    # The nearest to every row is itself, the second nearest is its neighbor.
    peer = KNeighborsClassifier(2).fit(rows.numpy(), labels.numpy())
    neighbor = torch.from_numpy(peer.kneighbors(return_distance=False))[:, 0]
    expected = float((labels[neighbor] == labels).double().mean())
    assert knn_accuracy(rows, labels, k=1, temperature=0.1) == pytest.approx(expected)
    assert 0 <= knn_accuracy(rows, labels, k=1000, temperature=1e-3) <= 1  # all 79 others, and no overflow


def test_silhouette() -> None:
    rows, predicted = torch.randn(50, 4), torch.arange(50) % 3
    expected = float(silhouette_score(rows.numpy(), predicted.numpy(), metric="cosine"))
    labels = torch.zeros(50, dtype=torch.int64)
    assert score_clusters(labels, predicted, rows, 3).silhouette == pytest.approx(expected, abs=1e-6)
    assert score_clusters(labels, labels, rows, 3).silhouette is None
    assert score_clusters(labels, torch.arange(50), rows, 50).silhouette is None


@pytest.mark.parametrize("block", [7, 1000])
def test_silhouette_agrees_with_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepclust_ext.evaluation.scores.SILHOUETTE_ROWS", block)
    rows, clusters = torch.randn(60, 4), torch.randint(5, (60,)) * 3
    clusters[0] = 100  # a cluster of one row
    rows[1:4] = 0  # blank images
    rows[5:9] = rows[4]
    expected = float(silhouette_score(rows.numpy(), clusters.numpy(), metric="cosine"))
    assert cosine_silhouette(rows, clusters) == pytest.approx(expected, abs=1e-6)
    half = rows.half()
    expected = float(silhouette_score(half.float().numpy(), clusters.numpy(), metric="cosine"))
    assert cosine_silhouette(half, clusters) == pytest.approx(expected, abs=1e-6)


def test_silhouette_of_equal_rows_in_two_clusters_is_0() -> None:
    assert cosine_silhouette(torch.randn(1, 7).expand(31, 7), torch.arange(31).sqrt().long()) == 0


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="data: expected at least 2 images, got 1"):
        evaluate(Pixels(), two_directions(1))
    method = METHODS["hadis"].method()
    data = TensorDataset(torch.rand(3, 1, 8, 8), torch.arange(3))
    with pytest.raises(ValueError, match="num_clusters: expected at most 3, the number of images, got 4"):
        evaluate(method, data)


class Unseen(Pixels):
    """What must not be asked to embed."""

    def embed(self, images: Tensor) -> Tensor:
        raise AssertionError("embedded before the settings were checked")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"knn_k": 257}, ValueError, "knn_k: expected 1 to 256, got 257"),
        ({"knn_k": 0}, ValueError, "knn_k: expected 1 to 256, got 0"),
        ({"knn_k": 2.5}, TypeError, "knn_k: expected an integer, got 2.5"),
        ({"knn_t": 0.0}, ValueError, "knn_t: expected a finite number above 0, got 0.0"),
        ({"knn_t": math.nan}, ValueError, "knn_t: expected a finite number above 0, got nan"),
        ({"n_init": 0}, ValueError, "n_init: expected at least 1, got 0"),
        ({"seed": None}, TypeError, "seed: expected an integer, got None"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": None}, TypeError, "batch_size: expected an integer, got None"),
        ({"num_workers": 1.0}, TypeError, "num_workers: expected an integer, got 1.0"),
    ],
)
def test_settings_are_checked_before_anything_is_embedded(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(Unseen(), two_directions(300), **settings)


def test_more_neighbors_than_there_are_is_all_of_them() -> None:
    data = two_directions(20)
    assert evaluate(Pixels(), data, knn_k=1000) == evaluate(Pixels(), data, knn_k=19)


class Coarse(Pixels):
    """Rows in half precision."""

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images).bfloat16()


def test_rows_in_half_precision_are_scored_in_float32() -> None:
    data = two_directions()
    result = evaluate(Coarse(), data, knn_k=5)
    rows = normalize(data.tensors[0].flatten(1), dim=1).bfloat16().float()
    silhouette = float(silhouette_score(rows.numpy(), (torch.arange(40) % 2).numpy(), metric="cosine"))
    assert result.kmeans.silhouette == pytest.approx(silhouette, abs=1e-6)
    assert (result.knn_accuracy, result.kmeans.acc) == (1, 1)


@pytest.mark.parametrize("name", METHODS)
def test_scores_under_autocast_and_in_half_precision(name: str) -> None:
    data = TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(60) % 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(METHODS[name].method(), data).kmeans.silhouette is not None
    assert evaluate(METHODS[name].method().bfloat16(), data).kmeans.silhouette is not None


def test_scores_do_not_depend_on_autocast() -> None:
    rows, labels = normalize(torch.randn(80, 16), dim=1), torch.randint(4, (80,))
    expected = knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)) == expected


def test_classes_are_integers_or_names_in_any_container() -> None:
    images = two_directions().tensors[0]
    expected = evaluate(Pixels(), two_directions(), knn_k=5)
    names = ["seven" if place % 2 else "three" for place in range(40)]
    for labels in (names, [torch.tensor([ord(name[0])]) for name in names], [np.int64(ord(name[0])) for name in names]):
        data: Any = [(image, label, "file.png") for image, label in zip(images, labels, strict=True)]
        assert evaluate(Pixels(), data, knn_k=5) == expected
    rows, classes = images.flatten(1), torch.arange(40) % 2
    scores, vote = score_clusters(classes, classes, rows, 2), knn_accuracy(rows, classes, k=3, temperature=0.1)
    for other in (classes.tolist(), classes.numpy(), names):
        assert score_clusters(other, classes.tolist(), rows, 2) == scores
        assert knn_accuracy(rows, other, k=3, temperature=0.1) == vote


def test_labels_that_do_not_fit_are_named() -> None:
    rows = torch.rand(4, 2)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), one for each row, got \(3,\)"):
        knn_accuracy(rows, [0, 1, 0], k=1, temperature=0.1)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), one for each row, got \(4, 1\)"):
        score_clusters(torch.zeros(4, 1), [0, 1, 0, 1], rows, 2)
    with pytest.raises(ValueError, match=r"predicted: expected shape \(4,\), one for each row, got \(5,\)"):
        score_clusters([0, 1, 0, 1], [0, 1, 0, 1, 0], rows, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_do_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    rows, labels = normalize(torch.randn(80, 16), dim=1), torch.randint(4, (80,))
    expected = knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)
    torch.set_default_dtype(dtype)
    try:
        found = knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_scores_do_not_depend_on_the_default_device() -> None:
    rows, labels = normalize(torch.randn(80, 16), dim=1), torch.randint(4, (80,))
    expected = knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)
    with torch.device("meta"), torch.inference_mode():  # stands for a GPU
        assert (knn_accuracy(rows, labels, k=5, temperature=0.1), score_clusters(labels, labels, rows, 4)) == expected
