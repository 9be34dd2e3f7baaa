"""The losses over ranks against one process with the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.distributed import batch_hard_mining as mining_over_ranks
from deepclust_ext.losses import (
    ClusterContrastiveLoss,
    ContrastiveLoss,
    HSDLoss,
    MaskedPatchLoss,
    MatchedLabelLoss,
    PrototypeLoss,
)
from deepclust_ext.ops import HardPairs, batch_hard_mining
from tests.distributed.pool import PerRank, Pool
from tests.helpers import assert_error_budget

SHARDS = [(1, [7]), (2, [9, 9]), (3, [4, 0, 7]), ("odd", [1, 12]), (4, [1, 3, 70, 2])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:a batch of .* tells little:RuntimeWarning")

#: Losses, and the kinds of rows that they take.
LOSSES: dict[str, tuple[type[nn.Module], dict[str, Any], str]] = {
    "contrastive": (ContrastiveLoss, {"hardness": 0.5}, "rows rows"),
    "clusters": (ClusterContrastiveLoss, {"temperature": 0.7, "entropy_weight": 1.5}, "shares shares"),
    "hsd": (HSDLoss, {}, "rows rows"),
    "hsd sum": (HSDLoss, {"reduction": "sum", "normalize": False}, "rows rows"),
    "patches": (MaskedPatchLoss, {}, "patches patches"),
    "labels": (MatchedLabelLoss, {}, "shares labels"),
    "prototypes": (PrototypeLoss, {"temperature": 0.3}, "rows rows labels number"),
}


def tensors_of(kinds: str, count: int, dtype: torch.dtype) -> list[Any]:
    first = torch.randn(count, 6, dtype=torch.float64)
    made: list[Any] = []
    for place, kind in enumerate(kinds.split()):
        noise = torch.randn(count, 6, dtype=torch.float64)
        rows = first + place * 0.5 * noise
        made.append(
            {
                "rows": rows.to(dtype),
                "shares": rows.mul(3).softmax(dim=1).to(dtype),
                "patches": rows.view(count, 2, 3).to(dtype),
                "labels": torch.randint(-1, 5, (count,)),
                "number": 5,
            }[kind]
        )
    return made


def loss_and_gradients(group: Any, name: str, inputs: list[Any], gathers: bool = True) -> list[Tensor]:
    kind, options, _ = LOSSES[name]
    inputs = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    module = kind(**options, gather_distributed=gathers, process_group=group)
    loss = module(*inputs)
    loss.backward()
    gradients = [x.grad for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [loss.detach(), *gradients]


def over_ranks(pool: Pool, ranks: int | str, sizes: list[int], name: str, inputs: list[Any]) -> list[Tensor]:
    """Return what DistributedDataParallel makes of it: the mean over the ranks of the loss, and of gradients."""
    parts = [x.split(sizes) if isinstance(x, Tensor) else [x] * len(sizes) for x in inputs]
    own = PerRank([part[rank] for part in parts] for rank in range(len(sizes)))
    answers = pool.run(loss_and_gradients, name, own, ranks=ranks)
    loss, *gradients = zip(*answers, strict=True)
    return [torch.stack(loss).sum(0) / len(sizes), *(torch.cat(grads) / len(sizes) for grads in gradients)]


@shards
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_one_process(pool: Pool, ranks: int | str, sizes: list[int], name: str) -> None:
    inputs = tensors_of(LOSSES[name][2], sum(sizes), torch.float64)
    expected = loss_and_gradients(None, name, inputs, gathers=False)
    assert len(expected) > 1
    for got, want in zip(over_ranks(pool, ranks, sizes, name, inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("contrastive", "hsd sum")])
def test_error_budget(pool: Pool, name: str, dtype: torch.dtype) -> None:
    inputs = tensors_of(LOSSES[name][2], 17, dtype)
    truth = loss_and_gradients(
        None,
        name,
        [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs],
        gathers=False,
    )
    naive = loss_and_gradients(None, name, inputs, gathers=False)
    for got, one, exact in zip(over_ranks(pool, 2, [5, 12], name, inputs), naive, truth, strict=True):
        assert got.dtype == dtype
        assert_error_budget(got, one, exact)


@pytest.mark.parametrize("name", LOSSES)
def test_a_number_that_is_not_finite_reaches_all_ranks(pool: Pool, name: str) -> None:
    inputs = tensors_of(LOSSES[name][2], 6, torch.float32)
    inputs[0].view(6, -1)[5, 0] = torch.nan
    if "labels" in LOSSES[name][2]:
        inputs[LOSSES[name][2].split().index("labels")][:] = 0
    loss, *_ = over_ranks(pool, 2, [3, 3], name, inputs)
    assert bool(loss.isnan())


def test_an_empty_cluster_over_all_ranks_gets_no_gradient(pool: Pool) -> None:
    inputs = tensors_of("shares shares", 8, torch.float32)
    inputs[0][:, 2] = inputs[1][:, 2:4] = 0
    inputs[0][:4, 1] = 0  # of the first rank alone
    expected = loss_and_gradients(None, "clusters", inputs, gathers=False)
    for got, want in zip(over_ranks(pool, 2, [4, 4], "clusters", inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    assert not over_ranks(pool, 2, [4, 4], "clusters", inputs)[1][:, 2].any()
    assert bool(over_ranks(pool, 2, [4, 4], "clusters", inputs)[1][:4, 1].any())


def mined(group: Any, teacher: Tensor, student: Tensor) -> tuple[Tensor, ...]:
    return tuple(mining_over_ranks(teacher, student, process_group=group))


@shards
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mined_pairs_are_those_of_one_process_to_the_bit(
    pool: Pool, ranks: int | str, sizes: list[int], dtype: torch.dtype
) -> None:
    teacher, student = tensors_of("rows rows", sum(sizes), dtype)
    teacher[-1], student[-1] = teacher[0], student[0]  # ties between the first and the last rank
    expected = batch_hard_mining(teacher, student)
    answers = pool.run(mined, PerRank(teacher.split(sizes)), PerRank(student.split(sizes)), ranks=ranks)
    for name, got, want in zip(HardPairs._fields, zip(*answers, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(got), want), name


def stats(group: Any, teacher: Tensor, student: Tensor) -> tuple[Tensor, ...]:
    _, found = HSDLoss(return_stats=True, gather_distributed=True, process_group=group)(teacher, student)
    return tuple(found)


def test_statistics_are_those_of_one_process(pool: Pool) -> None:
    teacher, student = tensors_of("rows rows", 11, torch.float32)
    _, expected = HSDLoss(return_stats=True)(teacher, student)
    sizes = [4, 0, 7]
    for answer in pool.run(stats, PerRank(teacher.split(sizes)), PerRank(student.split(sizes)), ranks=3):
        torch.testing.assert_close(torch.stack(answer), torch.stack(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_one_process_without_a_group(name: str) -> None:
    inputs = tensors_of(LOSSES[name][2], 30, torch.float64)
    expected = loss_and_gradients(None, name, inputs, gathers=False)
    for got, want in zip(loss_and_gradients(None, name, inputs), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_is_for_what_is_gathered(name: str) -> None:
    with pytest.raises(ValueError, match="process_group: expected None, because gather_distributed is False"):
        LOSSES[name][0](process_group=object())


def empty(group: Any, name: str, inputs: list[Any]) -> str:
    with pytest.raises(ValueError, match=r"expected (shape .* )?(with )?at least one") as caught:
        LOSSES[name][0](gather_distributed=True, process_group=group)(*inputs)
    return str(caught.value)


@pytest.mark.parametrize("name", ["clusters", "patches"])
def test_no_sample_at_all_is_an_error(pool: Pool, name: str) -> None:
    pool.run(empty, name, tensors_of(LOSSES[name][2], 0, torch.float32), ranks=2)


def learned(group: Any, name: str, inputs: list[Any]) -> list[Tensor]:
    temperature = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    options = {**LOSSES[name][1], "temperature": temperature}
    loss = LOSSES[name][0](**options, gather_distributed=group is not None, process_group=group)(*inputs)
    loss.backward()
    assert temperature.grad is not None
    return [loss.detach(), temperature.grad]


@pytest.mark.parametrize("name", ["contrastive", "clusters", "hsd", "prototypes"])
def test_a_learned_temperature_gets_its_gradient(pool: Pool, name: str) -> None:
    sizes = [4, 0, 7]
    inputs = tensors_of(LOSSES[name][2], sum(sizes), torch.float64)
    parts = [x.split(sizes) if isinstance(x, Tensor) else [x] * len(sizes) for x in inputs]
    answers = pool.run(learned, name, PerRank([part[rank] for part in parts] for rank in range(3)), ranks=3)
    for got, want in zip(zip(*answers, strict=True), learned(None, name, inputs), strict=True):
        torch.testing.assert_close(torch.stack(got).mean(), want, rtol=1e-9, atol=1e-12)
