"""kmeans_seed over many sizes, types and kinds of data: the rows that distances of kmeans_assign choose, to the bit."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import kmeans_assign, kmeans_seed, reference
from tests.helpers import DEVICES

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
METRICS = ["euclidean", "cosine"]

# (N, D, K, C) around the borders of row tiles (128), chunks (2 and 4 features), groups of candidates (4 and 8), and
# parts of rows (512); on the emulated device six blocks of 128 rows share the distances.
SIZES = [(1, 1, 2, 3), (5, 2, 7, 1), (127, 4, 3, 4), (130, 17, 4, 5), (1100, 8, 3, 9)]


def random_rows(count: int, depth: int) -> Tensor:
    """Return rows of four groups; some are equal to the first one."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, depth, generator=generator, dtype=torch.float64)
    rows += 4 * torch.randint(0, 2, (count, min(2, depth)), generator=generator).repeat(1, depth)[:, :depth]
    rows[count // 2 :: 9] = rows[0].clone()
    return rows


def random_numbers(centers: int, candidates: int) -> Tensor:
    """Return random numbers (K, C), the least and the largest possible ones among them."""
    generator = torch.Generator().manual_seed(centers * candidates)
    uniform = torch.rand(centers, candidates, generator=generator, dtype=torch.float64)
    uniform[1::2, 0] = 0
    uniform[2::2, -1] = 1 - 2**-53
    return uniform


@pytest.fixture
def assert_as_by_assign(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what requires the places of the reference, with distances of the native kmeans_assign."""
    monkeypatch.setattr(importlib.import_module("deepclust_ext.reference.kmeans_seed"), "kmeans_assign", kmeans_assign)

    def check(features: Tensor, uniform: Tensor, **options: Any) -> Tensor:
        places = kmeans_seed(features, uniform, **options)
        assert places.tolist() == reference.kmeans_seed(features, uniform, **options).tolist()
        return places

    return check


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("size", "metric"), [(size, metric) for size in SIZES for metric in METRICS if size[0] < 1000 or metric != "cosine"]
)
def test_sizes(size: tuple[int, int, int, int], metric: str, device: str, assert_as_by_assign: Any) -> None:
    count, depth, centers, candidates = size
    uniform = random_numbers(centers, candidates).to(device)
    for dtype in DTYPES if count < 1000 else DTYPES[:1]:
        places = assert_as_by_assign(random_rows(count, depth).to(dtype).to(device), uniform, metric=metric)
        assert int(places.min()) >= 0
        assert int(places.max()) < count


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights(dtype: torch.dtype, metric: str, device: str, assert_as_by_assign: Any) -> None:
    """Weights of many magnitudes, a third of them 0, at both ends too."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.exp(9 * torch.rand(300, generator=generator, dtype=torch.float64))
    weights[::3] = weights[:20] = weights[-20:] = 0
    rows, uniform = random_rows(300, 5).to(dtype).to(device), random_numbers(5, 5)
    uniform[0, 0] = 0
    places = assert_as_by_assign(rows, uniform.to(device), metric=metric, weights=weights.to(device))
    assert int(places[0]) == 20
    assert bool((weights[places.cpu()] > 0).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_direction(dtype: torch.dtype, device: str, assert_as_by_assign: Any) -> None:
    """Zeros and, where the type has them, rows shorter than 1e-12: candidates, centers and others."""
    rows = random_rows(150, 6)
    rows[::4] = 0
    rows[1::4] *= 1e-14
    assert_as_by_assign(rows.to(dtype).to(device), random_numbers(6, 5).to(device), metric="cosine")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_squares_that_underflow(dtype: torch.dtype, device: str, assert_as_by_assign: Any) -> None:
    tiny = 1e-24 if dtype == torch.float32 else 1e-170
    rows = random_rows(140, 6) * tiny
    assert_as_by_assign(rows.to(dtype).to(device), random_numbers(4, 5).to(device))
    rows[::2] += 1e-3 * tiny**0.5
    assert_as_by_assign(rows.to(dtype).to(device), random_numbers(4, 5).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_more_centers_than_distinct_rows(metric: str, device: str, assert_as_by_assign: Any) -> None:
    rows = torch.eye(3, 4, device=device).repeat(50, 1)
    places = assert_as_by_assign(rows, random_numbers(5, 6).to(device), metric=metric)
    assert set((places % 3).tolist()[:3]) == {0, 1, 2}
    assert places[3:].tolist() == [149, 149]  # where nothing costs anything, the last row
    copies = rows[:1].expand(150, -1)
    assert assert_as_by_assign(copies, random_numbers(3, 2).to(device), metric=metric)[1:].tolist() == [149, 149]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(bad: float, device: str, assert_as_by_assign: Any) -> None:
    for dtype in DTYPES:
        rows = random_rows(140, 5).to(dtype).to(device)
        rows[-1, -1] = bad
        assert assert_as_by_assign(rows, random_numbers(3, 2).to(device)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("device", DEVICES)
def test_places_in_memory_do_not_matter(device: str) -> None:
    """Rows that begin where no 16 bytes do, rows apart from each other, and numbers laid out by column."""
    rows, uniform = random_rows(140, 8).float().to(device), random_numbers(4, 5).to(device)
    expected = kmeans_seed(rows, uniform).tolist()
    shifted = torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view(140, 8)
    apart = torch.cat([rows, rows], dim=1)[:, :8]
    for same in (shifted, apart, rows.T.contiguous().T):
        assert kmeans_seed(same, uniform).tolist() == expected
    assert kmeans_seed(rows, uniform.T.contiguous().T).tolist() == expected
