"""nearest_neighbors over many sizes, types and options: every tile edge, lists that fill up, candidates left out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import nearest_neighbors, reference
from tests.helpers import DEVICES, EMULATED, assert_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# (B, M, D, k) around the borders of tiles (16 to 128 rows and columns), steps of the depth (8 to 64), lists (32, 256)
SMALL = [(1, 1, 1, 1), (17, 33, 8, 5), (64, 127, 31, 32)]
LARGE = [
    (300, 200, 16, 7),
    (65, 129, 33, 33),
    (129, 257, 16, 64),
    (5, 600, 67, 256),
    (33, 1030, 9, 10),
    (2, 64, 129, 70),
]


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
    + [(size, dtype) for size in LARGE[:2] for dtype in DTYPES[1:]],
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
        (bank, {"valid": valid}),
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
@pytest.mark.parametrize("k", [1, 40, 256])
def test_repeated_rows(k: int, dtype: torch.dtype, device: str) -> None:
    """More equal cosines than any list holds: the lowest indices, for a query of zeros too, which is as near to all."""
    query = rows_of_signs(3, 0)
    query[2] = 0
    bank = torch.cat([rows_of_signs(30, 1), query[:1].repeat(900, 1), query[1:2].repeat(1500, 1)])
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(2))]
    expected = reference.nearest_neighbors(query, bank, k=k)
    cosines, indices = nearest_neighbors(query.to(dtype).to(device), bank.to(dtype).to(device), k=k)
    assert torch.equal(indices.cpu(), expected[1])
    assert torch.equal(cosines.double().cpu(), expected[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearly_equal_rows(dtype: torch.dtype, device: str) -> None:
    """More cosines equal to rounding than any list holds."""
    query, bank = 1 + 1e-7 * random_rows(3, 24, 0), 1 + 1e-7 * random_rows(1500, 24, 1)
    bank[1000:1010] += random_rows(10, 24, 2)
    assert_within_budget(query.to(dtype).to(device), bank.to(dtype).to(device), k=10)


@pytest.mark.parametrize("device", DEVICES)
def test_precision_of_products_does_not_show(device: str) -> None:
    """Products of two half-precision parts rate some rows too low by several roundings of a cosine."""
    if device == "cpu" and not EMULATED:
        pytest.skip("the CPU kernel multiplies in float32")
    low = 0.96875 * 2**-11  # half of what a float16 rounds to, nearly
    generator = torch.Generator().manual_seed(0)
    bank = 1 + torch.randint(12, (400, 64), generator=generator).double() * 2**-10
    bank[::2] += low
    query = torch.full((1, 64), 1 + low, dtype=torch.float64)
    truth = torch.nn.functional.cosine_similarity(query, bank)
    for k in (1, 10, 50, 100, 200):
        _, indices = nearest_neighbors(query.float().to(device), bank.float().to(device), k=k)
        last = truth.sort(descending=True).values[k - 1]
        assert bool((truth[indices[0].cpu()] >= last - 2**-24).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_any_size(dtype: torch.dtype, device: str) -> None:
    """Rows whose squares overflow or vanish, and rows below the smallest norm, which count as shorter than 1."""
    query, bank = random_rows(40, 20, 0), random_rows(70, 20, 1)
    limit = {torch.float16: 4, torch.float64: 290}.get(dtype, 36)
    for rows in (query, bank):
        rows *= 10.0 ** torch.linspace(-limit, limit - 1, len(rows), dtype=torch.float64)[:, None]
    query[7], bank[9] = 0, 0
    query, bank = query.to(dtype).to(device), bank.to(dtype).to(device)
    cosines, indices = nearest_neighbors(query, bank, k=70)
    units = []
    for rows in (query.double().cpu(), bank.double().cpu()):
        largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
        units.append(
            rows / largest * (largest / (largest * (rows / largest).norm(dim=1, keepdim=True)).clamp(min=1e-12))
        )
    matrix = units[0] @ units[1].T
    rounding = 4 * torch.finfo(dtype).eps
    expected = matrix.sort(dim=1, descending=True).values
    torch.testing.assert_close(cosines.double().cpu(), expected, rtol=0, atol=rounding)
    torch.testing.assert_close(matrix.gather(1, indices.cpu()), expected, rtol=0, atol=rounding)


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
