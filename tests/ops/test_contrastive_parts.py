"""The pairs of rows of two views in parts, as ranks share them out: together the parts are the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import fused_contrastive_loss
from deepclust_ext.distributed.log_sums import NO_SUM, NO_WEIGHT, Options, Rows, log_sums_of
from deepclust_ext.reference.fused_contrastive_loss import log_sums, scores_of
from tests.helpers import EMULATED

on_cpu = pytest.mark.skipif(EMULATED, reason="CUDA has no parts")
PARTS = [1, 2, 3, 5]
#: One block of rows, two small ones, three, and six: some have fewer rounds than there are parts.
every_batch = pytest.mark.parametrize("batch", [2, 5, 20, 70, 170])

FORMS: dict[str, Options] = {
    "plain": Options(0.2, 0.0, 1.0, True),
    "hard": Options(0.3, 1.5, 0.5, True),
    "sharp": Options(0.002, 0.0, 1.0, True),
    "sharp and hard": Options(0.002, 0.5, 0.01, True),
    "lengths": Options(0.7, 2.0, 1.0, False),
}

#: The whole leaves out sums far below the positive, which are some of the sharp forms.
FORMS_AND_PARTS = [(form, parts) for form in FORMS for parts in PARTS if parts > 1 or "sharp" not in form]


def rows_of(batch: int, with_classes: bool = True, dtype: torch.dtype = torch.float64) -> Rows:
    first = torch.randn(batch, 6, dtype=torch.float64)
    second = first + 0.8 * torch.randn(batch, 6, dtype=torch.float64)
    z_a, z_b = (x.to(dtype).requires_grad_() for x in (first, second))
    if not with_classes:
        return Rows(z_a, z_b, None, None)
    classes = torch.randn(2, batch, 3, dtype=torch.float64).softmax(dim=2)
    return Rows(z_a, z_b, *(x.to(dtype).requires_grad_() for x in classes))


def leaves_of(rows: Rows) -> list[Tensor]:
    return [x for x in rows if x is not None]


def of_parts(rows: Rows, options: Options, parts: int) -> list[tuple[Tensor, Tensor]]:
    return [log_sums_of(rows, options._replace(part=part, parts=parts)) for part in range(parts)]


def gradients_of(sums: tuple[Tensor, ...], rows: Rows) -> tuple[Tensor, ...]:
    """Return the gradients of a weighted sum of logarithms."""
    total = sum((x * torch.linspace(1, 2, len(x), dtype=x.dtype)).sum() for x in sums)
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, leaves_of(rows))


@on_cpu
@every_batch
@pytest.mark.parametrize("with_classes", [False, True], ids=["", "classes"])
@pytest.mark.parametrize(("form", "parts"), FORMS_AND_PARTS)
def test_sums_and_gradients_of_the_parts_are_those_of_the_whole(
    form: str, with_classes: bool, batch: int, parts: int
) -> None:
    options, rows = FORMS[form], rows_of(batch, with_classes)
    by_growth, by_weight = zip(*of_parts(rows, options, parts), strict=True)
    sums = (
        torch.stack(by_growth).clamp(min=NO_SUM).logsumexp(dim=0),
        torch.stack(by_weight).clamp(min=NO_WEIGHT).logsumexp(dim=0),
    )
    _, scores, _ = scores_of(*rows, options.temperature, options.class_temperature, options.normalize)
    expected = log_sums(scores, options.hardness)
    used = 2 if options.hardness > 0 else 1
    torch.testing.assert_close(sums[:used], expected[:used], rtol=1e-9, atol=1e-9)
    got, want = gradients_of(sums[:used], rows), gradients_of(expected[:used], rows)
    for gradient, exact in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


@on_cpu
@every_batch
@pytest.mark.parametrize("parts", PARTS)
def test_every_pair_is_in_one_part(batch: int, parts: int) -> None:
    """Where all scores are the same, a sum counts the negatives."""
    ones = torch.ones(batch, 4, dtype=torch.float64)
    temperature = 0.5
    sums = of_parts(Rows(ones, ones, None, None), Options(temperature, 0.0, 1.0, True), parts)
    counts = torch.stack([(by_growth - 1 / temperature).exp() for by_growth, _ in sums])  # (parts, anchors)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-6)
    assert counts.round().sum(dim=0).tolist() == [2 * batch - 2] * (2 * batch)


@on_cpu
def test_parts_are_of_about_one_size() -> None:
    ones = torch.ones(320, 4, dtype=torch.float64)  # 10 blocks, 10 rounds
    sums = of_parts(Rows(ones, ones, None, None), Options(1.0, 0.0, 1.0, True), 5)
    counts = torch.stack([(by_growth - 1).exp().sum() for by_growth, _ in sums])
    assert float(counts.max() / counts.min()) < 1.2


@on_cpu
@pytest.mark.parametrize("hardness", [0.0, 0.7])
def test_the_loss_of_a_part_is_the_logarithm_of_its_negatives(hardness: float) -> None:
    """One block has one round, which the last part has."""
    rows = rows_of(5)
    arguments: dict[str, Any] = {"class_a": rows.class_a, "class_b": rows.class_b, "hardness": hardness}
    empty, full = (
        torch.ops.deepclust_ext.fused_contrastive_loss(*rows[:2], **arguments, reduction="none", part=part, parts=2)[0]
        for part in (0, 1)
    )
    _, scores, _ = scores_of(*rows, 0.5, 1.0, True)
    by_growth, by_weight = log_sums(scores, hardness)
    expected = by_growth - by_weight
    torch.testing.assert_close(full, expected)
    torch.testing.assert_close(gradients_of((full,), rows), gradients_of((expected,), rows))
    assert empty.tolist() == [-torch.inf] * 10
    assert all(int(gradient.count_nonzero()) == 0 for gradient in gradients_of((empty,), rows))


@on_cpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads its own copies
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_opcheck(dtype: torch.dtype) -> None:
    rows = rows_of(20, True, dtype)
    names = {"class_a": rows.class_a, "class_b": rows.class_b, "hardness": 0.5, "part": 1, "parts": 2}
    overload = torch.ops.deepclust_ext.fused_contrastive_loss.default
    torch.library.opcheck(overload, rows[:2], names, rtol=1e-2, atol=1e-2)


@on_cpu
@pytest.mark.parametrize("form", FORMS)
def test_every_part_notices_what_is_not_finite(form: str) -> None:
    rows = rows_of(70, False, torch.float32)
    with torch.no_grad():
        rows.z_b[3, 1] = torch.nan
    for sums in of_parts(rows, FORMS[form], 3):
        assert bool(sums[0].isnan().all())
        assert all(bool(gradient.isnan().all()) for gradient in gradients_of(sums, rows))


@on_cpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": 2, "parts": 2}, "part: expected 0 to parts - 1, got 2 of 2"),
        ({"part": -1, "parts": 2}, "part: expected 0 to parts - 1, got -1 of 2"),
        ({"part": 0, "parts": 0}, "part: expected 0 to parts - 1, got 0 of 0"),
        ({"part": 3, "parts": 2**31}, "parts: expected at most 2147483647, got 2147483648"),
        ({"parts": 2, "queue": torch.ones(3, 2)}, "parts: expected 1, because queue is given, got 2"),
        ({"parts": 2, "debias": 0.1}, "parts: expected 1, because debias is above 0, got 2"),
    ],
)
def test_bad_parts_are_named(options: dict[str, Any], message: str) -> None:
    views = torch.ones(4, 2), torch.ones(4, 2)
    with pytest.raises(ValueError, match=f"^{message}$"):
        torch.ops.deepclust_ext.fused_contrastive_loss(*views, **options)


@pytest.mark.skipif(not EMULATED and not torch.cuda.is_available(), reason="no CUDA device, nor an emulated one")
def test_cuda_has_no_parts() -> None:
    views = torch.ones(2, 4, 2, device="cpu" if EMULATED else "cuda")
    with pytest.raises(ValueError, match=r"^parts: expected 1 on CUDA, got 2$"):
        torch.ops.deepclust_ext.fused_contrastive_loss(*views, parts=2)
    assert bool(fused_contrastive_loss(*views).isfinite())
