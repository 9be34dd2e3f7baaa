"""MaskedPatchLoss against a loop over patches in float64, hand cases, and patches of one color or huge values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext.losses import MaskedPatchLoss


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def loop_formula(predicted: list[list[list[float]]], patches: list[list[list[float]]]) -> float:
    """The definition read aloud, value by value."""
    total, count = 0.0, 0
    for predicted_of_image, patches_of_image in zip(predicted, patches, strict=True):
        for guess, patch in zip(predicted_of_image, patches_of_image, strict=True):
            mean = sum(patch) / len(patch)
            variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
            for y, x in zip(guess, patch, strict=True):
                total += (y - (x - mean) / math.sqrt(variance + 1e-6)) ** 2
                count += 1
    return total / count


@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 12),
    st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_equals_the_loop(seed: int, batch: int, rows: int, values: int, deviation: float) -> None:
    torch.manual_seed(seed)
    predicted, patches = drawn(batch, rows, values), deviation * drawn(batch, rows, values) + 3
    expected = loop_formula(predicted.tolist(), patches.tolist())
    assert float(MaskedPatchLoss()(predicted, patches)) == pytest.approx(expected, rel=1e-11)


def test_hand_case() -> None:
    # Means 2 and 5; variances 1 and 0. Targets (-1, 0, 1) over the root of 1.000001, and zeros.
    patches = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]], dtype=torch.float64)
    predicted = torch.tensor([[[0.0, 0.0, 0.0], [1.0, -1.0, 2.0]]], dtype=torch.float64)
    assert float(MaskedPatchLoss()(predicted, patches)) == pytest.approx((2 / 1.000001 + 6) / 6, rel=1e-14)
    assert MaskedPatchLoss()(torch.zeros(1, 1, 3), patches[:, 1:].float()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("color", [0.0, 0.1, -2.0, 1000.0])
def test_a_patch_of_one_color_has_zeros_to_be_predicted(dtype: torch.dtype, color: float) -> None:
    predicted = drawn(2, 3, 48, dtype=dtype).requires_grad_()
    loss = MaskedPatchLoss()(predicted, torch.full((2, 3, 48), color, dtype=dtype))
    loss.backward()
    expected = predicted.detach().double().square().mean()
    torch.testing.assert_close(loss.detach().double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-12)
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_huge_values_do_not_overflow(dtype: torch.dtype) -> None:
    predicted, patches = torch.zeros(1, 2, 64, dtype=dtype), drawn(1, 2, 64, dtype=dtype).clamp(-3, 3)
    huge = patches * 1e38  # of float32, whose squares do not fit
    loss, truth = MaskedPatchLoss()(predicted, huge), loop_formula(predicted.tolist(), patches.double().tolist())
    assert float(loss) == pytest.approx(truth, rel=2 * torch.finfo(dtype).eps + 1e-4)


def test_gradient() -> None:
    inputs = (drawn(2, 3, 5).requires_grad_(), drawn(2, 3, 5).requires_grad_())
    assert torch.autograd.gradcheck(MaskedPatchLoss(), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    predicted, patches = drawn(2, 6, 48, dtype=dtype), (5 + 0.01 * drawn(2, 6, 48)).to(dtype)
    loss = MaskedPatchLoss()(predicted, patches)
    assert loss.dtype == dtype
    assert torch.equal(loss, MaskedPatchLoss()(predicted.float(), patches.float()).to(dtype))


def test_under_autocast_the_loss_is_float32_and_dtypes_may_differ() -> None:
    predicted, patches = drawn(2, 3, 48, dtype=torch.bfloat16).requires_grad_(), drawn(2, 3, 48, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MaskedPatchLoss()(predicted, patches)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MaskedPatchLoss()(predicted.float(), patches))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_not_hidden(value: float, place: int) -> None:
    inputs = [drawn(2, 3, 5), drawn(2, 3, 5)]
    inputs[place][1, 2, 3] = value
    assert not MaskedPatchLoss()(*inputs).isfinite()


def test_errors_name_the_argument() -> None:
    rows, loss = drawn(2, 3, 4), MaskedPatchLoss()
    with pytest.raises(TypeError, match="predicted: expected a tensor, got list"):
        loss([1.0], rows)
    with pytest.raises(TypeError, match="patches: expected dtype float16, .* or float64, got torch.int64"):
        loss(rows, rows.long())
    with pytest.raises(TypeError, match="patches: expected dtype torch.float64 like predicted, got torch.float32"):
        loss(rows, rows.float())
    with pytest.raises(ValueError, match=r"patches: expected shape \(2, 3, 4\) like predicted, got \(2, 2, 4\)"):
        loss(rows, rows[:, :2])
    for wrong in (rows[0], rows[:, :0], rows[:0], rows[..., :1]):
        message = r"predicted: expected shape \(B, R, P\) with at least one patch of at least two values, got "
        with pytest.raises(ValueError, match=message):
            loss(wrong, wrong)
    with pytest.raises(ValueError, match="patches: expected device cpu like predicted, got meta"):
        loss(rows, rows.to("meta"))
