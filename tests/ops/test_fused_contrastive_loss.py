"""Hand cases, an independent loop, properties and edges of the contrastive loss."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import fused_contrastive_loss, reference
from tests.helpers import DEVICES, EMULATED, peak_extra_megabytes, same_bits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def unit(x: list[float]) -> list[float]:
    return [a / math.sqrt(dot(x, x)) for a in x]


def loop_formula(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.5,
    hardness: float = 0.0,
    debias: float = 0.0,
    class_temperature: float = 1.0,
    classes: tuple[Tensor, Tensor, Tensor] | None = None,
    queue: Tensor | None = None,
) -> list[float]:
    """The definition read aloud, one anchor and one pair at a time, in plain Python."""
    batch = len(z_a)
    rows = [unit(row) for row in torch.cat([z_a, z_b]).tolist()]
    others = rows if queue is None else [unit(row) for row in queue.tolist()]
    row_classes = [[0.0]] * len(rows) if classes is None else torch.cat(classes[:2]).tolist()
    other_classes = row_classes if queue is None else [[0.0]] * len(others)
    if queue is not None and classes is not None:
        other_classes = classes[2].tolist()
    losses = []
    for i in range(2 * batch if queue is None else batch):
        partner = (i + batch) % (2 * batch)

        def score(other: list[float], other_class: list[float], i: int = i) -> float:
            return dot(rows[i], other) / temperature + dot(row_classes[i], other_class) / class_temperature

        positive = math.exp(score(rows[partner], row_classes[partner]))
        skipped = (i, partner) if queue is None else ()
        scores = [score(others[j], other_classes[j]) for j in range(len(others)) if j not in skipped]
        negatives = math.fsum(math.exp((1 + hardness) * s) for s in scores)
        if hardness:
            negatives *= len(scores) / math.fsum(math.exp(hardness * s) for s in scores)
        if debias:
            negatives = (negatives - debias * len(scores) * positive) / (1 - debias)
            negatives = max(negatives, len(scores) * math.exp(-1 / temperature))
        losses.append(-math.log(positive / (positive + negatives)))
    return losses


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(2, 9),
    dims=st.integers(1, 7),
    temperature=st.sampled_from([0.2, 0.5, 3.0]),
    hardness=st.sampled_from([0.0, 0.5, 2.0]),
    debias=st.sampled_from([0.0, 0.1]),
    with_classes=st.booleans(),
    queue_rows=st.sampled_from([0, 1, 12]),
)
def test_equals_the_loop(
    seed: int,
    batch: int,
    dims: int,
    temperature: float,
    hardness: float,
    debias: float,
    with_classes: bool,
    queue_rows: int,
) -> None:
    z_a, z_b = normal(2, batch, dims, seed=seed)
    queue = normal(queue_rows, dims, seed=seed + 1) if queue_rows else None
    a, b, of_queue = (normal(rows, 4, seed=seed + 2).softmax(1) for rows in (batch, batch, queue_rows))
    expected = loop_formula(
        z_a, z_b, temperature, hardness, debias, 0.3, (a, b, of_queue) if with_classes else None, queue
    )
    classes: dict[str, Any] = {"class_a": a, "class_b": b, "class_temperature": 0.3}
    classes["class_queue"] = of_queue if queue is not None else None
    options: dict[str, Any] = {"temperature": temperature, "hardness": hardness, "debias": debias, "queue": queue}
    options |= classes if with_classes else {}
    for function in (fused_contrastive_loss, reference.fused_contrastive_loss):
        losses = function(z_a, z_b, reduction="none", **options)
        assert losses.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-10)
        assert float(function(z_a, z_b, **options)) == pytest.approx(math.fsum(expected) / len(expected), rel=1e-8)


def test_hand_case(backend: str) -> None:
    # Rows e1, e2 in both views: the positive has cosine 1, both negatives have 0.
    views = torch.eye(2).double().requires_grad_(), torch.eye(2).double().requires_grad_()
    loss = fused_contrastive_loss(*views, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + 2 / math.e))
    # Hardness changes nothing where all negatives are equal; debiasing does: (2 - 0.1 * 2 e) / 0.9.
    assert fused_contrastive_loss(*views, temperature=1.0, hardness=3.0).item() == pytest.approx(loss.item())
    debiased = (2 - 0.2 * math.e) / 0.9
    assert fused_contrastive_loss(*views, temperature=1.0, debias=0.1).item() == pytest.approx(
        math.log(1 + debiased / math.e)
    )
    # Nothing is left of the negatives but the floor 2 / e.
    assert fused_contrastive_loss(*views, temperature=1.0, debias=0.5).item() == pytest.approx(
        math.log(1 + 2 / math.e**2)
    )
    # A negative of probability q pushes two rows apart, along the tangents e2 and e1: 4 anchors, mean.
    q = 1 / (math.e + 2)
    expected = torch.tensor([[0.0, 2 * q], [2 * q, 0.0]]).double() * 2 / 4
    for gradient in torch.autograd.grad(loss, views):
        torch.testing.assert_close(gradient, expected)


def test_class_vectors_weigh_negatives(backend: str) -> None:
    # The second sample shares the first one's cluster, the third does not: weights e^1 and e^0, positive e^1.
    z = torch.eye(3).double()
    classes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    losses = fused_contrastive_loss(z, z, temperature=1.0, class_a=classes, class_b=classes, reduction="none")
    first = math.log(1 + (2 * math.e + 2) / math.e**2)
    third = math.log(1 + 4 / math.e**2)
    assert losses.tolist() == pytest.approx([first, first, third] * 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 16, 17, 32, 48, 64, 65, 100, 128, 150, 200])
@pytest.mark.parametrize("options", [{}, {"hardness": 1.0, "temperature": 0.05}], ids=["bounded", "running maximum"])
def test_every_number_of_blocks(batch: int, options: dict[str, Any], device: str) -> None:
    leaves = [x.to(device).requires_grad_() for x in normal(2, batch, 20, seed=batch)]
    weights = normal(2 * batch, seed=3).to(device)
    results = []
    for function in (fused_contrastive_loss, reference.fused_contrastive_loss):
        losses = function(*leaves, reduction="none", **options)
        results.append([losses, *torch.autograd.grad((losses * weights).sum(), leaves)])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "queue_rows"), [(5, 300), (70, 10), (130, 1), (40, 129), (200, 70), (300, 700), (3, 8300)]
)
def test_queue_of_any_length(batch: int, queue_rows: int, device: str) -> None:
    shapes = [(batch, 9), (batch, 9), (queue_rows, 9), (batch, 3), (batch, 3), (queue_rows, 3)]
    leaves = [normal(*shape, seed=i).to(device).requires_grad_() for i, shape in enumerate(shapes)]
    names = ("queue", "class_a", "class_b", "class_queue")
    results = []
    for function in (fused_contrastive_loss, reference.fused_contrastive_loss):
        named: dict[str, Any] = dict(zip(names, leaves[2:], strict=True))
        loss = function(*leaves[:2], **named, temperature=0.1, hardness=0.5)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("temperature", [0.5, 0.02], ids=["bounded", "running maximum"])
def test_long_queue_on_any_number_of_threads(temperature: float) -> None:
    tensors = [normal(rows, 40, seed=rows).float() for rows in (300, 300, 1500)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2) if EMULATED else (1, 2, 3):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_() for x in tensors]
            losses = fused_contrastive_loss(*leaves[:2], queue=leaves[2], temperature=temperature, reduction="none")
            results.append([losses, *torch.autograd.grad(losses.sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(same_bits(first, other) for first, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hardness", [0.0, 1.0, 10.0])
def test_scores_of_any_size(dtype: torch.dtype, hardness: float) -> None:
    # At temperature 0.01 scores reach 100 and (1 + hardness) times that; opposite views have a positive of -100.
    z = normal(90, 8, seed=1).to(dtype)
    for other in (z, -z, z.roll(1, 0)):
        leaf = z.clone().requires_grad_()
        loss = fused_contrastive_loss(leaf, other, temperature=0.01, hardness=hardness)
        exact = z.double().clone().requires_grad_()
        truth = reference.fused_contrastive_loss(exact, other.double(), temperature=0.01, hardness=hardness)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=1e-5)
        ours, theirs = torch.autograd.grad(loss, leaf)[0], torch.autograd.grad(truth, exact)[0]
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-3)
    # Not normalized: scores of a million, where only the largest counts.
    huge = 1000 * z
    loss = fused_contrastive_loss(huge, -huge, temperature=1.0, hardness=hardness, normalize=False)
    expected = reference.fused_contrastive_loss(
        huge.double(), -huge.double(), temperature=1.0, hardness=hardness, normalize=False
    )
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_hardness_that_float32_does_not_know(temperature: float) -> None:
    z_a, z_b = normal(2, 40, 6).float()
    plain = fused_contrastive_loss(z_a, z_b, temperature=temperature, reduction="none")
    nearly = fused_contrastive_loss(z_a, z_b, temperature=temperature, hardness=1e-50, reduction="none")
    torch.testing.assert_close(nearly, plain)


def test_anchors_without_negatives_and_empty_batches(backend: str) -> None:
    one = torch.ones(1, 3, requires_grad=True)
    variants: list[dict[str, Any]] = [{}, {"queue": torch.zeros(0, 3)}, {"hardness": 1.0, "debias": 0.1}]
    for options in variants:
        loss = fused_contrastive_loss(one, torch.ones(1, 3), **options)
        assert loss.item() == 0
        assert int(torch.autograd.grad(loss, one)[0].count_nonzero()) == 0
    empty = torch.zeros(0, 3, requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = fused_contrastive_loss(empty, torch.zeros(0, 3), queue=torch.ones(4, 3), reduction=reduction)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, empty)[0].shape == (0, 3)
    assert fused_contrastive_loss(empty, empty, reduction="none").shape == (0,)
    assert fused_contrastive_loss(one, one, reduction="none").shape == (2,)


def test_zero_rows_have_cosine_zero() -> None:
    z = normal(6, 4)
    z[2] = 0
    leaf = z.clone().requires_grad_()
    losses = fused_contrastive_loss(leaf, z, reduction="none")
    torch.testing.assert_close(losses, reference.fused_contrastive_loss(z, z, reduction="none"))
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["z_a", "z_b", "class_a", "class_b", "queue", "class_queue"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_non_finite_input_gives_nan_loss_and_gradient(name: str, value: float, reduction: str, backend: str) -> None:
    shapes = {"z_a": (70, 5), "z_b": (70, 5), "class_a": (70, 2), "class_b": (70, 2)}
    if name in ("queue", "class_queue"):
        shapes |= {"queue": (90, 5), "class_queue": (90, 2)}
    tensors = {key: normal(*shape).float() for key, shape in shapes.items()}
    tensors[name][60, 1] = value
    leaf = tensors["z_a"].requires_grad_()
    z_a, z_b = tensors.pop("z_a"), tensors.pop("z_b")
    loss = fused_contrastive_loss(z_a, z_b, **tensors, reduction=reduction)  # type: ignore[arg-type]
    assert bool(loss.isnan().all())
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert bool(gradient.isnan().all()) if backend == "native" else bool(gradient.isnan().any())


def test_squares_that_overflow_count_as_not_finite() -> None:
    z = torch.full((3, 2), 1e20, requires_grad=True)
    loss = fused_contrastive_loss(z, z, normalize=False)
    assert math.isnan(loss.item())
    assert bool(torch.autograd.grad(loss, z)[0].isnan().all())
    assert fused_contrastive_loss(z, z).item() == pytest.approx(math.log(5))


def test_views_change_places() -> None:
    z_a, z_b = normal(2, 50, 7).float()
    losses = fused_contrastive_loss(z_a, z_b, reduction="none", hardness=1.0)
    swapped = fused_contrastive_loss(z_b, z_a, reduction="none", hardness=1.0)
    torch.testing.assert_close(losses, swapped.roll(50))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (5,), (1, 4), (0, 3, 5)])
def test_gradients_do_not_depend_on_which_are_asked_for(wanted: tuple[int, ...]) -> None:
    shapes = [(70, 5), (70, 5), (70, 2), (70, 2), (90, 5), (90, 2)]
    tensors = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]

    def gradients(positions: tuple[int, ...], with_queue: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(i in positions) for i, x in enumerate(tensors)]
        queue: dict[str, Any] = {"queue": leaves[4], "class_queue": leaves[5]} if with_queue else {}
        loss = fused_contrastive_loss(leaves[0], leaves[1], class_a=leaves[2], class_b=leaves[3], **queue)
        return list(torch.autograd.grad(loss, [leaves[i] for i in positions]))

    for with_queue in (True, False):
        count = 6 if with_queue else 4
        asked = tuple(i for i in wanted if i < count)
        if asked:
            everything = gradients(tuple(range(count)), with_queue)
            for i, gradient in zip(asked, gradients(asked, with_queue), strict=True):
                torch.testing.assert_close(gradient, everything[i], rtol=1e-12, atol=1e-14)


FOUR = torch.ones(4, 3)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"z_a": [1.0]}, TypeError, "z_a: expected a tensor, got list"),
    ({"z_b": torch.ones(3, 3)}, ValueError, r"z_b: expected shape \(4, 3\) like z_a, got \(3, 3\)"),
    ({"z_b": FOUR.double()}, TypeError, "z_b: expected dtype torch.float32 like z_a, got torch.float64"),
    ({"temperature": 0}, ValueError, "temperature: expected a finite number above 0, got 0"),
    ({"class_temperature": -1}, ValueError, "class_temperature: expected a finite number above 0, got -1"),
    ({"hardness": -0.5}, ValueError, "hardness: expected a finite number of at least 0, got -0.5"),
    ({"hardness": math.inf}, ValueError, "hardness: expected a finite number of at least 0, got inf"),
    ({"hardness": "hard"}, TypeError, "hardness: expected a number, got 'hard'"),
    ({"debias": 1}, ValueError, r"debias: expected a number in \[0, 1\), got 1"),
    ({"debias": True}, TypeError, "debias: expected a number, got True"),
    ({"reduction": "max"}, ValueError, "reduction: expected 'none', 'mean' or 'sum', got 'max'"),
    ({"queue": torch.ones(9, 2)}, ValueError, r"queue: expected shape \(any number, 3\), got \(9, 2\)"),
    ({"queue": torch.ones(9)}, ValueError, r"queue: expected shape \(any number, 3\), got \(9,\)"),
    ({"queue": FOUR.half()}, TypeError, "queue: expected dtype torch.float32 like z_a, got torch.float16"),
    ({"queue": FOUR.long()}, TypeError, "queue: expected dtype float16, .* or float64, got torch.int64"),
    ({"queue": FOUR.to("meta")}, ValueError, "queue: expected device cpu like z_a, got meta"),
    ({"class_a": FOUR}, ValueError, "class_b: expected a tensor, because class_a is given, got None"),
    ({"class_b": FOUR}, ValueError, "class_b: expected None, because class_a is None, got a tensor"),
    ({"class_queue": FOUR}, ValueError, "class_queue: expected None, because class_a is None, got a tensor"),
    ({"class_a": torch.ones(4, 0)}, ValueError, r"class_a: expected shape \(4, above 0\), got \(4, 0\)"),
    ({"class_a": 1, "class_b": 1}, TypeError, "class_a: expected a tensor, got int"),
    ({"class_a": FOUR, "class_b": torch.ones(4, 2)}, ValueError, r"class_b: expected shape \(4, 3\), got \(4, 2\)"),
    (
        {"class_a": FOUR, "class_b": FOUR, "queue": FOUR},
        ValueError,
        "class_queue: expected a tensor, because queue and class_a are given, got None",
    ),
    (
        {"class_a": FOUR, "class_b": FOUR, "class_queue": FOUR},
        ValueError,
        "class_queue: expected None, because queue is None, got a tensor",
    ),
    (
        {"class_a": FOUR, "class_b": FOUR, "queue": FOUR, "class_queue": torch.ones(5, 3)},
        ValueError,
        r"class_queue: expected shape \(4, 3\), got \(5, 3\)",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        fused_contrastive_loss(**({"z_a": FOUR, "z_b": FOUR} | arguments))


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named_by_the_op_too(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if error is TypeError and message.endswith(("got list", "got int", "'hard'", "True")):
        pytest.skip("refused by the schema")
    name = message.split(":")[0]
    with pytest.raises(error, match=f"^{name}: expected "):
        torch.ops.deepclust_ext.fused_contrastive_loss(**({"z_a": FOUR, "z_b": FOUR} | arguments))


@pytest.mark.skipif(EMULATED, reason="a billion pairs take an hour on the emulated device")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_no_square_matrix_in_memory() -> None:
    """Forward and backward at 2B = 32768, D = 128 take at most 160 MB; one matrix would take 4096 MB."""
    extra = peak_extra_megabytes(
        "z_a, z_b = torch.randn(2, 16384, 128).requires_grad_().unbind()",
        "deepclust_ext.fused_contrastive_loss(z_a[:300], z_b[:300]).backward()",
        "deepclust_ext.fused_contrastive_loss(z_a, z_b).backward()",
    )
    assert extra <= 160
