"""The weak and strong views of photographs."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import PerImage, strong_view, weak_view
from deepclust_ext.methods import SACC

VIEWS = [weak_view, strong_view]


@pytest.fixture
def torchvision() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)


@pytest.fixture(params=VIEWS)
def view(torchvision: None, request: pytest.FixtureRequest) -> Callable[[int], nn.Module]:
    chosen: Callable[[int], nn.Module] = request.param
    return chosen


def photographs(dtype: torch.dtype, channels: int = 3) -> Tensor:
    images = torch.rand(12, channels, 24, 20)
    return images if dtype.is_floating_point else images.mul(255).to(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_shape_type_and_range_stay(view: Callable[[int], nn.Module], channels: int, dtype: torch.dtype) -> None:
    images = photographs(dtype, channels)
    result = view(32)(images)
    assert result.shape == (12, channels, 32, 32)
    assert result.dtype == dtype
    rounding = 1e-6 if dtype.is_floating_point else 0
    assert result.min() >= -rounding
    assert result.max() <= (1 + rounding if dtype.is_floating_point else 255)


def test_every_image_gets_its_own_random_numbers(view: Callable[[int], nn.Module]) -> None:
    same = photographs(torch.float32)[:1].expand(6, -1, -1, -1)
    results = view(16)(same)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 6


def test_the_seed_decides(view: Callable[[int], nn.Module]) -> None:
    images = photographs(torch.float32)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(view(16)(images))
    assert torch.equal(results[0], results[1])


def test_the_strong_view_is_the_weak_one_and_more(torchvision: None) -> None:
    from torchvision.transforms import v2

    strong, weak = strong_view(16), weak_view(16)
    assert isinstance(strong, PerImage)
    assert isinstance(strong.transform, v2.Compose)
    first, second = strong.transform.transforms
    assert str(first) == str(weak.transform)
    assert isinstance(second, v2.RandAugment)
    assert (second.num_ops, second.magnitude) == (5, 10)


def test_sacc_trains_on_them(torchvision: None) -> None:
    weak, strong = weak_view(8), strong_view(8)
    images = photographs(torch.float32)
    method = SACC(nn.Flatten(), 3 * 8 * 8, 4, hidden_dim=8)
    loss, _ = method.training_step([weak(images), weak(images), strong(images)])
    assert loss.isfinite()


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    for view in VIEWS:
        with pytest.raises(
            ImportError, match=r"torchvision cannot be imported .*; pip install 'deepclust_ext\[vision\]'"
        ):
            view(32)
