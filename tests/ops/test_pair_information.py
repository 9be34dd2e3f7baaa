"""Hand cases, edges and messages of pair_information."""

import math
from typing import Any

import pytest
import torch

from deepclust_ext import _extension, pair_information
from tests.helpers import DEVICES

ROWS = [[1.0, -0.5], [0.0, 3.0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_hand_case(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    leaf = torch.tensor(ROWS, device=device, requires_grad=True)
    squared = pair_information(leaf)
    assert squared.tolist() == [[1.0, 0.25], [0.0, 9.0]]
    squared.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device))
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[2.0, -2.0], [0.0, 24.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite(device: str) -> None:
    nan, *infinities = pair_information(torch.tensor([[math.nan, math.inf, -math.inf]], device=device))[0].tolist()
    assert math.isnan(nan)
    assert infinities == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (ROWS, TypeError, "features: expected a tensor, got list"),
        (torch.ones(2, 3).int(), TypeError, "features: expected dtype float16, bfloat16, float32 or float64, got "),
        (torch.ones(3), ValueError, r"features: expected shape \(N, D\) with D > 0, got \(3,\)"),
        (torch.ones(3, 0), ValueError, r"features: expected shape \(N, D\) with D > 0, got \(3, 0\)"),
    ],
)
def test_messages(features: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        pair_information(features)
    if _extension.NATIVE_DEVICES and isinstance(features, torch.Tensor):
        with pytest.raises(error, match="^features: expected "):
            torch.ops.deepclust_ext.pair_information(features)
