"""Sums over negatives and their gradients, of which ranks make the loss: within rows, and between two sets of rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext.distributed.log_sums import Options, Rows
from deepclust_ext.distributed.shared_pairs import row_values_of
from deepclust_ext.reference.fused_contrastive_loss import log_sums, scores_of
from tests.helpers import EMULATED

pytestmark = pytest.mark.skipif(EMULATED, reason="on the CPU alone")

#: Samples of one view, and others: within one block of rows and several, one group of columns and several.
every_size = pytest.mark.parametrize(("batch", "others"), [(1, 1), (2, 3), (20, 70), (70, 20), (170, 300), (300, 41)])

FORMS: dict[str, Options] = {
    "plain": Options(0.2, 0.0, 1.0, True),
    "hard": Options(0.3, 1.5, 0.5, True),
    "sharp": Options(0.002, 0.0, 1.0, True),
    "sharp and hard": Options(0.002, 0.5, 0.01, True),
    "lengths": Options(0.7, 2.0, 1.0, False),
}
every_form = pytest.mark.parametrize("form", FORMS)
with_or_without_classes = pytest.mark.parametrize("with_classes", [False, True], ids=["", "classes"])


def rows_of(batch: int, others: int | None, with_classes: bool = True, dtype: torch.dtype = torch.float64) -> Rows:
    first = torch.randn(batch, 6, dtype=torch.float64)
    second = first + 0.8 * torch.randn(batch, 6, dtype=torch.float64)
    queue = None if others is None else torch.randn(others, 6, dtype=torch.float64)

    def classes(count: int) -> Tensor:
        return torch.randn(count, 3, dtype=torch.float64).softmax(dim=1)

    vectors: list[Tensor | None] = [None, None, None]
    if with_classes:
        vectors = [classes(batch), classes(batch), None if others is None else classes(others)]
    tensors = [first, second, *vectors[:2], queue, vectors[2]]
    return Rows(*(None if x is None else x.to(dtype).requires_grad_() for x in tensors))  # type: ignore[arg-type]


def detached(rows: Rows) -> list[Tensor | None]:
    return [None if x is None else x.detach() for x in rows]


def sums_of(rows: Rows, options: Options) -> Tensor:
    z_a, z_b, class_a, class_b, queue, class_queue = detached(rows)
    temperature, hardness, class_temperature, normalize = options
    found: Tensor = torch.ops.deepclust_ext.fused_contrastive_loss.log_sums(
        z_a, z_b, temperature, hardness, class_a, class_b, class_temperature, queue, class_queue, normalize
    )
    return found


def gradients_of(rows: Rows, options: Options, row_values: Tensor) -> list[Tensor]:
    """Return the gradients of all tensors that there are."""
    z_a, z_b, class_a, class_b, queue, class_queue = detached(rows)
    temperature, hardness, class_temperature, normalize = options
    wanted = [x is not None for x in rows]
    found = torch.ops.deepclust_ext.fused_contrastive_loss_backward.log_sums(
        row_values, z_a, z_b, temperature, hardness, class_a, class_b, class_temperature, queue, class_queue,
        normalize, wanted,
    )  # fmt: skip
    return [gradient for gradient, want in zip(found, wanted, strict=True) if want]


def exact_sums_of(rows: Rows, options: Options) -> Tensor:
    """Return the scores of the positives, 0 between sets of rows, and the logarithms of both sums, (3, anchors)."""
    rest = options.temperature, options.class_temperature, options.normalize
    if rows.queue is None:
        positive, scores, _ = scores_of(*rows, *rest)
        return torch.stack([positive, *log_sums(scores, options.hardness)])
    doubled = rows.doubled()._replace(queue=rows.queue, class_queue=rows.class_queue)
    _, scores, _ = scores_of(*doubled, *rest)
    sides = [torch.stack(log_sums(x, options.hardness)) for x in (scores, scores.T)]
    sums = torch.cat(sides, dim=1)
    return torch.cat([torch.zeros_like(sums[:1]), sums])


def assert_like_the_reference(rows: Rows, options: Options) -> None:
    used = 3 if options.hardness > 0 else 2
    found, expected = sums_of(rows, options), exact_sums_of(rows, options)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(used, found.shape[1], dtype=torch.float64)
    if rows.queue is not None:
        weights[0] = 0
    wanted = [x for x in rows if x is not None]
    exact = torch.autograd.grad((expected[:used] * weights).sum(), wanted)
    grads = torch.cat([weights, torch.zeros(3 - used, found.shape[1], dtype=torch.float64)])
    values = row_values_of(found, list(grads), options.hardness, torch.float64)
    for gradient, want in zip(gradients_of(rows, options, values), exact, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))


@every_size
@with_or_without_classes
@every_form
def test_between_two_sets_of_rows(form: str, with_classes: bool, batch: int, others: int) -> None:
    assert_like_the_reference(rows_of(batch, others, with_classes), FORMS[form])


@pytest.mark.parametrize("batch", [2, 5, 20, 70, 170])
@with_or_without_classes
@every_form
def test_within_the_rows_of_two_views(form: str, with_classes: bool, batch: int) -> None:
    assert_like_the_reference(rows_of(batch, None, with_classes), FORMS[form])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_of_short_types_are_wide(dtype: torch.dtype) -> None:
    rows, options = rows_of(20, 30, True, dtype), FORMS["hard"]
    sums = sums_of(rows, options)
    wide = Rows(*(None if x is None else x.double() for x in rows))  # type: ignore[arg-type]
    torch.testing.assert_close(sums, exact_sums_of(wide, options), rtol=1e-5, atol=1e-5)
    values = row_values_of(sums, list(torch.ones_like(sums)), options.hardness, torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in gradients_of(rows, options, values))


def test_every_sum_counts_the_rows_of_the_other_set() -> None:
    ones = torch.ones(150, 4, dtype=torch.float64)
    rows, temperature = Rows(ones[:40], ones[:40], None, None, ones), 0.5
    _, by_growth, _ = sums_of(rows, Options(temperature, 0.0, 1.0, True))
    torch.testing.assert_close((by_growth - 1 / temperature).exp(), torch.tensor([150.0] * 80 + [80.0] * 150).double())


def test_an_anchor_without_negatives_here_has_a_gradient_through_its_positive_alone() -> None:
    """However far the sums of other rows are from what scores of these could be."""
    rows = rows_of(1, None, False, torch.float32)
    options = Options(0.5, 0.0, 1.0, True)
    assert sums_of(rows, options)[1].tolist() == [-torch.inf] * 2
    values = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0], [-1000.0, -1000.0]])
    positive = scores_of(*rows, 0.5, 1.0, True)[0]
    expected = torch.autograd.grad(positive[0] + 2 * positive[1], [rows.z_a, rows.z_b])
    torch.testing.assert_close(gradients_of(rows, options, values), list(expected))


@pytest.mark.parametrize(("batch", "others"), [(0, None), (0, 0), (0, 3), (2, 0)])
def test_no_pair_at_all(batch: int, others: int | None) -> None:
    rows, options = rows_of(batch, others), FORMS["hard"]
    sums = sums_of(rows, options)
    anchors = 2 * batch + (others or 0)
    assert sums.shape == (3, anchors)
    assert sums[1:].tolist() == [[-torch.inf] * anchors] * 2
    values = row_values_of(sums, list(torch.ones_like(sums)), options.hardness, torch.float64)
    for gradient, x in zip(gradients_of(rows, options, values), [x for x in rows if x is not None], strict=True):
        assert gradient.shape == x.shape
        assert int(gradient.count_nonzero()) == 0


@every_form
@pytest.mark.parametrize("place", [1, 4])
def test_what_is_not_finite_is_noticed_by_all(form: str, place: int) -> None:
    rows = rows_of(70, 30, False, torch.float32)
    spoiled = rows[place]
    assert spoiled is not None
    with torch.no_grad():
        spoiled[3, 1] = torch.nan
    sums = sums_of(rows, FORMS[form])
    assert bool(sums.isnan().all())
    values = row_values_of(sums, list(torch.ones_like(sums)), FORMS[form].hardness, torch.float32)
    assert all(bool(gradient.isnan().all()) for gradient in gradients_of(rows, FORMS[form], values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("others", [None, 30])
def test_opcheck(dtype: torch.dtype, others: int | None) -> None:
    rows = rows_of(20, others, True, dtype)
    z_a, z_b, class_a, class_b, queue, class_queue = detached(rows)
    arguments = (z_a, z_b, 0.5, 0.5, class_a, class_b, 1.0, queue, class_queue, True)
    torch.library.opcheck(torch.ops.deepclust_ext.fused_contrastive_loss.log_sums, arguments)
    sums = sums_of(rows, Options(0.5, 0.5, 1.0, True))
    values = row_values_of(sums, list(torch.ones_like(sums)), 0.5, torch.promote_types(dtype, torch.float32))
    wanted = [x is not None for x in rows]
    backward = torch.ops.deepclust_ext.fused_contrastive_loss_backward.log_sums
    torch.library.opcheck(backward, (values, *arguments, wanted))


def test_there_is_no_silent_gradient() -> None:
    rows = rows_of(3, 4, False)
    found = torch.ops.deepclust_ext.fused_contrastive_loss.log_sums(
        rows.z_a, rows.z_b, 0.5, 0.0, None, None, 1.0, rows.queue, None, True
    )
    with pytest.raises(RuntimeError, match="not implemented"):
        found.sum().backward()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z_b": torch.ones(3, 2)}, "z_b: expected"),
        ({"queue": torch.ones(3, 5)}, "queue: expected"),
        ({"class_a": torch.ones(4, 2), "class_b": torch.ones(4, 2)}, "class_queue: expected a tensor"),
        ({"hardness": -1.0}, "hardness: expected"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"z_a": torch.ones(4, 2), "z_b": torch.ones(4, 2), "queue": torch.ones(3, 2)}
    arguments |= dict.fromkeys(["class_a", "class_b", "class_queue"])
    arguments |= {"temperature": 0.5, "hardness": 0.0, "class_temperature": 1.0, "normalize": True}
    with pytest.raises(ValueError, match=f"^{message}"):
        torch.ops.deepclust_ext.fused_contrastive_loss.log_sums(**{**arguments, **changed})
