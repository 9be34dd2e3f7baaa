"""Every view and augmentation on every kind of image: what float32 gives, rounded to its dtype, or a clear error."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import PerImage, RandomAffine, RandomGamma, make_view

CHAIN: list[dict[str, Any]] = [{"name": "affine"}, {"name": "gamma"}]
VIEWS: dict[str, nn.Module] = {
    "contrastive": make_view("contrastive", size=16),
    "strong": make_view("strong", size=12, mean=None, std=None),
    "resize": make_view("resize", size=16),
    "bilinear": make_view("resize", size=16, interpolation="bilinear"),
    "per image": PerImage(lambda image: image),
    "affine": RandomAffine(),
    "gamma": RandomGamma(),
    "sequential": make_view("sequential", views=CHAIN),
}
#: Without a batch there is no telling which size these give.
PER_IMAGE = ("contrastive", "strong", "resize", "bilinear", "per image")

#: Sides from a pixel to very wide.
SIDES = ((1, 1), (1, 2), (2, 2), (3, 3), (8, 8), (4, 1000))


def kinds(dtype: torch.dtype, channels: int, batch: int) -> Iterator[Tensor]:
    """Yield images of every size, a single one in rows of pixels and several with the channels last."""
    for sides in SIDES:
        pixels = (torch.rand(batch, channels, *sides) * 255).to(torch.uint8)
        images = (pixels / 255).to(dtype)
        if not dtype.is_floating_point:
            images = (pixels.to(torch.int32) * (torch.iinfo(dtype).max // 255)).to(dtype)
        yield images if batch == 1 else images.contiguous(memory_format=torch.channels_last)


def drawn(view: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    torch.manual_seed(5)
    return view(images)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_results_are_those_of_float32(name: str, dtype: torch.dtype, channels: int) -> None:
    view = VIEWS[name]
    for batch in (1, 2):
        for images in kinds(dtype, channels, batch):
            result = drawn(view, images)
            assert result.shape[:2] == images.shape[:2]
            if not dtype.is_floating_point:
                assert result.dtype == torch.float32
                expected = drawn(view, images.float().contiguous() / torch.iinfo(dtype).max)
                torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)  # 1 / white is rounded in one of them
            else:
                assert result.dtype == dtype
                expected = drawn(view, images.float().contiguous()).to(dtype)
                between = 3 * torch.finfo(dtype).eps if name == "sequential" else 0.0  # two views, each rounds
                torch.testing.assert_close(result, expected, rtol=between, atol=0.0)
            assert 0 <= result.min() <= result.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", VIEWS)
def test_a_batch_of_none(name: str) -> None:
    for images in kinds(torch.float32, 3, 0):
        if name in PER_IMAGE:
            with pytest.raises(ValueError, match="images: expected at least one, got none"):
                VIEWS[name](images)
        else:
            assert VIEWS[name](images).shape == images.shape


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "around", ["autocast", "float64 by default", "bfloat16 by default", "inference", "deterministic"]
)
def test_surroundings_change_nothing(name: str, around: str) -> None:
    images = torch.rand(4, 3, 24, 40)
    expected = drawn(VIEWS[name], images)
    before = torch.get_default_dtype()
    try:
        if around.endswith("by default"):
            torch.set_default_dtype(torch.float64 if "64" in around else torch.bfloat16)
        torch.use_deterministic_algorithms(around == "deterministic")
        with torch.inference_mode(around == "inference"), torch.autocast("cpu", torch.bfloat16, around == "autocast"):
            result = drawn(VIEWS[name], images)
    finally:
        torch.set_default_dtype(before)
        torch.use_deterministic_algorithms(False)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)  # 1 / white is rounded in one of them


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            torch.ones(2, 3, 8, 8, dtype=torch.int64),
            TypeError,
            "expected uint8, uint16 or a floating dtype of 16 bits or more, got torch.int64",
        ),
        (
            torch.ones(2, 3, 8, 8, dtype=torch.bool),
            TypeError,
            "expected uint8, uint16 or a floating dtype of 16 bits or more, got torch.bool",
        ),
        (torch.ones(3, 8, 8), ValueError, r"expected shape \(B, C, H, W\), got \(3, 8, 8\)"),
        (torch.ones(2, 3, 0, 8), ValueError, r"expected shape \(C, H, W\) with at least one pixel, got \(3, 0, 8\)"),
    ],
    ids=["integers", "truth values", "no batch", "no pixel"],
)
def test_what_is_no_image_is_named(name: str, images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"images: {message}"):
        VIEWS[name](images)
