"""The contrastive loss with a queue that needs no gradient: on the CPU forward computes the anchors' gradient too."""

import os
from typing import Any

import pytest
import torch

from deepclust_ext import fused_contrastive_loss
from tests.helpers import DEVICES, EMULATED, peak_extra_megabytes, same_bits
from tests.ops.test_contrastive_sweep import assert_within_budget, make_inputs

ANCHORS = ("z_a", "z_b", "class_a", "class_b")
LONG = not EMULATED  # there the backward pass computes scores again, as with a queue that has a gradient

CASES: list[tuple[int, int, int, dict[str, Any]]] = [  # anchors, queue, classes, options
    (5, 300, 0, {"reduction": "none"}),
    (70, 10, 3, {"hardness": 0.5}),
    (3, 1, 0, {"temperature": 0.07}),
    (4, 0, 2, {}),
]
LONG_CASES: list[tuple[int, int, int, dict[str, Any]]] = [
    (300, 700, 0, {"temperature": 0.02}),
    (40, 1300, 5, {"temperature": 0.02, "hardness": 1.0, "debias": 0.01, "reduction": "sum"}),
    (3, 8300, 0, {"hardness": 0.5, "temperature": 0.1}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("batch", "queue", "classes", "options"), CASES + LONG * LONG_CASES, ids=str)
def test_gradients(
    batch: int, queue: int, classes: int, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    inputs = make_inputs(batch, queue, 12, classes)
    results = assert_within_budget(inputs, options, dtype, device, ANCHORS)
    assert results.keys() == {"loss"} | (inputs.keys() & set(ANCHORS))


@pytest.mark.skipif(EMULATED, reason="only the CPU's forward pass keeps a gradient")
@pytest.mark.parametrize("hardness", [0.0, 0.5])
@pytest.mark.parametrize("growth", [(0.01, 3), (3, 0.01), (3, 3)], ids=["rising", "falling", "high"])
def test_maxima_that_change(growth: tuple[float, float], hardness: float) -> None:
    """What is kept follows the maximum of an anchor within a part of the queue and from part to part."""
    inputs = make_inputs(20, 1500, 12, 0)
    inputs["queue"] *= torch.linspace(*growth, 1500, dtype=torch.float64)[:, None]
    options = {"normalize": False, "temperature": 0.3, "hardness": hardness, "reduction": "none"}
    for dtype in (torch.float32, torch.float64):
        assert_within_budget(inputs, options, dtype, "cpu", ANCHORS)


@pytest.mark.skipif(EMULATED, reason="only the CPU's forward pass keeps a gradient")
@pytest.mark.parametrize("temperature", [0.5, 0.02], ids=["bounded", "running maximum"])
def test_bits_do_not_depend_on_threads(temperature: float) -> None:
    tensors = [x.float() for x in make_inputs(300, 1500, 40, 0).values()]
    options: dict[str, Any] = {"temperature": temperature, "hardness": 0.3, "reduction": "none"}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            z_a, z_b = (x.clone().requires_grad_() for x in tensors[:2])
            losses = fused_contrastive_loss(z_a, z_b, queue=tensors[2], **options)
            results.append([losses, *torch.autograd.grad(losses.sum(), [z_a, z_b])])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(same_bits(first, other) for first, other in zip(results[0], others, strict=True))
    with torch.no_grad():  # only the loss
        losses = fused_contrastive_loss(*tensors[:2], queue=tensors[2], **options)
        torch.testing.assert_close(losses, results[0][0].detach(), rtol=1e-6, atol=0)


def test_not_finite_is_nan_everywhere() -> None:
    inputs = make_inputs(9, 80, 5, 0)
    inputs["queue"][70, 2] = torch.inf
    z_a, z_b = (inputs[name].float().requires_grad_() for name in ("z_a", "z_b"))
    loss = fused_contrastive_loss(z_a, z_b, queue=inputs["queue"].float())
    for result in (loss, *torch.autograd.grad(loss, [z_a, z_b])):
        assert bool(result.isnan().all())


@pytest.mark.skipif(EMULATED, reason="only the CPU's forward pass keeps a gradient")
def test_the_queue_may_change_before_the_backward_pass() -> None:
    inputs = {name: x.float() for name, x in make_inputs(9, 80, 5, 0).items()}
    gradients = []
    for changes in (False, True):
        z_a, z_b = (inputs[name].clone().requires_grad_() for name in ("z_a", "z_b"))
        loss = fused_contrastive_loss(z_a, z_b, queue=inputs["queue"])
        if changes:
            inputs["queue"].zero_()
        gradients.append(torch.autograd.grad(loss, [z_a, z_b]))
    assert all(map(same_bits, *gradients))


@pytest.mark.skipif(EMULATED, reason="only the CPU's forward pass keeps a gradient")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_little_is_kept() -> None:
    """Beside a queue of 34 MB."""
    extra = peak_extra_megabytes(
        "queue = torch.randn(65536, 128); z_a, z_b = torch.randn(2, 256, 128).requires_grad_().unbind()",
        "deepclust_ext.fused_contrastive_loss(z_a, z_b, queue=queue[:300]).backward()",
        "deepclust_ext.fused_contrastive_loss(z_a, z_b, queue=queue).backward()",
    )
    assert extra <= 8
