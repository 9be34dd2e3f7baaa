"""The contrastive loss over ranks against one process with the whole batch."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import _extension, fused_contrastive_loss
from deepclust_ext.distributed import contrastive, ring, shared_pairs
from deepclust_ext.distributed import fused_contrastive_loss as over_ranks
from tests.distributed.pool import PerRank, Pool
from tests.helpers import assert_error_budget

#: Samples of each rank.
SHARDS = [(2, [5, 5]), (3, [4, 0, 7]), ("odd", [1, 8]), (4, [1, 3, 90, 2])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.2},
    "hard": {"temperature": 0.3, "hardness": 1.5},
    "debiased": {"hardness": 0.5, "debias": 0.1},
    "sharp": {"temperature": 0.002},
    "lengths": {"normalize": False, "temperature": 0.7, "hardness": 2.0, "debias": 0.05},
}


def inputs_of(count: int, with_classes: bool, dtype: torch.dtype) -> list[Tensor]:
    z_a = torch.randn(count, 6, dtype=torch.float64)
    inputs = [z_a, z_a + 0.8 * torch.randn(count, 6)]
    if with_classes:
        inputs += list(torch.rand(2, count, 3, dtype=torch.float64).softmax(dim=2))
    return [x.to(dtype) for x in inputs]


def loss_and_gradients(
    group: Any, tensors: list[Tensor], options: dict[str, Any], reduction: str = "mean", learned: bool = False
) -> list[Tensor]:
    tensors = [x.clone().requires_grad_() for x in tensors]
    names = ("z_a", "z_b", "class_a", "class_b")
    temperature = torch.tensor(options.get("temperature", 0.5)).double().requires_grad_()
    if learned:
        options = {**options, "temperature": temperature}
    if group is not None:
        options = {**options, "process_group": group}
    call: Any = fused_contrastive_loss if group is None else over_ranks
    loss = call(**dict(zip(names, tensors, strict=False)), **options, reduction=reduction)
    (loss.sum() if reduction == "none" else loss).backward()
    gradients = [x.grad for x in tensors] + ([temperature.grad] if learned else [])
    return [loss.detach()] + [gradient for gradient in gradients if gradient is not None]


def run(
    pool: Pool,
    ranks: int | str,
    sizes: list[int],
    inputs: list[Tensor],
    *rest: Any,
    call: Callable[..., list[Tensor]] = loss_and_gradients,
) -> list[list[Tensor]]:
    parts = [x.split(sizes) for x in inputs]
    own = PerRank([part[rank] for part in parts] for rank in range(len(sizes)))
    answers: list[list[Tensor]] = pool.run(call, own, *rest, ranks=ranks)
    return answers


def joined(answers: list[list[Tensor]], learned: bool = False) -> list[Tensor]:
    """Return what DistributedDataParallel makes of it: the mean over the ranks of the loss, and of gradients."""
    count = len(answers)
    loss, *gradients = zip(*answers, strict=True)
    last = [torch.stack(gradients.pop()).sum(0) / count] if learned else []
    return [torch.stack(loss).sum(0) / count, *(torch.cat(parts) / count for parts in gradients), *last]


@shards
@pytest.mark.parametrize("with_classes", [False, True], ids=["", "classes"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_one_process(
    pool: Pool, ranks: int | str, sizes: list[int], form: str, with_classes: bool
) -> None:
    inputs = inputs_of(sum(sizes), with_classes, torch.float64)
    expected = loss_and_gradients(None, inputs, FORMS[form])
    for got, want in zip(joined(run(pool, ranks, sizes, inputs, FORMS[form])), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def in_small_blocks(*arguments: Any) -> list[Tensor]:
    ring.BLOCK = 2
    try:
        return loss_and_gradients(*arguments)
    finally:
        ring.BLOCK = 1024


@shards
@pytest.mark.parametrize("form", ["hard", "sharp"])
def test_blocks_that_go_round(pool: Pool, ranks: int | str, sizes: list[int], form: str) -> None:
    sizes = [min(size, 9) for size in sizes]
    inputs = inputs_of(sum(sizes), True, torch.float64)
    expected = loss_and_gradients(None, inputs, FORMS[form])
    answers = run(pool, ranks, sizes, inputs, FORMS[form], call=in_small_blocks)
    for got, want in zip(joined(answers), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_results_do_not_depend_on_who_is_late(pool: Pool) -> None:
    sizes = [30, 40, 1, 29]
    inputs = inputs_of(sum(sizes), True, torch.float32)
    first = run(pool, 4, sizes, inputs, FORMS["hard"])
    for late in (0, 3):
        answers = run(pool, 4, sizes, inputs, FORMS["hard"], late, call=late_on)
        for own, again in zip(first, answers, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(own, again, strict=True))


def late_on(group: Any, tensors: list[Tensor], options: dict[str, Any], late: int) -> list[Tensor]:
    if group.rank() == late:
        time.sleep(0.2)
    return loss_and_gradients(group, tensors, options)


def gradients_of_one_view(group: Any, tensors: list[Tensor], place: int) -> Tensor:
    tensors = [x.clone().requires_grad_(number == place) for number, x in enumerate(tensors)]
    loss = over_ranks(tensors[0], tensors[1], class_a=tensors[2], class_b=tensors[3], process_group=group)
    loss.backward()
    assert all(x.grad is None for number, x in enumerate(tensors) if number != place)
    gradient = tensors[place].grad
    assert gradient is not None
    return gradient


@pytest.mark.parametrize("place", range(4))
def test_a_gradient_of_one_input_alone(pool: Pool, place: int) -> None:
    sizes = [4, 1, 6]
    inputs = inputs_of(sum(sizes), True, torch.float64)
    expected = loss_and_gradients(None, inputs, {})[1 + place]
    own = PerRank([x.split(sizes)[rank] for x in inputs] for rank in range(3))
    got = torch.cat(pool.run(gradients_of_one_view, own, place, ranks=3)) / 3
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_other_reductions(pool: Pool, reduction: str) -> None:
    sizes = [4, 1, 6]
    inputs = inputs_of(sum(sizes), False, torch.float64)
    expected = loss_and_gradients(None, inputs, {}, reduction)
    answers = run(pool, 3, sizes, inputs, {}, reduction)
    if reduction == "sum":
        got = joined(answers)
    else:
        of_a, of_b = zip(*(answer[0].chunk(2) for answer in answers), strict=True)
        got = [torch.cat([*of_a, *of_b]), *(torch.cat(parts) for parts in list(zip(*answers, strict=True))[1:])]
    for result, want in zip(got, expected, strict=True):
        torch.testing.assert_close(result, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["plain", "debiased"])
def test_a_learned_temperature_gets_its_gradient(pool: Pool, form: str) -> None:
    sizes = [4, 0, 7]
    inputs = inputs_of(sum(sizes), True, torch.float64)
    expected = loss_and_gradients(None, inputs, FORMS[form], "mean", True)
    got = joined(run(pool, 3, sizes, inputs, FORMS[form], "mean", True), learned=True)
    for result, want in zip(got, expected, strict=True):
        torch.testing.assert_close(result, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["plain", "debiased"])
@pytest.mark.parametrize("sizes", [[17, 3], [30, 40, 1, 29]], ids=str)
def test_error_budget(pool: Pool, sizes: list[int], form: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(sum(sizes), False, dtype)
    truth = loss_and_gradients(None, [x.double() for x in inputs], {**FORMS[form]})
    naive = loss_and_gradients(None, inputs, {**FORMS[form]})
    answers = run(pool, len(sizes), sizes, inputs, FORMS[form])
    for got, one, exact in zip(joined(answers), naive, truth, strict=True):
        assert got.dtype == dtype
        assert_error_budget(got, one, exact)


def without_pair_kernels(
    group: Any, tensors: list[Tensor], options: dict[str, Any], backend: str, most_gathered: int
) -> list[Tensor]:
    """Compute as where no kernel takes pairs for both of their rows, as on CUDA and without the native library."""
    with pytest.MonkeyPatch.context() as patch:
        if backend == "reference":
            patch.setattr(_extension, "NATIVE_DEVICES", frozenset())
        for room in (contrastive, shared_pairs):
            patch.setattr(room, "has_pair_kernels", lambda rows: False)
        patch.setattr(contrastive, "MOST_GATHERED_BYTES", most_gathered)
        patch.setattr(ring, "BLOCK", 2)
        return loss_and_gradients(group, tensors, options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("most_gathered", [0, 256 << 20])
@pytest.mark.parametrize(("backend", "sizes"), [("reference", [1, 5]), ("native", [2, 4]), ("native", [4, 0, 3])])
def test_rows_that_are_gathered_or_go_round_without_pair_kernels(
    pool: Pool, form: str, most_gathered: int, backend: str, sizes: list[int]
) -> None:
    inputs = inputs_of(sum(sizes), True, torch.float64)
    expected = loss_and_gradients(None, inputs, FORMS[form])
    answers = run(pool, len(sizes), sizes, inputs, FORMS[form], backend, most_gathered, call=without_pair_kernels)
    for result, want in zip(joined(answers), expected, strict=True):
        torch.testing.assert_close(result, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_go_round_without_pair_kernels_have_the_error_of_one_process(pool: Pool, dtype: torch.dtype) -> None:
    inputs = inputs_of(9, False, dtype)
    truth = loss_and_gradients(None, [x.double() for x in inputs], {})
    naive = loss_and_gradients(None, inputs, {})
    answers = run(pool, 3, [4, 2, 3], inputs, {}, "native", 0, call=without_pair_kernels)
    for got, one, exact in zip(joined(answers), naive, truth, strict=True):
        assert got.dtype == dtype
        assert_error_budget(got, one, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ranks_of_equal_rows_and_a_queue_are_those_of_one_process_to_the_bit(pool: Pool, dtype: torch.dtype) -> None:
    inputs, queue = inputs_of(8, False, dtype), torch.randn(9, 6, dtype=dtype)
    answers = run(pool, 2, [4, 4], inputs, {"queue": queue})
    for answer, z_a, z_b in zip(answers, inputs[0].split(4), inputs[1].split(4), strict=True):
        for got, want in zip(answer, loss_and_gradients(None, [z_a, z_b], {"queue": queue}), strict=True):
            assert torch.equal(got, want)


def test_a_queue_and_unequal_shards(pool: Pool) -> None:
    sizes = [4, 0, 3]
    inputs, queue = inputs_of(7, False, torch.float64), torch.randn(9, 6, dtype=torch.float64)
    expected = loss_and_gradients(None, inputs, {"queue": queue})
    for got, want in zip(joined(run(pool, 3, sizes, inputs, {"queue": queue})), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", ["plain", "hard", "debiased"])
@pytest.mark.parametrize("place", [0, 2, 3, 5])
@pytest.mark.parametrize("rest", [(), ("native", 0), ("native", 256 << 20), ("reference", 0)], ids=str)
def test_a_number_that_is_not_finite_reaches_all_ranks(
    pool: Pool, form: str, place: int, rest: tuple[object, ...]
) -> None:
    inputs = inputs_of(6, False, torch.float32)
    inputs[1][place, 2] = torch.nan
    call = without_pair_kernels if rest else loss_and_gradients
    for loss, *gradients in run(pool, 2, [3, 3], inputs, FORMS[form], *rest, call=call):
        assert bool(loss.isnan())
        assert all(bool(gradient.isnan().all()) for gradient in gradients)


def test_so_do_rows_whose_squares_overflow(pool: Pool) -> None:
    inputs = inputs_of(6, False, torch.float32)
    inputs[0][4] = 1e19  # whose products with other rows do not
    for loss, *gradients in run(pool, 2, [3, 3], inputs, FORMS["lengths"]):
        assert bool(loss.isnan())
        assert all(bool(gradient.isnan().all()) for gradient in gradients)


@pytest.mark.parametrize("form", ["plain", "hard"])
def test_ranks_that_all_have_no_sample(pool: Pool, form: str) -> None:
    inputs = inputs_of(0, True, torch.float32)
    for loss, *gradients in run(pool, 2, [0, 0], inputs, FORMS[form]):
        assert float(loss) == 0
        assert [gradient.shape for gradient in gradients] == [x.shape for x in inputs]


def test_one_process_without_a_group_is_the_op() -> None:
    inputs = inputs_of(5, False, torch.float32)
    assert torch.equal(over_ranks(*inputs, temperature=0.3), fused_contrastive_loss(*inputs, temperature=0.3))
