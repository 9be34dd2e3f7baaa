"""diffused_neighbor_gather over sizes, types and options: every edge of rows, lists and samples, both passes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import diffused_neighbor_gather, reference
from tests.helpers import DEVICES, assert_error_budget

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# (B, M, D, k, S) around the borders of a lane (4 elements), a warp (32 candidates, 128 elements), a block (4 walkers)
SIZES = [(1, 1, 1, 1, 1), (3, 40, 5, 33, 2), (9, 70, 131, 32, 3), (2, 300, 64, 256, 1)]


def random_rows(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(function: Any, query: Tensor, bank: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """Return the results of one call and the gradients of a weighted sum of the samples."""
    leaves = [x.detach().clone().requires_grad_() for x in (query, bank)]
    samples, indices = function(*leaves, **options, generator=torch.Generator().manual_seed(11))
    weight = torch.linspace(-1, 2, samples.numel(), device=samples.device).view(samples.shape).to(samples.dtype)
    gradients = torch.autograd.grad((samples * weight).sum(), leaves, allow_unused=True)
    results = {"samples": samples.detach(), "indices": indices}
    return results | {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}


def assert_within_budget(query: Tensor, bank: Tensor, **options: Any) -> dict[str, Tensor]:
    ours = run(diffused_neighbor_gather, query, bank, options)
    naive = run(reference.diffused_neighbor_gather, query, bank, options)
    truth = run(reference.diffused_neighbor_gather, query.double(), bank.double(), options)
    assert torch.equal(ours["indices"], truth["indices"])
    for name in truth.keys() - {"indices"}:
        assert_error_budget(ours[name], naive[name], truth[name], name)
    return ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    rows, count, dims, k, num_samples = size
    query, bank = (random_rows(n, dims, seed).to(dtype).to(device) for seed, n in enumerate((rows, count)))
    options = {"num_neighbors": k, "num_samples": num_samples, "noise_std": 0.1, "temperature": 0.5}
    assert_within_budget(query, bank, **options, normalize=num_samples > 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_walks(dtype: torch.dtype, device: str) -> None:
    """Of the bank two rows count but for a query's own, so that walkers meet, stay, and never return."""
    query, bank = random_rows(7, 6, 0).to(dtype).to(device), random_rows(12, 6, 1).to(dtype).to(device)
    exclude = torch.tensor([-1, 0, 1, 2, 3, 4, 5], device=device)
    options = {"exclude": exclude, "num_steps": 3, "num_samples": 2, "temperature": 1.0, "noise_std": 0.5}
    ours = assert_within_budget(query, bank, **options, num_neighbors=3)
    assert not bool((ours["indices"] == exclude.unsqueeze(1)).any())
    ours = assert_within_budget(query, bank, **options, valid=torch.arange(12, device=device) < 2)
    assert ours["indices"][1].tolist() == [1, 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [False, True])
def test_queries_themselves(normalize: bool, device: str) -> None:
    """Nothing to draw: no neighbors asked for, and none there."""
    for dims, num_samples in ((3, 1), (129, 5)):
        query = random_rows(6, dims, 0).float().to(device)
        options = {"noise_std": 1.0, "num_samples": num_samples, "normalize": normalize}
        asked = assert_within_budget(query, query, **options, num_neighbors=0)
        empty = assert_within_budget(query, query[:0], **options, num_steps=2)
        assert torch.equal(asked["samples"], empty["samples"])
        assert torch.equal(asked["gradient 0"], empty["gradient 0"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_rows_that_are_not_finite(dtype: torch.dtype, device: str) -> None:
    query, bank = random_rows(5, 9, 0).to(dtype).to(device), random_rows(30, 9, 1).to(dtype).to(device)
    query[[0, 3], [8, 0]] = torch.tensor([float("nan"), float("inf")], dtype=dtype, device=device)
    walk: dict[str, Any] = {"num_steps": 2, "num_samples": 3, "normalize": True}
    for options in ({}, walk):
        samples, indices = diffused_neighbor_gather(query, bank, **options)
        bad = samples.isnan()
        assert bad.all(dim=(1, 2)).tolist() == [True, False, False, True, False]
        assert not bool(bad[[1, 2, 4]].any())
        assert bool((indices[[0, 3]] == -1).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_a_row_that_all_draw(normalize: bool, device: str) -> None:
    """Many walkers of one row, and of queries without one, between rows that nobody draws."""
    query, bank = torch.ones(45, 150).double(), random_rows(20, 150, 1)
    bank[7] = 1 + bank[7].abs()
    exclude = (torch.arange(45) % 5 == 0).long() * 8 - 1
    options = {"num_neighbors": 1, "num_samples": 3, "exclude": exclude.to(device), "normalize": normalize}
    valid = (torch.arange(20) == 7).to(device)
    ours = assert_within_budget(query.float().to(device), bank.float().to(device), **options, valid=valid)
    assert bool((ours["indices"][::5] == -1).all())
    assert ours["gradient 1"].any(dim=1).nonzero().flatten().tolist() == [7]
