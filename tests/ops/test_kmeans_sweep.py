"""k-means over many sizes, types and kinds of data: every tile edge, near ties, and sums of many parts."""

import pytest
import torch
from torch import Tensor

from deepclust_ext import kmeans_assign
from tests.helpers import DEVICES, EMULATED
from tests.ops.test_kmeans_assign import KINDS, METRICS, assert_update_within_budget, distances_to, make_batch

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# Around the borders of row blocks (64), column tiles (64, of float64 32) and stages (16, 32 and 64 features); the last
# one has large row blocks on the emulated device.
SIZES = [(1, 1, 1), (63, 2, 33), (65, 64, 16), (64, 65, 130), (129, 31, 64), (390, 130, 7)]


def assert_nearest(features: Tensor, centroids: Tensor, metric: str) -> None:
    """Require the nearest centroids, but for distances equal to rounding, and their distances."""
    labels, distances = kmeans_assign(features, centroids, metric=metric)
    exact = distances_to(features, centroids, metric)
    chosen = exact.gather(1, labels.cpu()[:, None]).squeeze(1)
    rounding = 1e-13 if features.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(chosen, exact.amin(1), rtol=rounding, atol=rounding)
    half = torch.finfo(features.dtype).eps
    torch.testing.assert_close(distances.double().cpu(), chosen, rtol=rounding + half, atol=rounding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "clusters", "depth"), SIZES)
def test_sizes(count: int, clusters: int, depth: int, dtype: torch.dtype, device: str) -> None:
    features, centroids = (x.to(dtype).to(device) for x in make_batch("random", count, clusters, depth))
    for metric in METRICS:
        assert_nearest(features, centroids, metric)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_near_ties(kind: str, dtype: torch.dtype, device: str) -> None:
    features, centroids = (x.to(dtype).to(device) for x in make_batch(kind, 150, 70, 20))
    for metric in METRICS:
        assert_nearest(features, centroids, metric)
    repeated, _ = kmeans_assign(features, centroids.repeat(3, 1))
    assert torch.equal(repeated, kmeans_assign(features, centroids)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("depth", [1, 64] if EMULATED else [1, 2, 7, 64, 301])
@pytest.mark.parametrize("kind", KINDS)
def test_many_centroids_are_searched_as_exactly_as_few(kind: str, depth: int, device: str) -> None:
    """Few are multiplied in float32, many in coarser numbers on the CPU, which may not show."""
    count, clusters = (30, 12) if EMULATED else (300, 96)  # emulated products take their time
    features, centroids = (x.float().to(device) for x in make_batch(kind, count, clusters, depth))
    for scale in (1.0,) if EMULATED else (1.0, 1e-12, 1e12):
        for metric in METRICS:
            _, distances = kmeans_assign(scale * features, scale * centroids, metric=metric)
            few = [kmeans_assign(scale * features, scale * part, metric=metric)[1] for part in centroids.split(4)]
            assert torch.equal(distances, torch.stack(few).amin(dim=0))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_have_no_products(device: str) -> None:
    """Squares that overflow, vectors without length and rows that are not finite, beside rows that are ordinary."""
    features, centroids = (x.float().to(device) for x in make_batch("random", 80, 70, 20))
    expected, _ = kmeans_assign(features, centroids)
    special = {3: 1e25, 20: 1e-30, 33: float("nan"), 70: float("inf")}
    for row, factor in special.items():
        features[row] *= factor
    others = [row for row in range(80) if row not in special]
    labels, distances = kmeans_assign(features, centroids)
    exact = distances_to(features, centroids, "euclidean")
    assert torch.equal(labels[others], expected[others])
    assert labels[[33, 70]].tolist() == [-1, -1]
    assert bool(distances[[33, 70]].isnan().all())
    for row in (3, 20):
        assert int(labels[row]) == int(exact[row].argmin())
        assert float(distances[row]) == pytest.approx(float(exact[row].min()), rel=1e-6)
    features[33] = features[70] = 0
    labels, distances = kmeans_assign(features, centroids, metric="cosine")
    assert labels[[33, 70]].tolist() == [0, 0]
    assert distances[[33, 70]].tolist() == [1, 1]
    labels, _ = kmeans_assign(features, torch.cat([centroids, torch.full_like(centroids[:1], 1e25)]))
    assert torch.equal(labels[others], expected[others])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "clusters", "depth"), [(40, 3, 5), (2500, 33, 40)])
def test_sums(count: int, clusters: int, depth: int, device: str) -> None:
    for dtype in DTYPES:
        features = torch.randn(count, depth, dtype=torch.float64).to(dtype).to(device)
        assert_update_within_budget(features, torch.randint(-1, clusters + 1, (count,), device=device), clusters)
