"""Mining and the HSD loss where anchors go round in blocks, against rows that are gathered and against one process."""

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import _extension, batch_hard_mining
from deepclust_ext.distributed import batch_hard_mining as mining_over_ranks
from deepclust_ext.distributed import mining, ring
from deepclust_ext.losses import HSDLoss
from deepclust_ext.ops import HardPairs
from tests.distributed.pool import PerRank, Pool
from tests.helpers import assert_error_budget

SHARDS = [(1, [7]), (2, [9, 9]), (3, [4, 0, 7]), ("odd", [1, 12]), (4, [1, 3, 70, 2])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)

#: Bytes of all rows that are gathered at most: everything, or nothing.
GATHERED, ROUND = 256 << 20, 0


def inputs_of(count: int, dtype: torch.dtype) -> list[Tensor]:
    teacher = torch.randn(count, 6, dtype=torch.float64)
    student = teacher + 0.7 * torch.randn(count, 6, dtype=torch.float64)
    return [teacher.to(dtype), student.to(dtype)]


def mined(
    group: Any,
    tensors: list[Tensor],
    weights: Tensor,  # (n, 4), of the distances
    normalize: bool = True,
) -> list[Tensor]:
    """Return the pairs, then the gradients of teacher and student."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    more = {} if group is None else {"process_group": group}
    call: Any = batch_hard_mining if group is None else mining_over_ranks
    pairs = call(*tensors, normalize=normalize, **more)
    sum((pair * weight).sum() for pair, weight in zip(pairs[2:], weights.T, strict=True)).backward()
    gradients = [x.grad for x in tensors]
    return [x.detach() for x in (*pairs, *gradients) if x is not None]


def loss_of(group: Any, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """Return the loss, its statistics, and the gradients of those tensors that may have one."""
    student = tensors[1].clone().requires_grad_()
    loss_module = HSDLoss(return_stats=True, gather_distributed=group is not None, process_group=group, **options)
    loss, stats = loss_module(tensors[0], student)
    loss.sum().backward()
    assert student.grad is not None
    return [loss.detach(), torch.stack(stats), student.grad]


def limited(
    group: Any, most_gathered: int, block: int, late: int, backend: str, function: Any, *arguments: Any
) -> list[Tensor]:
    """Call a function with at most so many bytes gathered and samples in a block, later on one rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "MOST_GATHERED_BYTES", most_gathered)
        patch.setattr(ring, "BLOCK", block)
        if backend == "reference":
            patch.setattr(_extension, "NATIVE_DEVICES", frozenset())
        time.sleep(0.2 if group.rank() == late else 0)
        found: list[Tensor] = function(group, *arguments)
        return found


def run(
    pool: Pool,
    ranks: int | str,
    sizes: list[int],
    function: Any,
    inputs: list[Tensor],
    *rest: Any,
    most_gathered: int = ROUND,
    block: int = 1024,
    late: int = -1,
    backend: str = "native",
) -> list[list[Tensor]]:
    parts = [x.split(sizes) for x in inputs]
    own = PerRank([part[rank] for part in parts] for rank in range(len(sizes)))
    arguments = [PerRank(x.split(sizes)) if isinstance(x, Tensor) else x for x in rest]
    answers: list[list[Tensor]] = pool.run(
        limited, most_gathered, block, late, backend, function, own, *arguments, ranks=ranks
    )
    return answers


def joined(answers: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*answers, strict=True)]


@shards
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("normalize", [True, False])
def test_pairs_are_those_of_one_process_to_the_bit(
    pool: Pool, ranks: int | str, sizes: list[int], dtype: torch.dtype, block: int, normalize: bool
) -> None:
    count = sum(sizes)
    inputs, weights = inputs_of(count, dtype), torch.randn(count, 4).to(dtype)
    for x in inputs:
        x[-1] = x[0]  # ties between the first and the last rank
        x[count // 2] = x[count // 3]
    expected = mined(None, inputs, weights, normalize)
    got = joined(run(pool, ranks, sizes, mined, inputs, weights, normalize, block=block))
    for name, x, y in zip(HardPairs._fields, got, expected, strict=False):
        assert torch.equal(x, y), name
    gathered = joined(run(pool, ranks, sizes, mined, inputs, weights, normalize, most_gathered=GATHERED))
    assert all(torch.equal(x, y) for x, y in zip(got, gathered, strict=True))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for x, y in zip(got[6:], expected[6:], strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * float(y.abs().max()))


@shards
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "normalize": False}, {"reduction": "none"}], ids=str)
def test_loss_statistics_and_gradients_are_those_of_gathered_rows_to_the_bit(
    pool: Pool, ranks: int | str, sizes: list[int], options: dict[str, Any]
) -> None:
    inputs = inputs_of(sum(sizes), torch.float32)
    one, expected = (
        run(pool, ranks, sizes, loss_of, inputs, options, most_gathered=most, block=3) for most in (ROUND, GATHERED)
    )
    for got, want in zip(one, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    truth = loss_of(None, inputs, options)
    for got in one:
        torch.testing.assert_close(got[1], truth[1], rtol=1e-6, atol=0)
    if not options:
        torch.testing.assert_close(torch.stack([got[0] for got in one]).mean(), truth[0], rtol=1e-6, atol=0)
        gradient = torch.cat([got[2] for got in one]) / len(sizes)
        torch.testing.assert_close(gradient, truth[2], rtol=1e-5, atol=1e-6 * float(truth[2].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_budget(pool: Pool, dtype: torch.dtype) -> None:
    inputs = inputs_of(17, dtype)
    truth, naive = loss_of(None, [x.double() for x in inputs], {}), loss_of(None, inputs, {})
    losses, _, gradients = zip(*run(pool, 2, [5, 12], loss_of, inputs, {}, block=3), strict=True)
    for got, place in ((torch.stack(losses).sum(0) / 2, 0), (torch.cat(gradients) / 2, 2)):
        assert got.dtype == dtype
        assert_error_budget(got, naive[place], truth[place])


def test_of_squares_with_one_root_the_op_decides(pool: Pool) -> None:
    """The root of 1 and of the next number is 1, so that answers of two ranks look the same and are not."""
    teacher = torch.tensor([[0.0, 0], [0.1, 0], [0.1, 0]])
    student = torch.tensor([[0.9, 0], [1, 0], [1, math.sqrt(torch.finfo(torch.float32).eps)]])
    weights = torch.ones(3, 4)
    expected = mined(None, [teacher, student], weights, False)
    assert expected[0][0] == 2
    assert expected[2][0] == 1
    got = joined(run(pool, 3, [1, 1, 1], mined, [teacher, student], weights, False))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_results_do_not_depend_on_who_is_late(pool: Pool) -> None:
    sizes = [8, 9, 1, 7]
    inputs, weights = inputs_of(25, torch.float32), torch.randn(25, 4)
    first = joined(run(pool, 4, sizes, mined, inputs, weights, block=3))
    for late in (0, 3):
        again = joined(run(pool, 4, sizes, mined, inputs, weights, block=3, late=late))
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


def test_reference(pool: Pool) -> None:
    inputs, weights = inputs_of(11, torch.float64), torch.randn(11, 4, dtype=torch.float64)
    expected = mined(None, inputs, weights)
    got = joined(run(pool, 3, [4, 0, 7], mined, inputs, weights, block=3, backend="reference"))
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", [0, 2, 3, 5])
@pytest.mark.parametrize(("which", "value", "normalize"), [(0, math.nan, True), (1, math.inf, True), (1, 1e30, False)])
def test_a_number_that_is_not_finite_reaches_all_ranks(
    pool: Pool, place: int, which: int, value: float, normalize: bool
) -> None:
    inputs = inputs_of(6, torch.float32)
    inputs[which][place, 1] = value
    got = joined(run(pool, 3, [3, 1, 2], mined, inputs, torch.ones(6, 4), normalize, block=2))
    assert all(bool((index == -1).all()) for index in got[:2])
    assert all(bool(x.isnan().all()) for x in got[2:])


def test_ranks_that_all_have_no_sample(pool: Pool) -> None:
    # Of no bytes nothing is above the limit but a limit below 0.
    for answer in run(pool, 2, [0, 0], mined, inputs_of(0, torch.float32), torch.ones(0, 4), most_gathered=-1):
        assert [len(x) for x in answer] == [0] * 8


def compiled(group: Any, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    loss = HSDLoss(gather_distributed=True, process_group=group, **options)
    found = []
    for call in (
        torch.compile(lambda x, y: 2 * loss(x, y.sin()), backend="aot_eager"),
        lambda x, y: 2 * loss(x, y.sin()),
    ):
        student = tensors[1].clone().requires_grad_()
        value = call(tensors[0], student)
        value.backward()
        assert student.grad is not None
        found += [value.detach(), student.grad]
    return found


def test_compiled_code_gives_the_same(pool: Pool) -> None:
    for loss, gradient, *expected in run(pool, 2, [5, 4], compiled, inputs_of(9, torch.float32), {}, block=2):
        torch.testing.assert_close([loss, gradient], expected)
