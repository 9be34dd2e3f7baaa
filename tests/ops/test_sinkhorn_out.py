"""Sinkhorn-Knopp into given memory: the same bits, no other memory, and errors where that cannot be."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import sinkhorn_knopp
from tests.helpers import DEVICES, EMULATED, peak_extra_megabytes

SHAPES = [(5, 3), (2, 3, 7, 4), (256, 10), (257, 16), (600, 5), (1100, 64), (131, 67), (3, 70, 9), (40, 200)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def cosines(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(0.4).clamp(-1, 1)


def garbage(scores: Tensor) -> Tensor:
    return torch.full_like(scores, torch.nan, memory_format=torch.contiguous_format)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_given_memory(device: str, shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    scores = cosines(*shape).to(dtype).to(device)
    shares = torch.linspace(0, 1, shape[-2], device=device), torch.linspace(1, 2, shape[-1], device=device)
    with_shares: dict[str, Any] = {"sample_marginals": shares[0], "cluster_marginals": shares[1]}
    cases: list[dict[str, Any]] = [{}, with_shares, {"tolerance": 0.05, "num_iters": 20}, {"epsilon": 0.002}]
    for options in cases:
        expected, iterations = sinkhorn_knopp(scores, **options, return_num_iters=True)
        for given in (scores, scores.mT.contiguous().mT)[: 1 if backend == "reference" else 2]:
            out = garbage(scores)
            result, used = sinkhorn_knopp(given, **options, return_num_iters=True, out=out)
            assert result is out
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(used, iterations)


@pytest.mark.parametrize("shape", [(70, 9), (70, 90)])
def test_same_bits_of_masked_scores(shape: tuple[int, int]) -> None:
    scores = cosines(*shape)
    scores[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3] = -1e9
    scores[3], scores[:, 2] = -1e9, -1e9
    expected = sinkhorn_knopp(scores)
    assert bool(expected.isfinite().all())
    assert torch.equal(sinkhorn_knopp(scores, out=garbage(scores)), expected)


def test_memory_can_be_used_again(backend: str) -> None:
    out = torch.empty(40, 6)
    for factor in (1.0, 0.5, torch.nan, 2.0):
        scores = factor * cosines(40, 6)
        assert sinkhorn_knopp(scores, out=out) is out
        torch.testing.assert_close(out, sinkhorn_knopp(scores), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 4), (0, 3, 4)])
def test_empty_dimensions(shape: tuple[int, ...], backend: str) -> None:
    out = torch.empty(shape)
    result, used = sinkhorn_knopp(torch.empty(shape), num_iters=2, return_num_iters=True, out=out)
    assert result is out
    assert used.tolist() == torch.full(shape[:-2], 2).tolist()


@pytest.mark.skipif(EMULATED, reason="the emulated device takes minutes for so many elements")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
@pytest.mark.parametrize("shape", [(100_000, 60), (12_000, 500)])
def test_takes_no_other_memory_of_that_size(shape: tuple[int, int]) -> None:
    """A matrix has 24 MB, what grows with the samples alone 1.2 MB."""
    extra = peak_extra_megabytes(
        f"scores, out = torch.randn{shape}, torch.zeros{shape}",
        "deepclust_ext.sinkhorn_knopp(scores[:2000], out=out[:2000])",
        "deepclust_ext.sinkhorn_knopp(scores, out=out)",
    )
    assert extra <= 6


SCORES = cosines(2, 4, 3)
BAD_MEMORY: list[tuple[Any, type[Exception], str]] = [
    ([0.0], TypeError, "out: expected a tensor, got list"),
    (torch.empty(4, 3), ValueError, r"out: expected shape \(2, 4, 3\) like scores, got \(4, 3\)"),
    (SCORES.double(), TypeError, "out: expected dtype torch.float32 of the result, got torch.float64"),
    (SCORES.to("meta"), ValueError, "out: expected device cpu like scores, got meta"),
    (torch.empty(2, 3, 4).mT, ValueError, r"out: expected a contiguous tensor, got strides \(12, 1, 4\)"),
    (SCORES, ValueError, "out: expected memory apart from that of scores"),
    (torch.empty_like(SCORES).requires_grad_(), ValueError, "out: expected a tensor that requires no gradient"),
]


@pytest.mark.parametrize(("out", "error", "message"), BAD_MEMORY)
def test_bad_memory_is_named(out: Any, error: type[Exception], message: str, backend: str) -> None:
    before = SCORES.clone()
    with pytest.raises(error, match=f"^{message}$"):
        sinkhorn_knopp(SCORES, out=out)
    assert torch.equal(SCORES, before)


@pytest.mark.parametrize(("out", "error", "message"), BAD_MEMORY[1:])
def test_bad_memory_is_named_by_the_op_too(out: Tensor, error: type[Exception], message: str) -> None:
    if out.is_meta:
        pytest.skip("goes to the fake kernel")
    with pytest.raises(error, match=f"^{' '.join(message.split()[:3])}"):
        torch.ops.deepclust_ext.sinkhorn_knopp.out(SCORES, out=out)


@pytest.mark.parametrize("inputs", ["scores", "sample_marginals", "cluster_marginals"])
def test_memory_that_an_input_has_a_part_of(inputs: str, backend: str) -> None:
    pool = torch.ones(100)
    out = pool[40:52].view(4, 3)
    tensors = {"scores": torch.ones(4, 3), "sample_marginals": torch.ones(4), "cluster_marginals": torch.ones(3)}
    apart: dict[str, Any] = dict(tensors)
    meeting: dict[str, Any] = dict(tensors)
    size = tensors[inputs].numel()
    apart[inputs] = pool[40 - size : 40].view(tensors[inputs].shape)
    meeting[inputs] = pool[41 - size : 41].view(tensors[inputs].shape)
    torch.testing.assert_close(sinkhorn_knopp(**apart, out=out), torch.full((4, 3), 1 / 3))
    with pytest.raises(ValueError, match=f"^out: expected memory apart from that of {inputs}$"):
        sinkhorn_knopp(**meeting, out=out)


def test_only_where_no_gradient_is_recorded(backend: str) -> None:
    leaf, out = SCORES.clone().requires_grad_(), torch.empty_like(SCORES)
    with pytest.raises(ValueError, match="^out: expected None where the gradient of scores is recorded, got a tensor$"):
        sinkhorn_knopp(leaf, differentiable=True, out=out)
    expected = sinkhorn_knopp(SCORES)
    with torch.no_grad():
        assert torch.equal(sinkhorn_knopp(leaf, differentiable=True, out=out), expected)
    with torch.inference_mode():
        assert torch.equal(sinkhorn_knopp(leaf, out=out.clone()), expected)
    for result in (sinkhorn_knopp(leaf, out=out), sinkhorn_knopp(SCORES, differentiable=True, out=out)):
        assert torch.equal(result, expected)
        assert not result.requires_grad


def test_memory_that_a_backward_pass_needs_is_missed(backend: str) -> None:
    leaf, out = torch.ones_like(SCORES, requires_grad=True), torch.ones_like(SCORES)
    product = leaf * out
    sinkhorn_knopp(SCORES, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_autocast_asks_for_memory_of_its_dtype(backend: str) -> None:
    half, out = SCORES.bfloat16(), torch.empty_like(SCORES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        written, made = sinkhorn_knopp(half, out=out), sinkhorn_knopp(half)
        assert torch.equal(written, made)
        assert made.dtype == torch.float32
        assert torch.equal(made, sinkhorn_knopp(half.float()))
        with pytest.raises(TypeError, match="^out: expected dtype torch.float32 of the result, got torch.bfloat16$"):
            sinkhorn_knopp(half, out=half.clone())


def test_memory_that_is_no_plain_tensor() -> None:
    out = torch.empty_like(SCORES)
    with pytest.raises(ValueError, match="^out: expected a tensor of its own values, got the negative of another$"):
        sinkhorn_knopp(SCORES, out=torch._neg_view(out))
    with torch.inference_mode():
        inferred = torch.zeros_like(SCORES)
        assert torch.equal(sinkhorn_knopp(SCORES, out=inferred), sinkhorn_knopp(SCORES))
    inferred_before = inferred.clone()
    with pytest.raises(ValueError, match="^out: expected no tensor of inference mode outside of it$"):
        sinkhorn_knopp(SCORES / 2, out=inferred)
    assert torch.equal(inferred, inferred_before)


def test_transforms_of_torch_func_refuse_memory() -> None:
    with pytest.raises(RuntimeError, match="^out: expected None within the transforms of torch.func, got a tensor$"):
        torch.func.vmap(lambda x: sinkhorn_knopp(x, out=torch.empty(4, 3)))(SCORES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    op = torch.ops.deepclust_ext.sinkhorn_knopp.out
    for scores in (SCORES.to(dtype), cosines(30, 70).to(dtype)):
        torch.library.opcheck(op, (scores, 0.1, 2), {"out": torch.zeros_like(scores)}, rtol=1e-2, atol=1e-2)


@pytest.mark.any_kernels
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler: str) -> None:
    def twice(x: Tensor, out: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        own = sinkhorn_knopp(x + 1, epsilon=epsilon, out=torch.empty_like(x))
        result = sinkhorn_knopp(2 * x, epsilon=epsilon, out=out)
        return result + own, own * 2

    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend=compiler)
    for epsilon in (0.05, 0.2, 0.3):  # a symbol from the second one on
        out, eager_out = (torch.full_like(SCORES, torch.nan) for _ in range(2))
        results, expected = compiled(SCORES, out, epsilon), twice(SCORES, eager_out, epsilon)
        torch.testing.assert_close(results, expected)
        assert torch.equal(out, eager_out)
