"""Groups, gathered rows and sums of all ranks."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from deepclust_ext.distributed import (
    Shards,
    exchange,
    gather_rows,
    num_ranks,
    rank_of,
    resolve_group,
    shards_of,
    sum_over_ranks,
)
from tests.distributed.pool import PerRank, Pool

#: Rows of each rank: equal, unequal, with an empty shard, on a group that is not the world.
SHARDS = [(1, [5]), (2, [3, 3]), (3, [4, 0, 2]), ("odd", [2, 5]), (4, [1, 3, 0, 2])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def split(rows: Tensor, sizes: list[int]) -> PerRank:
    return PerRank(rows.split(sizes))


def gathered(group: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Shards]:
    x.requires_grad_()
    rows = gather_rows(x, group)
    (rows * weight).sum().backward()
    assert x.grad is not None
    return rows.detach(), x.grad, shards_of(x, group)


@shards
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_gathered_in_order_and_gradients_are_summed_in_order(
    pool: Pool, ranks: int | str, sizes: list[int], dtype: torch.dtype
) -> None:
    rows = torch.randn(sum(sizes), 2, 3).to(dtype)
    weights = torch.randn(len(sizes), sum(sizes), 2, 3).to(dtype)
    answers = pool.run(gathered, split(rows, sizes), PerRank(weights), ranks=ranks)
    expected = weights[0].to(torch.promote_types(dtype, torch.float32))
    for weight in weights[1:]:
        expected = expected + weight
    assert all(torch.equal(answer[0], rows) for answer in answers)
    assert torch.equal(torch.cat([answer[1] for answer in answers]), expected.to(dtype))
    assert [answer[2] for answer in answers] == [Shards(tuple(sizes), rank) for rank in range(len(sizes))]


def gathered_constant(group: Any, x: Tensor) -> tuple[Tensor, bool]:
    rows = gather_rows(x, group, with_gradient=False)
    return rows.detach(), rows.requires_grad


@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_without_gradient(pool: Pool, ranks: int) -> None:
    rows = torch.randn(6, 2, requires_grad=True)
    for answer, requires_grad in pool.run(gathered_constant, split(rows, [6 // ranks] * ranks), ranks=ranks):
        assert torch.equal(answer, rows)
        assert not requires_grad


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_and_masks_are_gathered(pool: Pool, dtype: torch.dtype) -> None:
    rows = torch.randint(2, (5,)).to(dtype)
    for answer, _ in pool.run(gathered_constant, split(rows, [4, 1]), ranks=2):
        assert answer.dtype == dtype
        assert torch.equal(answer, rows)


def test_shards_know_their_places() -> None:
    shards = Shards((3, 0, 4), 2)
    assert (shards.start, shards.stop, shards.total) == (3, 7, 7)


def summed(group: Any, x: Tensor, weight: Tensor, small: int) -> tuple[Tensor, Tensor]:
    x.requires_grad_()
    with mock.patch.object(exchange, "SMALL", small):
        total = sum_over_ranks(x, group)
        (total * weight).sum().backward()
    assert x.grad is not None
    return total.detach(), x.grad


@pytest.mark.parametrize("small", [65536, 0], ids=["at once", "in parts"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, "odd", 4])
def test_sums_are_taken_in_order(pool: Pool, ranks: int | str, dtype: torch.dtype, small: int) -> None:
    count = 2 if ranks == "odd" else int(ranks)
    values, weights = torch.randn(2, count, 7, 5).to(dtype)
    answers = pool.run(summed, PerRank(values), PerRank(weights), small, ranks=ranks)
    for got, tensors in ((0, values), (1, weights)):
        expected = tensors[0].to(torch.promote_types(dtype, torch.float32))
        for tensor in tensors[1:]:
            expected = expected + tensor
        for answer in answers:
            assert torch.equal(answer[got], expected.to(dtype))


def test_bfloat16_sums_do_not_stop_at_256(pool: Pool) -> None:
    values = torch.full((3, 4), 171.0, dtype=torch.bfloat16)
    for total, _ in pool.run(summed, PerRank(values), PerRank(values), 65536, ranks=3):
        assert total.tolist() == [512.0] * 4  # 513, rounded once


def members(group: Any) -> tuple[int, int, int, int, str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    own = resolve_group(mesh["data"])
    assert own is not None
    assert resolve_group(None) is dist.group.WORLD
    with pytest.raises(ValueError, match="a mesh of one dimension, got one of 2"):
        resolve_group(mesh)
    with pytest.raises(ValueError, match="a group that this rank is a member of"):
        resolve_group(dist.GroupMember.NON_GROUP_MEMBER)  # type: ignore[arg-type]
    names = "".join(map(str, dist.get_process_group_ranks(own)))
    return num_ranks(group), rank_of(group), num_ranks(mesh["data"]), rank_of(mesh["data"]), names


def test_groups_and_meshes(pool: Pool) -> None:
    answers = pool.run(members, ranks=4)
    assert answers == [(4, 0, 2, 0, "02"), (4, 1, 2, 0, "13"), (4, 2, 2, 1, "02"), (4, 3, 2, 1, "13")]


def test_one_process_is_one_rank() -> None:
    rows = torch.randn(3, 2)
    assert resolve_group(None) is None
    assert (num_ranks(), rank_of()) == (1, 0)
    assert gather_rows(rows) is rows
    assert sum_over_ranks(rows) is rows
    assert shards_of(rows) == Shards((3,), 0)


def test_no_group_is_said() -> None:
    with pytest.raises(TypeError, match="process_group: expected a ProcessGroup, a DeviceMesh or None, got str"):
        resolve_group("world")  # type: ignore[arg-type]


def compiled(group: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return torch.sin(gather_rows(2 * x, group).square().sum() + sum_over_ranks(x, group).sum())

    value = torch.compile(loss, backend="aot_eager")(x)
    value.backward()
    assert x.grad is not None
    eager = x.detach().requires_grad_()
    loss(eager).backward()
    assert eager.grad is not None
    return x.grad, eager.grad


def test_compiled_code_gives_the_same(pool: Pool) -> None:
    for got, expected in pool.run(compiled, PerRank(torch.randn(2, 4, 3)), ranks=2):
        torch.testing.assert_close(got, expected)
