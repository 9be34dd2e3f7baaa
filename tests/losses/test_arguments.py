"""What the constructors of losses and methods refuse, and the numbers of other libraries that they take."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.compat import HSD
from deepclust_ext.losses import ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss, SinkhornKnopp
from deepclust_ext.methods import CLC, PICI, SACC, HaDis

LOSSES = (ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss, SinkhornKnopp, HSD)
LEARNED = (ClusterContrastiveLoss, ContrastiveLoss, HSDLoss, PrototypeLoss)

Make = Callable[..., Any]


def method(kind: type) -> Make:
    """Return a function that makes a method with other options than the defaults."""

    def make(**options: Any) -> Any:
        small = {"backbone": nn.Identity(), "feature_dim": 4, "num_clusters": 2}
        if kind is PICI:
            small |= {"backbone": VisionTransformer(4, 2, 4, 1, 1), "decoder_depth": 1}
        return kind(**small | options)

    make.__name__ = kind.__name__
    return make


def parameters(make: Make) -> list[inspect.Parameter]:
    kind = {"CLC": CLC, "PICI": PICI, "SACC": SACC, "HaDis": HaDis}.get(make.__name__, make)
    return [parameter for parameter in inspect.signature(kind).parameters.values() if parameter.name != "backbone"]


MAKERS: list[Make] = [*LOSSES, *map(method, (CLC, PICI, SACC, HaDis))]
NUMBERS = [
    (make, parameter.name)
    for make in MAKERS
    for parameter in parameters(make)
    if type(parameter.default) in (int, float) or parameter.default is inspect.Parameter.empty
]
BOOLS = [(make, x.name) for make in MAKERS for x in parameters(make) if type(x.default) is bool]


@pytest.mark.parametrize("wrong", [True, "0.5", None, [1], math.nan, math.inf, -1, np.float32(-2)])
@pytest.mark.parametrize(("make", "name"), NUMBERS)
def test_numbers(make: Make, name: str, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
        make(**{name: wrong})


@pytest.mark.parametrize(("make", "name"), [pair for pair in NUMBERS if "temperature" in pair[1] or "eps" in pair[1]])
def test_temperatures_are_above_zero(make: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a finite number above 0, got 0$"):
        make(**{name: 0})


@pytest.mark.parametrize("wrong", [None, 0, 1, "no"])
@pytest.mark.parametrize(("make", "name"), BOOLS)
def test_bools(make: Make, name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected True or False, got {wrong!r}$"):
        make(**{name: wrong})


@pytest.mark.parametrize("make", MAKERS)
def test_numbers_of_numpy_are_kept_as_plain_ones(make: Make) -> None:
    names = [name for other, name in NUMBERS if other is make]
    defaults = {x.name: x.default for x in parameters(make)} | {"feature_dim": 4, "num_clusters": 2}
    convert = {int: np.int64, float: np.float32}
    made = make(**{name: convert[type(defaults[name])](defaults[name]) for name in names})
    for name in names:
        assert type(getattr(made, name)) is type(defaults[name])
        assert getattr(made, name) == pytest.approx(defaults[name])


@pytest.mark.parametrize("loss", LEARNED)
def test_temperature_that_is_learned(loss: Make) -> None:
    module = loss(temperature=nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    assert "temperature=0.5" in repr(module)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(12, 3, generator=generator).softmax(1) for _ in range(2)]
    others = (torch.arange(12) % 2, 2) if loss is PrototypeLoss else ()
    value = module(*rows, *others)
    value.backward()
    assert module.temperature.grad.abs() > 0
    torch.testing.assert_close(value, loss(temperature=0.5)(*rows, *others))


@pytest.mark.parametrize("gather_distributed", [False, True])
@pytest.mark.parametrize(
    ("loss", "rows_name"),
    [(ClusterContrastiveLoss, "c_a"), (ContrastiveLoss, "z_a"), (HSDLoss, "teacher"), (PrototypeLoss, "query")],
)
def test_temperature_on_another_device(loss: Make, rows_name: str, gather_distributed: bool) -> None:
    """A module may be made there, as for weights that are loaded later."""
    with torch.device("meta"):
        module = loss(temperature=nn.Parameter(torch.tensor(0.5)), gather_distributed=gather_distributed)
    assert "temperature=meta" in repr(module)
    rows = torch.rand(12, 3)
    others = (torch.arange(12) % 2, 2) if loss is PrototypeLoss else ()
    with pytest.raises(ValueError, match=f"^temperature: expected device cpu like {rows_name}, got meta$"):
        module(rows, rows, *others)


def test_swapped_in_class() -> None:
    with pytest.raises(ValueError, match="^tau: expected a finite number above 0, got 0$"):
        HSD(tau=0)
    with pytest.raises(TypeError, match="^normalized: expected True or False, got None$"):
        HSD()(torch.ones(2, 3), torch.ones(2, 3), None)
    tau = nn.Parameter(torch.tensor(0.5))
    learned = HSD(tau)
    tau.data.neg_()
    with pytest.raises(ValueError, match="^tau: expected a number above 0, got -0.5$"):
        learned(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="^tau: expected device cpu like teacher_inputs, got meta$"):
        learned.to("meta")(torch.ones(2, 3), torch.ones(2, 3))
