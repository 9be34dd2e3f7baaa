"""Sums of more terms than float32 can count: the error must not grow with their number."""

import pytest
import torch

from deepclust_ext import reference, sinkhorn_knopp
from deepclust_ext.cluster import KMeans
from deepclust_ext.ops import kmeans_step, kmeans_update
from tests.helpers import EMULATED

#: What a float32 sum of 0.1 drifts away from.
TENTH = float(torch.tensor(0.1))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("count", "depth"), [(31, 9), (4_000, 9), (50_000 if EMULATED else 1_000_000, 1)])
def test_a_center_is_exact_for_any_number_of_rows(count: int, depth: int) -> None:
    rows = torch.full((count, depth), 0.1)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kmeans_step(rows, torch.zeros(1, depth))[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0].double(), torch.full((1, depth), TENTH).double(), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(EMULATED, reason="a device emulated thread by thread takes many minutes for so many rows")
@pytest.mark.usefixtures("backend")
def test_more_rows_than_float32_counts() -> None:
    rows = torch.full((2**24 + 1, 1), 0.1)
    kmeans = KMeans(1, init=torch.zeros(1, 1), max_iter=1, tol=0).fit(rows)
    assert float(kmeans.cluster_centers_) == pytest.approx(TENTH, rel=1e-6)
    assert kmeans.inertia_ == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("backend")
def test_sums_of_rows_of_both_signs() -> None:
    """Many clusters of very different sizes, in several parts."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20_000, 5, generator=generator) + 1
    labels = (torch.rand(20_000, generator=generator) ** 6 * 40).long()
    sums, counts = kmeans_update(rows, labels, 40)
    truth, true_counts = (torch.zeros(40, 5).double().index_add_(0, labels, rows.double()), labels.bincount())
    assert torch.equal(counts, true_counts)
    scale = torch.zeros(40, 5).double().index_add_(0, labels, rows.double().abs())
    assert float(((sums.double() - truth).abs() / scale).max()) < 5e-7


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(2**17, 3), (2**13, 70), (4, 2**19)])
def test_assignments_of_many_equal_scores(shape: tuple[int, int]) -> None:
    if EMULATED:
        shape = (shape[0] // 16 or 4, shape[1] // 16 or 3)
    assignments = sinkhorn_knopp(torch.full(shape, 0.1))
    assert float((assignments * shape[1] - 1).abs().max()) < 2e-6


@pytest.mark.usefixtures("backend")
def test_row_sums_of_very_many_clusters() -> None:
    """Terms that are no powers of two: the rounding of a long float32 sum of them adds up."""
    scores = torch.zeros(1, 2**17)
    scores[:, 0] = 0.2
    assignments, truth = sinkhorn_knopp(scores).double(), reference.sinkhorn_knopp(scores.double())
    torch.testing.assert_close(assignments, truth, rtol=2e-6, atol=0)
