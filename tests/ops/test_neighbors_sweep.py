"""nearest_neighbors over many sizes, types and options: every tile edge, lists that fill up, candidates left out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import nearest_neighbors, reference
from tests.helpers import DEVICES, assert_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# (B, M, D, k) around the borders of tiles (16 to 128 rows and columns), steps of the depth (8 to 64), lists (32, 256)
SMALL = [(1, 1, 1, 1), (17, 33, 8, 5), (64, 127, 31, 32)]
LARGE = [(65, 129, 33, 33), (129, 257, 16, 64), (5, 600, 67, 256), (33, 1030, 9, 10), (2, 64, 129, 70)]


def random_rows(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of_signs(count: int, seed: int) -> Tensor:
    """Return rows of 16 elements 1 or -1, at several scales: every cosine is exact in any dtype, and many tie."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (count, 16), generator=generator).double() * 2 - 1
    return signs * 2.0 ** torch.randint(-3, 4, (count, 1), generator=generator)


def assert_within_budget(query: Tensor, bank: Tensor, **options: Any) -> None:
    """Require cosines right in order of size, and the indices to be those of rows that have them."""
    cosines, indices = nearest_neighbors(query, bank, **options)
    naive, _ = reference.nearest_neighbors(query, bank, **options)
    truth, _ = reference.nearest_neighbors(query.double(), bank.double(), **options)
    present = truth > -math.inf
    assert torch.equal(indices >= 0, present)
    assert torch.equal(cosines > -math.inf, present)
    assert_error_budget(cosines[present], naive[present], truth[present], "cosines")
    matrix = torch.nn.functional.normalize(query.double()) @ torch.nn.functional.normalize(bank.double()).T
    of_indices = matrix.gather(1, indices.clamp(min=0))
    assert_error_budget(cosines[present], naive[present], of_indices[present], "cosines of the indices")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, dtype) for size in SMALL for dtype in DTYPES]
    + [(size, torch.float32) for size in LARGE]
    + [(LARGE[0], dtype) for dtype in DTYPES[1:]],
    ids=str,
)
def test_sizes(size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    rows, count, dims, k = size
    query, bank = (random_rows(n, dims, seed).to(dtype).to(device) for seed, n in enumerate((rows, count)))
    assert_within_budget(query, bank, k=k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((67, 140, 20), dtype) for dtype in DTYPES]
    + [(size, torch.float32) for size in ((1, 3, 5), (16, 32, 1), (3, 513, 256), (130, 65, 31))],
    ids=str,
)
def test_ties_and_candidates(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    """Equal cosines everywhere, garbage in rows that are not valid, one row excluded: all exact."""
    rows, count, k = size
    query, bank = rows_of_signs(rows, 0).to(device), rows_of_signs(count, 1).to(device)
    generator = torch.Generator().manual_seed(2)
    exclude = torch.randint(-1, count, (rows,), generator=generator).to(device)
    valid = (torch.rand(count, generator=generator) < 0.8).to(device)
    with_garbage = bank.masked_fill(~valid.unsqueeze(1), math.nan)
    for stored, options in (
        (bank, {}),
        (bank, {"exclude": exclude}),
        (with_garbage, {"valid": valid}),
        (with_garbage, {"valid": valid, "exclude": exclude}),
    ):
        cosines, indices = nearest_neighbors(query.to(dtype), stored.to(dtype), k=k, **options)
        exact_cosines, exact_indices = reference.nearest_neighbors(query, stored, k=k, **options)
        assert torch.equal(indices, exact_indices)
        assert torch.equal(cosines.double(), exact_cosines)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ascending", [True, False])
def test_order_of_the_bank(ascending: bool, device: str) -> None:
    """Where cosines ascend, every row of the bank is among the nearest when it comes."""
    angles = torch.linspace(0.1, 3, 700, dtype=torch.float64).sort(descending=ascending).values
    bank = torch.stack([angles.cos(), angles.sin()], dim=1).to(device)
    query = torch.tensor([[1.0, 0.0], [1.0, 0.02], [1.0, -0.02]], dtype=torch.float64, device=device)
    for k in (1, 33, 256):
        _, indices = nearest_neighbors(query, bank, k=k)
        assert torch.equal(indices, reference.nearest_neighbors(query, bank, k=k)[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_finite(dtype: torch.dtype, device: str) -> None:
    query, bank = random_rows(70, 9, 0).to(dtype).to(device), random_rows(150, 9, 1).to(dtype).to(device)
    clean = nearest_neighbors(query, bank, k=5)
    query[[0, 69], [0, 8]] = torch.tensor([math.nan, -math.inf], dtype=dtype, device=device)
    cosines, indices = nearest_neighbors(query, bank, k=5)
    assert torch.equal(indices[1:69], clean[1][1:69])
    assert torch.equal(cosines[1:69], clean[0][1:69])
    assert bool(cosines[[0, 69]].isnan().all())
    assert bool((indices[[0, 69]] == -1).all())
    bank[149, 8] = math.inf
    cosines, indices = nearest_neighbors(query, bank, k=5)
    assert bool(cosines.isnan().all())
    assert bool((indices == -1).all())
