"""Hand cases, properties and edges of the HSD loss; what it shares with mining is tested there."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepclust_ext import _extension, fused_hsd_loss, reference
from tests.helpers import EMULATED, peak_extra_megabytes
from tests.ops.test_batch_hard_mining import BAD_INPUTS, CLAMPED, KINDS, STUDENT, TEACHER, make_batch

LOG_2 = math.log(2)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_hand_case(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    teacher, student = torch.tensor(TEACHER).double(), torch.tensor(STUDENT).double().requires_grad_()
    loss, stats = fused_hsd_loss(teacher, student, normalize=False, reduction="none", return_stats=True)
    # Anchor 0: wp = 1, wn = max(3 - 13^.5, 0) = 0. Anchor 1: wp = 2, wn = 3 - 2. Anchor 2: wp = 0, wn = 5 - 13^.5.
    nearest = 13**0.5
    exponents = [(1 - CLAMPED) * 1 / 0.5, ((2 - CLAMPED) * 2 - 1 * 2) / 0.5, -(5 - nearest) * nearest / 0.5]
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(exponent)) for exponent in exponents], rel=1e-9)
    assert stats.zero_negative_weight == pytest.approx(1 / 3)
    assert stats.zero_positive_weight == pytest.approx(1 / 3)
    assert stats.no_negative == 0
    assert stats.mean_positive_distance == pytest.approx((1 + 2 + CLAMPED) / 3)
    assert stats.mean_negative_distance == pytest.approx((nearest + 2 + nearest) / 3)
    # dloss/dD = +- sigma w / temperature along the unit vectors from the teacher to the mined students.
    sigma = [1 / (1 + math.exp(-exponent)) for exponent in exponents]
    expected = torch.zeros(3, 2, dtype=torch.float64)
    expected[0] += sigma[0] * (1 - CLAMPED) / 0.5 * torch.tensor([1.0, 0.0])  # anchor 0 pulls student 0
    expected[1] += sigma[1] * (2 - CLAMPED) / 0.5 * torch.tensor([0.0, 1.0])  # anchor 1 pulls student 1
    expected[0] -= sigma[1] * 1 / 0.5 * torch.tensor([-1.0, 0.0])  # and pushes student 0
    expected[1] -= sigma[2] * (5 - nearest) / 0.5 * torch.tensor([3.0, -2.0]) / nearest  # anchor 2 pushes student 1
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_stats_of_the_reference(kind: str) -> None:
    teacher, student = make_batch(kind, 300, 40, torch.float64)
    ours, truth = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss, stats = fused_hsd_loss(teacher, ours, return_stats=True)
    expected, expected_stats = reference.fused_hsd_loss(teacher, truth, return_stats=True)
    loss.backward()
    expected.backward()
    tolerance = 1e-3 if kind == "collapsed" else 1e-9  # the reference cancels there
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-9)
    torch.testing.assert_close(ours.grad, truth.grad, rtol=tolerance, atol=1e-7)
    for mine, theirs in zip(stats, expected_stats, strict=True):
        assert float(mine) == pytest.approx(float(theirs), rel=1e-4, abs=1e-6)
        assert mine.shape == ()
        assert not mine.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_student_equal_to_teacher_is_log_2_without_gradient(dtype: torch.dtype) -> None:
    teacher = make_batch("random", 70, 20)[0].to(dtype)
    student = teacher.clone().requires_grad_()
    losses, stats = fused_hsd_loss(teacher, student, reduction="none", return_stats=True)
    assert torch.equal(losses, torch.full((70,), LOG_2, dtype=dtype))
    assert (float(stats.zero_negative_weight), float(stats.zero_positive_weight)) == (1, 1)
    loss = fused_hsd_loss(teacher, student)
    assert loss.item() == pytest.approx(torch.tensor(LOG_2, dtype=dtype).item(), rel=1e-15)
    (gradient,) = torch.autograd.grad(loss, student)
    assert int(gradient.count_nonzero()) == 0


def test_collapse_is_log_2_without_gradient() -> None:
    teacher, student = torch.ones(40, 6), torch.ones(40, 6).requires_grad_()
    loss, stats = fused_hsd_loss(teacher, student, return_stats=True)
    assert loss.item() == pytest.approx(LOG_2)
    assert float(stats.no_negative) == 1
    assert int(torch.autograd.grad(loss, student)[0].count_nonzero()) == 0


def test_batches_of_none_one_and_two() -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    for reduction in ("mean", "sum"):
        loss, stats = fused_hsd_loss(torch.zeros(0, 3), empty, reduction=reduction, return_stats=True)
        assert loss.item() == 0
        assert all(float(value) == 0 for value in stats)
        assert torch.autograd.grad(loss, empty)[0].shape == (0, 3)
    assert fused_hsd_loss(torch.zeros(0, 3), empty, reduction="none").shape == (0,)
    # One anchor: its own positive at distance 2^.5, no negative, logit 0 in its place.
    one = fused_hsd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert float(one) == pytest.approx(math.log1p(math.exp((2**0.5 - CLAMPED) * 2**0.5 / 0.5)))
    # Two anchors, students in the right place but swapped: each is pulled to the far one, no negative is farther.
    teacher = torch.eye(2)
    swapped = fused_hsd_loss(teacher, teacher.flip(0), return_stats=True)
    assert float(swapped[1].no_negative) == 1
    assert float(swapped[0]) == pytest.approx(math.log1p(math.exp((2**0.5 - CLAMPED) * 2**0.5 / 0.5)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_gives_nan_loss_and_gradient(reduction: str, where: str, value: float) -> None:
    teacher, student = make_batch("aligned", 200, 16)
    (teacher if where == "teacher" else student)[120, 5] = value
    student.requires_grad_()
    loss = fused_hsd_loss(teacher, student, reduction=reduction)
    assert bool(loss.isnan().all())
    assert bool(torch.autograd.grad(loss.sum(), student)[0].isnan().all())


def test_half_precision_inputs_whose_squares_overflow() -> None:
    teacher, student = make_batch("aligned", 64, 32)
    large = [(1000 * features).half() for features in (teacher, student)]
    assert not bool(large[0].square().isfinite().all())
    assert float(fused_hsd_loss(*large)) == pytest.approx(float(fused_hsd_loss(teacher, student)), rel=5e-3)


def test_extreme_temperatures_stay_finite() -> None:
    teacher, student = make_batch("random", 60, 12)
    for temperature in (1e-30, 1e-3, 1e30):
        leaf = student.clone().requires_grad_()
        loss = fused_hsd_loss(teacher, leaf, temperature=temperature)
        loss.backward()
        assert leaf.grad is not None
        assert bool(loss.isfinite())
        assert bool(leaf.grad.isfinite().all())
    assert float(fused_hsd_loss(teacher, student, temperature=1e30)) == pytest.approx(LOG_2)


# Not in one dimension: there normalized rows are exactly +-1, and which of the equally far columns has the lowest index
# depends on the order.
@given(st.integers(1, 50), st.integers(2, 30), st.integers(0, 10**6), st.floats(0.01, 100))
def test_scale_and_order_do_not_matter_and_none_averages_to_mean(
    count: int, depth: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(count, depth, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = fused_hsd_loss(teacher, student)
    order = torch.randperm(count, generator=generator)
    single = fused_hsd_loss(teacher[order], student[order], reduction="none")
    torch.testing.assert_close(single.mean(), loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fused_hsd_loss(teacher, student, reduction="sum"), loss * count)
    torch.testing.assert_close(fused_hsd_loss(scale * teacher, student), loss, rtol=1e-9, atol=1e-12)


def test_many_anchors_that_share_a_student() -> None:
    teacher = torch.cat([torch.ones(500, 8), -torch.ones(1, 8)]) + 0.01 * torch.randn(501, 8)
    student = (teacher + 0.01 * torch.randn(501, 8)).requires_grad_()
    double = student.detach().double().requires_grad_()
    ours = torch.autograd.grad(fused_hsd_loss(teacher, student), student)[0]
    expected = reference.fused_hsd_loss(teacher.double(), double)
    assert isinstance(expected, torch.Tensor)
    truth = torch.autograd.grad(expected, double)[0]
    torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("teacher", "student", "error", "message"), BAD_INPUTS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_features_are_named(
    teacher: Any, student: Any, error: type[Exception], message: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    with pytest.raises(error, match=f"^{message}$"):
        fused_hsd_loss(teacher, student)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature: expected a finite number above 0, got 0"),
        ({"temperature": -1.5}, ValueError, "temperature: expected a finite number above 0, got -1.5"),
        ({"temperature": math.nan}, ValueError, "temperature: expected a finite number above 0, got nan"),
        ({"temperature": "hot"}, TypeError, "temperature: expected a number, got 'hot'"),
        ({"temperature": True}, TypeError, "temperature: expected a number, got True"),
        ({"reduction": "max"}, ValueError, "reduction: expected 'none', 'mean' or 'sum', got 'max'"),
        ({"reduction": None}, ValueError, "reduction: expected 'none', 'mean' or 'sum', got None"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    with pytest.raises(error, match=f"^{message}$"):
        fused_hsd_loss(torch.ones(2, 2), torch.ones(2, 2), **options)


def test_bad_options_are_named_by_the_op_too() -> None:
    op = torch.ops.deepclust_ext.fused_hsd_loss
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, got -2"):
        op(torch.ones(2, 2), torch.ones(2, 2), temperature=-2.0)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        op(torch.ones(2, 2), torch.ones(2, 2), reduction="max")


@pytest.mark.skipif(EMULATED, reason="a billion pairs take an hour on the emulated device")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_no_square_matrix_in_memory() -> None:
    """Forward and backward at N = 32768, D = 128 take at most 160 MB; one N x N matrix would take 4096 MB."""
    extra = peak_extra_megabytes(
        "teacher, student = torch.randn(32768, 128), torch.randn(32768, 128, requires_grad=True)",
        "deepclust_ext.fused_hsd_loss(teacher[:300], student[:300]).backward()",
        "student.grad = None; deepclust_ext.fused_hsd_loss(teacher, student).backward()",
    )
    assert extra <= 160
