"""A k-means iteration against its two halves."""

import pytest
import torch
from torch import Tensor

from deepclust_ext import kmeans_assign
from deepclust_ext.ops import kmeans_step, kmeans_update
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import DEVICES, same_bits
from tests.ops.test_kmeans_assign import KINDS, METRICS, make_batch


def assert_step_is_its_halves(features: Tensor, centroids: Tensor, metric: str) -> None:
    """Require what an iteration is made of: exactly where that is the same arithmetic, and to rounding elsewhere."""
    labels, centers, counts, change = kmeans_step(features, centroids, metric=metric)
    assert torch.equal(labels, kmeans_assign(features, centroids, metric=metric)[0])
    sums, expected_counts = kmeans_update(features, labels, len(centroids))
    assert torch.equal(counts, expected_counts)
    assert centers.dtype == sums.dtype
    present = counts > 0
    if metric == "euclidean":
        assert torch.equal(centers[present], sums[present] / counts[present, None])
    else:
        directions = torch.nn.functional.normalize(sums, dim=1)
        torch.testing.assert_close(centers[present], directions[present])
    assert torch.equal(centers[~present], centroids[~present].to(sums.dtype))
    shift = (centers.double() - centroids.double()).square().sum()
    torch.testing.assert_close(change.cpu(), torch.stack([shift, (counts == 0).sum().double()]).cpu())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_its_halves(kind: str, dtype: torch.dtype, device: str) -> None:
    # An empty cluster, and rows of two parts.
    features, centroids = (x.to(dtype).to(device) for x in make_batch(kind, 1100, 9, 17))
    centroids[4] *= 4
    for metric in METRICS:
        assert_step_is_its_halves(features, centroids, metric)
    labels, centers, counts, change = kmeans_step(features[:0], centroids)
    assert labels.shape == (0,)
    assert torch.equal(centers, centroids.to(centers.dtype))
    assert counts.tolist() == [0] * 9
    assert change.tolist() == [0, 9]
    centroids[1, 2] = torch.nan
    labels, centers, counts, change = kmeans_step(features, centroids)
    assert labels.unique().tolist() == [-1]
    assert counts.sum() == 0
    assert change[0].isnan()


@pytest.mark.usefixtures("backend")
def test_hand_case_of_a_step() -> None:
    features = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0]])
    labels, centers, counts, change = kmeans_step(features, torch.tensor([[0.0, 1.0], [5.0, 0.0], [9.0, 9.0]]))
    assert labels.tolist() == [0, 0, 1]
    assert centers.tolist() == [[0, 2], [4, 0], [9, 9]]
    assert counts.tolist() == [2, 1, 0]
    assert change.tolist() == [2, 1]
    _, centers, _, _ = kmeans_step(features, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), metric="cosine")
    assert centers.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_has_the_same_bits_on_any_thread_count(device: str) -> None:
    features, centroids = torch.randn(5000, 20, device=device), torch.randn(30, 20, device=device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(kmeans_step(features, centroids))
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_step_is_an_op_like_the_others() -> None:
    features, centroids = torch.randn(20, 3, requires_grad=True), torch.randn(4, 3)
    torch.library.opcheck(torch.ops.deepclust_ext.kmeans_step.default, (features, centroids))
    eager = kmeans_step(features, centroids)
    compiled = torch.compile(kmeans_step, fullgraph=True)(features, centroids)
    assert all(map(torch.equal, compiled, eager))
    assert not any(x.requires_grad for x in eager)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    features, centroids = make_batch("random", 60, 5, 17)
    halves = features.to(dtype), centroids.to(dtype)
    for metric in METRICS:
        expected = kmeans_step(*(x.float() for x in halves), metric=metric)
        with torch.autocast("cpu", dtype=dtype):
            for first, second in (halves, (halves[0].float(), halves[1]), (halves[0], halves[1].float())):
                assert all(map(same_bits, kmeans_step(first, second, metric=metric), expected))
                sums = kmeans_update(first, expected[0], 5)
                assert all(map(same_bits, sums, kmeans_update(halves[0], expected[0], 5)))
