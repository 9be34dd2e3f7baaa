"""k-means||: as good as greedy k-means++, by weight, and right where there is little to draw."""

import pytest
import torch
from torch import Tensor

from deepclust_ext import kmeans_assign
from deepclust_ext.cluster import KMeans
from deepclust_ext.cluster.parallel_seeding import oversampled_centers
from deepclust_ext.cluster.steps import seed_centers
from tests.helpers import DEVICES

METRICS = ("euclidean", "cosine")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inertia(rows: Tensor, centers: Tensor) -> float:
    return float(kmeans_assign(rows, centers)[1].double().square().sum())


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
def test_as_good_as_greedy_k_means_plus_plus(spread: float) -> None:
    numbers = generator(1)
    middles = spread * torch.randn(60, 16, generator=numbers)
    rows = middles[torch.randint(60, (3000,), generator=numbers)] + torch.randn(3000, 16, generator=numbers)
    found = dict.fromkeys((seed_centers, oversampled_centers), 0.0)
    for seeds in found:
        for seed in range(10):
            first = seeds(rows, 120, "euclidean", generator(seed))
            assert first.shape == (120, 16)
            found[seeds] += KMeans(120, init=first, max_iter=20).fit(rows).inertia_
    assert found[oversampled_centers] <= 1.01 * found[seed_centers]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_every_group_has_a_center(metric: str, device: str) -> None:
    rows = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator(0)))
    rows = (rows.repeat(10, 1) + 1e-3 * torch.randn(200, 8, generator=generator(1))).to(device)
    rows = torch.nn.functional.normalize(rows)
    centers = oversampled_centers(rows, 20, metric, generator(2))
    labels, _ = kmeans_assign(rows, centers, metric=metric)
    assert torch.bincount(labels).tolist() == [10] * 20


def test_weights_draw_and_move() -> None:
    rows = torch.randn(500, 4, generator=generator(0))
    weights = torch.full((500,), 1e-6, dtype=torch.float64)
    weights[:40] = 1.0
    centers = oversampled_centers(rows, 10, "euclidean", generator(0), weights)
    heavy, light = (
        inertia(rows[:40], centers),
        inertia(rows[:40], oversampled_centers(rows, 10, "euclidean", generator(0))),
    )
    assert heavy < light


@pytest.mark.parametrize("distinct", [1, 3, 30])
def test_few_distinct_rows(distinct: int) -> None:
    rows = torch.randn(distinct, 5, generator=generator(0)).repeat(20, 1)
    centers = oversampled_centers(rows, 30, "euclidean", generator(0))
    assert centers.shape == (30, 5)
    assert inertia(rows, centers) < 1e-9


def test_same_seed_and_any_number_of_threads() -> None:
    rows = torch.randn(3000, 8, generator=generator(0))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(KMeans(50, init="k-means||", random_state=3, max_iter=2).fit(rows).cluster_centers_)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    other = KMeans(50, init="k-means||", random_state=4, max_iter=2).fit(rows).cluster_centers_
    assert not torch.equal(found[0], other)
