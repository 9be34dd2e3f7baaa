"""pair_information and pair_statistics over many sizes, types and kinds of data: every tile edge and block of pairs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import ops, reference
from tests.helpers import DEVICES, assert_error_budget, same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# (B, K, E) around the borders of tiles (64), stages (16) and rows of a warp (512). Then sums whose depth is cut, in the
# gradient by the weight and in that by the rows, of logits not; and, on the emulated device, three blocks of pairs.
SIZES = [(1, 1, 1), (1, 5, 16), (31, 63, 15), (32, 64, 33), (33, 65, 130), (3, 513, 17), (300, 3, 4), (2, 700, 33)]
SIZES += [(20, 10, 600), (40, 1500, 3)]


def heads(pairs: int, clusters: int, depth: int, scale: float = 1.0) -> list[Tensor]:
    """Return the tensors of pair_information in float64; of logits the standard deviation is `scale`."""
    generator = torch.Generator().manual_seed(pairs + clusters)
    shapes = ((2 * pairs, depth), (clusters, depth)) * 2
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[0] *= scale / depth**0.5
    tensors[2] *= scale / depth**0.5
    tensors += [torch.rand(size, generator=generator, dtype=torch.float64) for size in (clusters, pairs)]
    tensors[4] = (0.1 + tensors[4]) / (0.1 + tensors[4]).sum()
    return tensors


def assert_within_budget(
    function: str, tensors: list[Tensor], dtype: torch.dtype, device: str, **options: Any
) -> tuple[Tensor, ...]:
    """Require that results err at most twice as much as those of the reference, and return them."""
    rounded = [tensor.to(dtype).to(device) for tensor in tensors]
    results: tuple[Tensor, ...] = getattr(ops, function)(*rounded, **options)
    naive: Callable[..., tuple[Tensor, ...]] = getattr(reference, function)
    truth = naive(*(tensor.double() for tensor in rounded), **options)
    for place, parts in enumerate(zip(results, naive(*rounded, **options), truth, strict=True)):
        # A logit's own rounding is multiplied by the logit, and by beta, in the exponential of it.
        assert_error_budget(*parts, f"{function}, result {place}", amplified=4)
    return results


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    tensors = heads(*size, scale=3)
    results = assert_within_budget("pair_information", tensors, dtype, device, temperature=1.0)
    without = assert_within_budget("pair_information", tensors, dtype, device, temperature=1.0, want_rows=False)
    assert same_bits(results[0], without[0])
    assert same_bits(results[2], without[2])
    assert_within_budget("pair_statistics", tensors[2:4], dtype, device, temperature=1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sure", [0, 2], ids=["student", "teacher"])
@pytest.mark.parametrize("factor", [1e4, 1e8, 1e30])
def test_one_head_may_be_surer_by_far(backend: str, factor: float, sure: int, device: str) -> None:
    """Beside logits of 1e4 and more the other head's are small, but they alone decide the information."""
    tensors = [x.float() for x in heads(40, 30, 20, scale=5)]
    tensors[sure] *= factor
    *given, distribution, weights = (x.double() for x in tensors)
    students, teachers = ((given[head] @ given[head + 1].T).log_softmax(dim=1) for head in (0, 2))
    joint = 0.6 * (students + teachers.roll(40, 0)) - distribution.log()
    value, *slopes = ops.pair_information(*(x.to(device) for x in tensors), temperature=1.0)
    assert float(value) == pytest.approx(float((weights.repeat(2) * joint.logsumexp(dim=1)).mean()), rel=1e-5)
    assert all(bool(x.isfinite().all()) for x in slopes)


@pytest.mark.parametrize("device", DEVICES)
def test_many_pairs(device: str) -> None:
    """Columns whose sums have as many parts as there may be, of a block of pairs and of a smaller one."""
    assert_within_budget("pair_statistics", heads(12300, 2, 1)[2:4], torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [1e-30, 0.07, 3.0, 1e30])
def test_temperatures(temperature: float, dtype: torch.dtype, device: str) -> None:
    """Rows as large as the temperature, so that neither they nor the gradients are out of range."""
    tensors = heads(20, 70, 9, scale=2)
    for place in (0, 2):
        tensors[place] *= temperature
    for beta in (0.2, 1.0, 3.0):
        assert_within_budget("pair_information", tensors, dtype, device, beta=beta, temperature=temperature)
    assert_within_budget("pair_statistics", tensors[2:4], dtype, device, temperature=temperature)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clusters", [70, 600])
def test_shares_that_vanish(clusters: int, dtype: torch.dtype, device: str) -> None:
    """Logits in the thousands, so that student and teacher agree about nothing; and an empty cluster."""
    tensors = heads(9, clusters, 5, scale=3000)
    tensors[4][::3] = 0
    tensors[4][1] = 1e-310
    results = assert_within_budget("pair_information", tensors, dtype, device, beta=1.0, temperature=1.0)
    assert float(results[0]) < -100
    assert_within_budget("pair_statistics", tensors[2:4], dtype, device, temperature=1.0)


@pytest.mark.parametrize("device", DEVICES)
def test_products_that_overflow_but_over_the_temperature(device: str) -> None:
    tensors = heads(5, 7, 4)
    tensors[0] *= 1e25
    tensors[1] *= 1e15
    assert_within_budget("pair_information", tensors, torch.float32, device, temperature=1e30)
    assert_within_budget("pair_statistics", tensors[:2], torch.float32, device, temperature=1e30)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite(dtype: torch.dtype, bad: float, device: str) -> None:
    """One element of any input makes all results NaN."""
    tensors = [tensor.to(dtype).to(device) for tensor in heads(3, 5, 2)]
    for place in range(6):
        spoiled = [tensor.clone() for tensor in tensors]
        spoiled[place].view(-1)[-1] = bad
        for want_rows in (True, False):
            results = ops.pair_information(*spoiled, want_rows=want_rows)
            assert all(bool(result.isnan().all()) for result in results), place
        if place < 2:
            assert all(bool(result.isnan().all()) for result in ops.pair_statistics(*spoiled[:2])), place


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", [0, -1])
def test_what_is_not_finite_in_one_block_of_pairs(place: int, device: str) -> None:
    tensors = [tensor.float().to(device) for tensor in heads(40, 1500, 1)]
    assert all(bool(result.isfinite().all()) for result in ops.pair_information(*tensors))
    tensors[2][place] = float("nan")
    assert all(bool(result.isnan().all()) for result in ops.pair_information(*tensors))
    assert all(bool(result.isnan().all()) for result in ops.pair_statistics(*tensors[2:4]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_pairs(dtype: torch.dtype, device: str) -> None:
    tensors = [tensor.to(dtype).to(device) for tensor in heads(0, 5, 3)]
    information, grad_rows, grad_weight = ops.pair_information(*tensors)
    assert float(information) == 0
    assert grad_rows.shape == (0, 3)
    assert grad_weight.tolist() == [[0.0] * 3] * 5
    sums, agreement, largest = ops.pair_statistics(*tensors[:2])
    assert sums.tolist() == [0.0] * 5
    assert agreement.shape == (0,)
    assert float(largest) == 0
    tensors[4][2] = float("nan")
    for result in ops.pair_information(*tensors):
        assert bool(result.isnan().all())


@pytest.mark.parametrize("device", DEVICES)
def test_pairs_without_weight(device: str) -> None:
    """They have gradient 0, and change no other's."""
    tensors = [tensor.float().to(device) for tensor in heads(8, 20, 6)]
    tensors[5][::2] = 0
    _, grad_rows, _ = ops.pair_information(*tensors)
    assert grad_rows.any(dim=1).tolist() == [False, True] * 8
    tensors[0][::2] = 1
    assert same_bits(ops.pair_information(*tensors)[1], grad_rows)


@pytest.mark.parametrize("device", DEVICES)
def test_places_in_memory_do_not_matter(device: str) -> None:
    """Tensors that begin where no 16 bytes do, and those laid out by column."""
    tensors = [tensor.float().to(device) for tensor in heads(20, 65, 17)]
    shifted = [torch.cat([tensor.new_ones(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in tensors]
    by_column = [tensor.mT.contiguous().mT if tensor.dim() == 2 else tensor for tensor in tensors]
    for same in (tensors, shifted, by_column):
        assert all(map(same_bits, ops.pair_information(*same), ops.pair_information(*tensors)))
        assert all(map(same_bits, ops.pair_statistics(*same[2:4]), ops.pair_statistics(*tensors[2:4])))
