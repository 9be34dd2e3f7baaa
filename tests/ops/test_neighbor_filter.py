"""nearest_neighbors leaves out scores by 16-bit integers: what it finds is what one query alone finds, to the bit.

A query alone is compared with the whole bank in float32, without a filter.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext import nearest_neighbors
from tests.helpers import EMULATED, same_bits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tight(rows: int, dims: int, spread: float, *, seed: int = 0) -> Tensor:
    """Return rows around one direction, so that their cosines differ by less than the filter can tell."""
    around: Tensor = normalize(normal(1, dims, seed=99), dim=1) + spread * normal(rows, dims, seed=seed) / dims**0.5
    return around


def assert_as_alone(query: Tensor, bank: Tensor, *, k: int) -> None:
    """Compare what every query finds among others with what it finds alone."""
    cosines, indices = nearest_neighbors(query, bank, k=k)
    for row, found_cosines, found in zip(query, cosines, indices, strict=True):
        alone_cosines, alone = nearest_neighbors(row.unsqueeze(0), bank, k=k)
        assert torch.equal(found, alone.squeeze(0))
        assert same_bits(found_cosines, alone_cosines.squeeze(0))


@given(
    st.integers(9, 70),
    st.integers(1, 400),
    st.integers(32, 90),
    st.integers(1, 60),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 10**6),
)
def test_any_size(rows: int, count: int, dims: int, k: int, dtype: torch.dtype, seed: int) -> None:
    assert_as_alone(normal(rows, dims, seed=seed).to(dtype), normal(count, dims, seed=seed + 1).to(dtype), k=k)


@pytest.mark.parametrize("dims", [255, 256, 257, 520, 1030])
def test_rows_longer_than_a_chain(dims: int) -> None:
    count = 500 if EMULATED else 6000  # so many that the CPU's filter leaves some out; the device has no filter
    assert_as_alone(normal(24, dims), normal(count, dims, seed=1), k=8)


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("k", [1, 20, 256])
def test_rows_that_the_filter_cannot_tell_apart(spread: float, k: int) -> None:
    rows, count = (20, 500) if EMULATED else (40, 3000)
    assert_as_alone(tight(rows, 96, spread), tight(count, 96, spread, seed=1), k=k)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_every_row_is_nearer_than_those_before(order: str) -> None:
    """The list is full of what the next rows push out, or nothing comes after the first k."""
    bank = tight(2000, 64, 0.5, seed=1)
    nearness = normalize(bank, dim=1) @ normalize(tight(1, 64, 0), dim=1).squeeze(0)
    assert_as_alone(tight(33, 64, 0.01), bank[nearness.argsort(descending=order == "descending")], k=10)


@pytest.mark.parametrize("dims", [32, 33, 63, 500, 3001])
def test_large_elements_fill_the_integers(dims: int) -> None:
    """Rows along an axis have the largest integer there is; their sums are the largest too."""
    axis = torch.zeros(64, dims)
    axis[:, 0] = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    bank = torch.cat([axis, normal(200, dims), axis * 1e30, axis * 1e-30])
    assert_as_alone(axis[:20] + 0.01 * normal(20, dims, seed=1), bank, k=70)


def test_rows_of_zero_and_queries_that_are_not_finite() -> None:
    query, bank = normal(24, 48), normal(300, 48, seed=1)
    query[3], query[5], query[20] = 0, torch.inf, torch.nan
    bank[7], bank[280] = 0, 1e-30
    assert_as_alone(query, bank, k=250)
