"""Options of every op: numbers of any library, no bools among them, and bools that are nothing else."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deepclust_ext
from deepclust_ext import _extension
from deepclust_ext.ops import fused_contrastive_loss, kmeans_update
from tests.helpers import same_bits
from tests.ops.opsamples import SAMPLE_INPUTS, Sample

Call = Callable[..., Any]


def first_sample(op: str) -> Sample:
    """Return a call of an op in which all options may be anything."""
    return SAMPLE_INPUTS[op](torch.float32, "cpu")[0]


def options(kind: type) -> list[tuple[str, str, Any]]:
    """Return op, name and a good value of every option of a type, as the signatures have them."""
    found = []
    for op in sorted(SAMPLE_INPUTS):
        for parameter in inspect.signature(getattr(deepclust_ext.ops, op)).parameters.values():
            value = first_sample(op).options.get(parameter.name, parameter.default)
            if type(value) is kind:
                found.append((op, parameter.name, value))
    return found


def call(op: str, name: str, value: Any) -> list[Tensor]:
    sample = first_sample(op)
    torch.manual_seed(0)
    result = getattr(deepclust_ext.ops, op)(*sample.args, **sample.kwargs | {name: value})
    return [result] if isinstance(result, Tensor) else [*result]


FLOATS, INTEGERS, BOOLS = options(float), options(int), options(bool)
FLOATS.append(("sinkhorn_knopp", "tolerance", 0.5))

#: Numbers that float32 does not hold, and that an option refuses.
REFUSED = {
    "temperature": (1e-300, 1e-39, 1e39, 1e300),
    "class_temperature": (1e-300, 1e-39, 1e39, 1e300),
    "beta": (1e-300, 1e-39, 1e39, 1e300),
    "hardness": (1e39, 1e300),
    "noise_std": (1e39, 1e300),
    "debias": (1e39, 1e300),
}


def test_options_are_found() -> None:
    assert len(FLOATS) >= 9
    assert len(INTEGERS) >= 5
    assert len(BOOLS) >= 7


@pytest.mark.parametrize("convert", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize(("op", "name", "value"), FLOATS)
def test_numbers_of_numpy(op: str, name: str, value: float, convert: Call) -> None:
    number = convert(value or 0)
    if name not in ("hardness", "debias", "noise_std", "tolerance") and not number > 0:
        number = convert(1)
    assert all(map(same_bits, call(op, name, number), call(op, name, float(number))))


@pytest.mark.parametrize("convert", [np.int64, np.uint8])
@pytest.mark.parametrize(("op", "name", "value"), INTEGERS)
def test_integers_of_numpy(op: str, name: str, value: int, convert: Call) -> None:
    assert all(map(same_bits, call(op, name, convert(value)), call(op, name, value)))


@pytest.mark.parametrize("wrong", [True, np.bool_(True), "0.5", None, [0.5], 1j])
@pytest.mark.parametrize(("op", "name", "value"), FLOATS + INTEGERS)
def test_what_is_no_number(op: str, name: str, value: float, wrong: Any) -> None:
    if name == "tolerance" and wrong is None:
        return
    with pytest.raises(TypeError, match=f"^{name}: expected an? (number|integer), got "):
        call(op, name, wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, np.float32(-1)])
@pytest.mark.parametrize(("op", "name", "value"), FLOATS)
def test_numbers_out_of_range(op: str, name: str, value: float, wrong: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a "):
        call(op, name, wrong)


@pytest.mark.parametrize("number", [1e-300, 1e-39, 1e39, 1e300])
@pytest.mark.parametrize(("op", "name", "value"), FLOATS)
def test_numbers_that_float32_does_not_hold(
    op: str, name: str, value: float, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused, or no NaN comes of them."""
    for devices in (_extension.NATIVE_DEVICES, frozenset()):
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", devices)
        if number in REFUSED.get(name, ()) and (op, name) != ("diffused_neighbor_gather", "temperature"):
            with pytest.raises(ValueError, match=f"^{name}: expected a number .*, got {re.escape(str(number))}$"):
                call(op, name, number)
        else:
            assert all(bool(result.isfinite().all()) for result in call(op, name, number))


@pytest.mark.parametrize("temperature", [1e-30, 1e-10, 1.0])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_hardness_up_to_the_largest_number_of_temperatures(
    temperature: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    z_a, z_b = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    z_a.requires_grad_()
    loss = fused_contrastive_loss(z_a, z_b, temperature=temperature, hardness=min(1e30, 1e36 * temperature))
    (gradient,) = torch.autograd.grad(loss, z_a)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    for given in (temperature, torch.tensor(temperature, dtype=torch.float64)):
        if temperature < 1e-6:
            with pytest.raises(
                ValueError, match=f"^hardness: expected at most 1e\\+36 times .* {temperature:g}, got 1e"
            ):
                fused_contrastive_loss(z_a, z_b, temperature=given, hardness=1e30)


@pytest.mark.parametrize("wrong", [None, 0, 1, "no", 0.0, np.bool_(False)])
@pytest.mark.parametrize(("op", "name", "value"), BOOLS)
def test_what_is_only_taken_for_a_bool(
    op: str, name: str, value: bool, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for devices in (_extension.NATIVE_DEVICES, frozenset()):
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", devices)
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got "):
            call(op, name, wrong)


def test_number_of_clusters() -> None:
    features, labels = torch.ones(3, 2), torch.tensor([0, 1, 1])
    for ours, plain in zip(
        kmeans_update(features, labels, np.int64(2)),  # type: ignore[arg-type]
        kmeans_update(features, labels, 2),
        strict=True,
    ):
        assert same_bits(ours, plain)
    with pytest.raises(TypeError, match="^num_clusters: expected an integer, got True"):
        kmeans_update(features, labels, True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("op", SAMPLE_INPUTS)
def test_tensors_that_are_not_dense(op: str) -> None:
    function, seen = getattr(deepclust_ext.ops, op), set()
    for sample in SAMPLE_INPUTS[op](torch.float32, "cpu"):
        given = dict(zip(inspect.signature(function).parameters, sample.args, strict=False)) | sample.kwargs
        if given.get("num_neighbors") == 0:  # most arguments are not read then
            continue
        for name, value in given.items():
            if not isinstance(value, Tensor) or name in seen or not value.dim():
                continue
            seen.add(name)
            for other, got in (
                (value.to_sparse(), "layout torch.sparse_coo"),
                (torch.nested.as_nested_tensor([value, value]), "a nested one"),
            ):
                with pytest.raises(TypeError, match=f"^{name}: expected a dense tensor, got {got}$"):
                    function(**given | {name: other})
    assert seen


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", ["batch_hard_mining", "fused_contrastive_loss", "nearest_neighbors", "kmeans_assign"])
def test_autocast_casts_no_float64(op: str) -> None:
    sample = first_sample(op)
    first, second = sample.tensors
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r": expected dtype torch.float64 like \w+, got torch.bfloat16$"),
    ):
        getattr(deepclust_ext.ops, op)(first.double(), second.bfloat16(), **sample.kwargs)
