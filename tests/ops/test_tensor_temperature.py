"""A temperature that is a tensor: the value and every gradient of the reference in float64, and what is refused."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext import _extension, fused_contrastive_loss, fused_hsd_loss, reference
from tests.helpers import assert_error_budget

CONTRASTIVE = [
    dict(zip(("hardness", "debias", "normalize", "reduction"), options, strict=True))
    for options in itertools.product((0.0, 1.0), (0.0, 0.4), (True, False), ("mean", "none"))
] + [{"debias": 0.6, "reduction": "sum"}]
HSD = [{}, {"normalize": False}, {"reduction": "none"}]


def rows(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return two views with a queue, and class vectors of all three."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (7, 7, 9)]
    classes = [torch.randn(n, 3, generator=generator, dtype=torch.float64).softmax(1) for n in (7, 7, 9)]
    return [x.to(dtype) for x in drawn], [x.to(dtype) for x in classes]


def arguments(form: str, dtype: torch.dtype) -> dict[str, Tensor]:
    (z_a, z_b, queue), (class_a, class_b, class_queue) = rows(dtype)
    tensors = {"z_a": z_a, "z_b": z_b} | ({"queue": queue} if form != "views" else {})
    if form == "all":
        tensors |= {"class_a": class_a, "class_b": class_b, "class_queue": class_queue}
    return tensors


def results(function: Any, tensors: dict[str, Tensor], temperature: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Return the loss and the gradients to all tensors and the temperature."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    learned = temperature.detach().clone().requires_grad_()
    loss = function(**leaves, temperature=learned, **options)
    weight = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return [loss.detach(), *torch.autograd.grad((loss * weight).sum(), [*leaves.values(), learned])]


def assert_like_reference(name: str, tensors: dict[str, Tensor], temperature: Tensor, options: dict[str, Any]) -> None:
    native, plain = {
        "contrastive": (fused_contrastive_loss, reference.fused_contrastive_loss),
        "hsd": (fused_hsd_loss, reference.fused_hsd_loss),
    }[name]
    ours = results(native, tensors, temperature, options)
    naive = results(plain, tensors, temperature, options)
    exact = results(plain, {key: x.double() for key, x in tensors.items()}, temperature.double(), options)
    for position, (mine, theirs, truth) in enumerate(zip(ours, naive, exact, strict=True)):
        assert_error_budget(mine, theirs, truth, f"{options}, output {position}")


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("form", ["views", "queue", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_contrastive_loss(dtype: torch.dtype, form: str, temperature: float) -> None:
    for options in CONTRASTIVE:
        assert_like_reference("contrastive", arguments(form, dtype), torch.tensor(temperature, dtype=dtype), options)


@pytest.mark.parametrize("options", HSD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_hsd_loss(dtype: torch.dtype, options: dict[str, Any]) -> None:
    (teacher, student, _), _ = rows(dtype)
    tensors = {"teacher": teacher, "student": student}
    assert_like_reference("hsd", tensors, torch.tensor(0.5, dtype=dtype), options)


def test_gradients_by_finite_differences() -> None:
    for form in ("views", "all"):
        tensors = arguments(form, torch.float64)

        def loss(temperature: Tensor, *leaves: Tensor, tensors: dict[str, Tensor] = tensors) -> Tensor:
            named: dict[str, Any] = dict(zip(tensors, leaves, strict=True))
            return fused_contrastive_loss(**named, temperature=temperature, debias=0.2, hardness=0.5)

        leaves = [x.requires_grad_() for x in (torch.tensor(0.3, dtype=torch.float64), *tensors.values())]
        assert torch.autograd.gradcheck(loss, leaves)


def test_the_same_as_a_number() -> None:
    (first, second, _), _ = rows(torch.float32)
    for function in (fused_contrastive_loss, fused_hsd_loss):
        for temperature in (torch.tensor(0.3), nn.Parameter(torch.tensor(0.3, dtype=torch.float64))):
            torch.testing.assert_close(
                function(first, second, temperature=temperature), function(first, second, temperature=0.3)
            )
    stats = fused_hsd_loss(first, second, temperature=torch.tensor(0.3), return_stats=True)[1]
    torch.testing.assert_close(stats, fused_hsd_loss(first, second, temperature=0.3, return_stats=True)[1])


@pytest.mark.parametrize("function", [fused_contrastive_loss, fused_hsd_loss])
def test_dtype_of_the_loss(function: Any) -> None:
    (first, second, _), _ = rows(torch.bfloat16)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ours = function(first, second, temperature=torch.tensor(0.3))
            assert ours.dtype == function(first, second, temperature=0.3).dtype


def test_rows_of_any_size() -> None:
    (z_a, z_b, _), _ = rows(torch.float32)
    for factor in (1e30, 1e-30, 0.0):
        scaled = z_a.clone()
        scaled[0] *= factor
        leaf = scaled.clone().requires_grad_()
        ours = fused_contrastive_loss(leaf, z_b, temperature=torch.tensor(0.5))
        torch.testing.assert_close(ours, fused_contrastive_loss(scaled, z_b))
        ours.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert factor > 1 or not leaf.grad[0].any()


def test_few_rows_and_values_that_are_not_finite() -> None:
    learned = torch.tensor(0.5)
    for count in (0, 1):
        assert fused_contrastive_loss(*torch.ones(2, count, 3), temperature=learned, debias=0.1) == 0
    assert fused_hsd_loss(*torch.ones(2, 0, 3), temperature=learned) == 0
    (z_a, z_b, _), _ = rows(torch.float32)
    z_a[2, 1] = torch.nan
    for debias in (0.0, 0.1):
        losses = fused_contrastive_loss(z_a, z_b, temperature=learned, debias=debias, reduction="none")
        assert losses.isnan().all()


@pytest.mark.parametrize("function", [fused_contrastive_loss, fused_hsd_loss])
@pytest.mark.parametrize("native", [True, False])
def test_what_is_refused(function: Any, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    (first, second, _), _ = rows(torch.float32)
    with pytest.raises(ValueError, match=r"^temperature: expected a number or a tensor of shape \(\), got \(1,\)$"):
        function(first, second, temperature=torch.ones(1))
    with pytest.raises(
        TypeError, match=r"^temperature: expected a number or a floating tensor, got a tensor of torch.int"
    ):
        function(first, second, temperature=torch.tensor(1))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("function", "rows_name"), [(fused_contrastive_loss, "z_a"), (fused_hsd_loss, "teacher")])
def test_its_device(function: Any, rows_name: str) -> None:
    """It is that of the rows, or the CPU, as for torch's own operators. The device meta stands for a GPU."""
    (first, second, _), _ = rows(torch.float32)
    message = f"^temperature: expected device cpu like {rows_name}, got meta$"
    with pytest.raises(ValueError, match=message):
        function(first, second, temperature=torch.tensor(0.3, device="meta"))
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        function(first, second, temperature=torch.tensor(0.3))
    for device in ("meta", "cpu"):
        learned = torch.tensor(0.3, device=device, requires_grad=True)
        loss = function(first.to("meta"), second.to("meta"), temperature=learned)
        assert (loss.shape, loss.device.type, loss.requires_grad) == ((), "meta", True)


@pytest.mark.parametrize("function", [fused_contrastive_loss, fused_hsd_loss])
@pytest.mark.parametrize("native", [True, False])
def test_what_is_not_positive(function: Any, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it can be looked at, and NaN where it cannot, as within compilers and transforms."""
    if not native:
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    (first, second, _), _ = rows(torch.float32)
    compiled = torch.compile(lambda temperature: function(first, second, temperature=temperature), backend="eager")
    for value in (0.0, -0.5):
        for temperature in (torch.tensor(value), nn.Parameter(torch.tensor(value, dtype=torch.float64))):
            with pytest.raises(ValueError, match=f"^temperature: expected a number above 0, got {value:g}$"):
                function(first, second, temperature=temperature)
        assert compiled(torch.tensor(value)).isnan()
        assert torch.func.grad(lambda t: function(first, second, temperature=t))(torch.tensor(value)).isnan()
    assert function(first, second, temperature=torch.tensor(torch.nan)).isnan()
    assert compiled(torch.tensor(0.5)) == function(first, second, temperature=torch.tensor(0.5))
