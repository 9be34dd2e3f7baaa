"""Fake tensors outside of their mode: every op tells shapes and dtypes, and looks at no values, which they lack."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import deepclust_ext
from deepclust_ext import fused_contrastive_loss, fused_hsd_loss, sinkhorn_knopp
from tests.ops.opsamples import SAMPLE_INPUTS


def faked(mode: FakeTensorMode, value: Any) -> Any:
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [*result]


def assert_alike(result: Any, real: Any) -> None:
    for ours, expected in zip(outputs(result), outputs(real), strict=True):
        assert isinstance(ours, FakeTensor)
        assert (ours.shape, ours.dtype, ours.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize("op", sorted(SAMPLE_INPUTS))
def test_every_op(op: str) -> None:
    function = getattr(deepclust_ext.ops, op)
    for sample in SAMPLE_INPUTS[op](torch.float32, "cpu"):
        mode = FakeTensorMode()
        arguments = [faked(mode, x) for x in sample.args]
        keywords = {name: faked(mode, x) for name, x in sample.kwargs.items()}
        assert_alike(function(*arguments, **keywords), function(*sample.args, **sample.kwargs))


def test_given_memory() -> None:
    mode = FakeTensorMode()
    scores = torch.rand(5, 3)
    assert_alike(sinkhorn_knopp(faked(mode, scores), out=faked(mode, torch.empty(5, 3))), scores)


@pytest.mark.parametrize("loss", [fused_hsd_loss, fused_contrastive_loss])
def test_tensor_temperature(loss: Any) -> None:
    mode = FakeTensorMode()
    rows, temperature = torch.randn(5, 3), torch.tensor(0.5)
    result = loss(faked(mode, rows), faked(mode, rows), temperature=faked(mode, temperature))
    assert_alike(result, loss(rows, rows, temperature=temperature))
