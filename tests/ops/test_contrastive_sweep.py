"""The contrastive loss over many sizes, types and kinds of scores: every tile edge, every way through the kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import fused_contrastive_loss, reference
from tests.helpers import DEVICES, EMULATED, assert_error_budget, same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("z_a", "z_b", "class_a", "class_b", "queue", "class_queue")
SHARP: dict[str, Any] = {"temperature": 0.07, "hardness": 1.0, "debias": 0.01, "class_temperature": 0.3}

# Batch, queue (None: two views), features, classes, options. Around the borders of row blocks (64, 128; with two views
# of twice the batch), column tiles (64, 32), stages (16, 32, 64 features) and chunks of features (64, 128).
CASES: list[tuple[int, int | None, int, int, dict[str, Any]]] = [
    (1, None, 3, 0, {}),
    (2, None, 33, 0, {"reduction": "sum"}),
    (16, None, 32, 1, {"reduction": "none", "class_temperature": 0.5}),
    (32, None, 16, 0, {"temperature": 0.01}),
    (33, None, 130, 0, {"hardness": 0.5}),
    (40, None, 64, 0, SHARP),
    (65, None, 60, 7, {**SHARP, "reduction": "none"}),
    (129, None, 5, 0, {"temperature": 0.2, "hardness": 2.0}),
    (3, 1, 1, 0, {"reduction": "none"}),
    (64, 64, 17, 0, {}),
    (65, 63, 126, 4, {**SHARP, "temperature": 0.3}),
    (9, 580, 20, 0, {"temperature": 0.02, "hardness": 1.0, "reduction": "none"}),
    (260, 65, 8, 130, {"reduction": "sum", "debias": 0.01}),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_inputs(batch: int, queue: int | None, depth: int, classes: int) -> dict[str, Tensor]:
    """Return the tensors that a case has, in float64; other views are near."""
    inputs = {"z_a": normal(batch, depth, seed=1)}
    inputs["z_b"] = inputs["z_a"] + normal(batch, depth, seed=2)
    if classes:
        inputs |= {name: normal(batch, classes, seed=seed).softmax(1) for seed, name in enumerate(NAMES[2:4], 3)}
    if queue is not None:
        inputs["queue"] = normal(queue, depth, seed=5)
        if classes:
            inputs["class_queue"] = normal(queue, classes, seed=6).softmax(1)
    return inputs


def loss_and_gradients(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], options: dict[str, Any], wanted: Sequence[str] = NAMES
) -> dict[str, Tensor]:
    """Return the loss and the gradients of its sum, weighted row by row, to the wanted inputs."""
    leaves = {name: x.detach().clone().requires_grad_(name in wanted) for name, x in inputs.items()}
    loss = function(**leaves, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).view(loss.shape).to(loss.dtype)
    (loss * weight).sum().backward()
    results = {"loss": loss.detach()}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            results[name] = leaf.grad
    return results


def assert_within_budget(
    inputs: dict[str, Tensor], options: dict[str, Any], dtype: torch.dtype, device: str, wanted: Sequence[str] = NAMES
) -> dict[str, Tensor]:
    rounded = {name: x.to(dtype).to(device) for name, x in inputs.items()}
    wide = {name: x.double() for name, x in rounded.items()}
    ours = loss_and_gradients(fused_contrastive_loss, rounded, options, wanted)
    naive = loss_and_gradients(reference.fused_contrastive_loss, rounded, options, wanted)
    truth = loss_and_gradients(reference.fused_contrastive_loss, wide, options, wanted)
    assert ours.keys() == truth.keys()
    for name, exact in truth.items():
        assert_error_budget(ours[name], naive[name], exact, name)
    return ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "queue", "depth", "classes", "options", "dtype"),
    [(*case, dtype) for case in CASES for dtype in (DTYPES if case[0] < 200 else DTYPES[:1])],
    ids=str,
)
def test_loss_and_gradients(
    batch: int, queue: int | None, depth: int, classes: int, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    assert_within_budget(make_inputs(batch, queue, depth, classes), options, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hardness", [0.0, 0.5])
@pytest.mark.parametrize("queue", [None, 150])
def test_large_scores(queue: int | None, hardness: float, dtype: torch.dtype, device: str) -> None:
    """Un-normalized rows whose scores grow from column to column, so that the maximum rises all the time."""
    inputs = make_inputs(70, queue, 12, 0)
    for x in inputs.values():
        x *= torch.linspace(0.01, 3, len(x), dtype=torch.float64)[:, None]
    options = {"normalize": False, "temperature": 0.3, "hardness": hardness, "reduction": "none"}
    assert_within_budget(inputs, options, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_far_below_zero(dtype: torch.dtype, device: str) -> None:
    """All so small that their exponentials vanish."""
    inputs = {name: x.abs() + 2 for name, x in make_inputs(20, 70, 12, 0).items()}
    inputs["z_a"] *= -1
    options = {"normalize": False, "temperature": 0.1, "reduction": "none"}
    results = assert_within_budget(inputs, options, dtype, device)
    assert bool(results["loss"].max() > 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_of_all_sizes(normalize: bool, dtype: torch.dtype, device: str) -> None:
    """Among the rows are a zero one, one below the bound of the norm, and some so large that others count as zero."""
    inputs = make_inputs(20, 40, 9, 3)
    for name in ("z_a", "z_b", "queue"):
        inputs[name][3] = 0
        inputs[name][4] *= 1e-14
        inputs[name][5] *= 1e-5
        inputs[name][6] *= 1e4 if normalize else 2
    options = {"normalize": normalize, "reduction": "none", "hardness": 0.3, "temperature": 0.5}
    assert_within_budget(inputs, options, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("queue", [None, 70])
def test_gradients_one_by_one(queue: int | None, device: str) -> None:
    """Blocks of rows and features whose gradient nobody wants are left out."""
    inputs = make_inputs(45, queue, 129, 10)
    for name in inputs:
        results = assert_within_budget(inputs, {"hardness": 0.5}, torch.float32, device, [name])
        assert results.keys() == {"loss", name}
    assert_within_budget(inputs, {"hardness": 0.5}, torch.float32, device, ["class_a", "class_b"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("queue", [None, 70])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_not_finite_anywhere_is_nan_everywhere(reduction: str, queue: int | None, device: str) -> None:
    inputs = make_inputs(40, queue, 5, 3)
    for name in inputs:
        for bad in (float("nan"), float("inf")):
            broken = {other: x.clone().float().to(device) for other, x in inputs.items()}
            broken[name][-1, -1] = bad
            for result in loss_and_gradients(fused_contrastive_loss, broken, {"reduction": reduction}).values():
                assert bool(result.isnan().all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("depth", [40, 140])
def test_products_follow_torchs_precision(depth: int, device: str) -> None:
    """Where torch may use tf32, so do the CUDA kernels, and results are as near as tf32 allows."""
    inputs = {name: x.float().to(device) for name, x in make_inputs(40, None, depth, 0).items()}
    wide = {name: x.double() for name, x in inputs.items()}
    options = {"hardness": 0.5, "temperature": 0.2}
    setting = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        reduced = loss_and_gradients(fused_contrastive_loss, inputs, options)
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting
    precise = loss_and_gradients(fused_contrastive_loss, inputs, options)
    assert same_bits(reduced["z_a"], precise["z_a"]) == (device == "cpu" and not EMULATED)
    truth = loss_and_gradients(reference.fused_contrastive_loss, wide, options)
    for name, exact in truth.items():
        torch.testing.assert_close(reduced[name].double(), exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
def test_no_negatives(device: str) -> None:
    """One pair, or an empty queue: loss and gradients are 0."""
    for queue in (None, 0):
        inputs = {name: x.to(device) for name, x in make_inputs(1 if queue is None else 3, queue, 4, 2).items()}
        for result in loss_and_gradients(fused_contrastive_loss, inputs, {"hardness": 1.0, "debias": 0.1}).values():
            assert not bool(result.any())
