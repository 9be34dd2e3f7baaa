"""Views of photographs: what each setting does and how often, types and channels, and views by name."""

import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import VIEWS, make_view, resize_view, strong_view, weak_view
from deepclust_ext.data import views as module
from deepclust_ext.methods import SACC

MAKERS: dict[str, Callable[..., nn.Module]] = {
    "weak": weak_view,
    "strong": partial(strong_view, mean=None, std=None),
    "resize": resize_view,
}
RANDOM = ["weak", "strong"]

#: Settings of weak_view with which an image stays as it is.
STILL: dict[str, Any] = {
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "flip_p": 0.0,
    "jitter_p": 0.0,
    "grayscale_p": 0.0,
    "blur_p": 0.0,
}


def photographs(dtype: torch.dtype = torch.float32, channels: int = 3, count: int = 12) -> Tensor:
    images = torch.rand(count, channels, 30, 26)
    return images if dtype.is_floating_point else images.mul(255).to(dtype)


def share(changed: Tensor) -> float:
    return float(changed.double().mean())


@pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_results_are_floating_in_zero_to_one(
    maker: Callable[[int], nn.Module], channels: int, dtype: torch.dtype
) -> None:
    images = photographs(dtype, channels)
    result = maker(32)(images)
    assert result.shape == (12, channels, 32, 32)
    assert result.dtype == torch.float32
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6
    assert result.std() > 0.05


@pytest.mark.parametrize("name", RANDOM)
def test_every_image_gets_its_own_random_numbers(name: str) -> None:
    same = photographs()[:1].expand(6, -1, -1, -1)
    results = MAKERS[name](16)(same)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 6


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_decides(name: str) -> None:
    images = photographs()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(MAKERS[name](16)(images))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))
def test_images_of_several_sizes(maker: Callable[[int], nn.Module]) -> None:
    images = [torch.rand(3, 20, 30), torch.rand(3, 41, 17)]
    assert maker(16)(images).shape == (2, 3, 16, 16)


def test_nothing_is_left_to_chance_where_every_probability_is_zero() -> None:
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(weak_view(16, **STILL)(images), images)


def test_crops_have_between_8_and_100_percent_of_the_area() -> None:
    # Every channel is a ramp: what a crop's corners show tells its sides.
    ramp = torch.linspace(0, 1, 200)
    image = torch.stack([ramp.expand(200, 200), ramp.view(-1, 1).expand(200, 200)])
    settings = STILL | {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    crops = weak_view(50, **settings)(image.expand(600, -1, -1, -1))
    width = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    height = crops[:, 1, -1, 0] - crops[:, 1, 0, 0]
    area, ratio = width * height * (50 / 49) ** 2, width / height
    assert 0.06 < area.min() < 0.12
    assert 0.85 < area.max() < 1.05
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4
    small = weak_view(50, **settings | {"scale": (0.5, 0.5)})(image.expand(50, -1, -1, -1))
    area = (small[:, 0, 0, -1] - small[:, 0, 0, 0]) * (small[:, 1, -1, 0] - small[:, 1, 0, 0]) * (50 / 49) ** 2
    torch.testing.assert_close(area, torch.full((50,), 0.5), rtol=0, atol=0.03)


def test_flip() -> None:
    images = torch.rand(1, 3, 16, 16).expand(500, -1, -1, -1)
    results = weak_view(16, **STILL | {"flip_p": 0.5})(images)
    flipped = (results - images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert torch.equal((results - images).abs().amax(dim=(1, 2, 3)) < 1e-5, ~flipped)
    assert share(flipped) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("setting", "value", "expected"), [("jitter_p", 0.8, 0.8), ("grayscale_p", 0.2, 0.2), ("blur_p", 0.5, 0.5)]
)
def test_how_often_something_happens(setting: str, value: float, expected: float) -> None:
    images = torch.rand(1, 3, 16, 16).expand(500, -1, -1, -1)
    results = weak_view(16, **STILL | {setting: value, "blur_kernel": 9, "blur_sigma": (0.5, 2.0)})(images)
    assert share((results - images).abs().amax(dim=(1, 2, 3)) > 1e-3) == pytest.approx(expected, abs=0.1)


def test_defaults_are_the_papers() -> None:
    common = "scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), flip_p=0.5, jitter=(0.4, 0.4, 0.4, 0.1)"
    common += ", jitter_p=0.8, grayscale_p=0.2, "
    weak, strong = str(weak_view(32)), str(strong_view(224))
    assert weak.startswith(f"RandomViews(32, {common}blur_p=0.0, ")
    assert "num_operations=0, " in weak
    assert weak.endswith("mean=None, std=None)")
    assert strong.startswith(f"RandomViews(224, {common}blur_p=0.5, blur_kernel=23, blur_sigma=(0.1, 2.0), ")
    assert "num_operations=5, operation_p=0.5, levels=(1, 9), " in strong
    assert strong.endswith("mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))")


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_normalization_is_the_last_step(dtype: torch.dtype) -> None:
    images = (torch.rand(4, 3, 16, 16) * 255).to(torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    mean, std = module.CIFAR10_MEAN, module.CIFAR10_STD
    scaled = images / 255 if dtype == torch.uint8 else images
    expected = torch.stack([(scaled[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    for view in (weak_view(16, **STILL, mean=mean, std=std), resize_view(16, mean=mean, std=std)):
        torch.testing.assert_close(view(images), expected)
    gray = resize_view(16, mean=[0.5], std=[0.25])(images[:, :1])
    torch.testing.assert_close(gray, (scaled[:, :1] - 0.5) / 0.25)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_equals_pil(interpolation: str) -> None:
    import numpy as np
    from PIL import Image

    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    for height, width in ((30, 26), (90, 140)):
        # Far enough from black and white: PIL cuts what a cubic overshoots after each of two directions.
        image = torch.rand(3, height, width).mul(100).add(75).round().to(torch.uint8)
        pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 48), method)
        expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1) / 255
        for given in (image, image.float() / 255):
            (result,) = resize_view(48, interpolation=interpolation)(given.unsqueeze(0))
            torch.testing.assert_close(result, expected, rtol=0, atol=2.1 / 255)


def test_a_cubic_stays_in_range_and_the_right_size_is_kept() -> None:
    edge = torch.zeros(1, 3, 10, 10)
    edge[..., 5:] = 1
    result = resize_view(17)(edge)
    assert (float(result.min()), float(result.max())) == (0, 1)
    images = torch.rand(2, 3, 17, 17)
    assert torch.equal(resize_view(17)(images), images)


def test_views_by_name_are_the_functions_and_classes() -> None:
    of_images = {"contrastive", "strong", "byol", "resize", "affine", "gamma", "turn", "noise"}
    assert set(VIEWS) == of_images | {"neighbor", "identity", "sequential"}
    photo: dict[str, Any] = {
        "size": 16,
        "jitter": [0.8, 0.8, 0.8, 0.2],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    images = torch.rand(2, 1, 3, 3)
    assert make_view("identity")(images) is images
    assert str(make_view("contrastive", **photo)) == str(weak_view(**photo))
    assert str(make_view("strong", **photo)) == str(strong_view(**photo))
    assert str(make_view("resize", size=16, interpolation="bilinear")) == str(resize_view(16, interpolation="bilinear"))
    digits: dict[str, Any] = {
        "name": "sequential",
        "views": [{"name": "affine", "degrees": 5.0}, {"name": "gamma", "gamma": 0.0}],
    }
    view = make_view(**digits)
    assert [type(part).__name__ for part in view.children()] == ["RandomAffine", "RandomGamma"]
    assert "degrees=5.0, shear=0.15" in str(view)
    assert view(torch.rand(5, 1, 8, 8)).shape == (5, 1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "contrastiv"},
            "view: expected one of contrastive, .*, got 'contrastiv'; did you mean 'contrastive'?",
        ),
        ({"name": "zebra"}, "view: expected one of .*, got 'zebra'$"),
        (
            {"name": "strong", "size": 32, "greyscale_p": 0.1},
            "view 'strong': expected settings of size, scale, .*, got 'greyscale_p'; did you mean 'grayscale_p'?",
        ),
        ({"name": "gamma", "size": 3}, "view 'gamma': expected settings of gamma, got 'size'$"),
        ({"name": "resize"}, "view 'resize': expected the setting 'size', got none"),
        (
            {"name": "sequential", "views": [{"name": "afine"}]},
            "view: expected one of .*, got 'afine'; did you mean 'affine'?",
        ),
        (
            {"name": "contrastive", "size": 32, "jitter": [0.4]},
            r"jitter: expected brightness, contrast, saturation and hue, got \[0.4\]",
        ),
        (
            {"name": "contrastive", "size": 32, "flip_p": 1.5},
            "flip_p: expected a number in .0, 1., got 1.5",
        ),
        (
            {"name": "strong", "size": 32, "blur_kernel": 4},
            "blur_kernel: expected an odd number, got 4",
        ),
        ({"name": "contrastive", "size": 32, "mean": [0.5]}, "mean, std: expected both or neither, got .0.5. and None"),
        ({"name": "resize", "size": 32, "mean": [0.5], "std": [1, 1]}, "std: expected 1 number like mean, got 2"),
        ({"name": "resize", "size": 32, "mean": [0.5], "std": [0]}, r"std: expected positive numbers, got \(0,\)"),
        (
            {"name": "resize", "size": 32, "interpolation": "nearest"},
            "interpolation: expected 'bicubic' or 'bilinear', got 'nearest'",
        ),
        ({"name": "contrastive", "size": 0}, "size: expected at least 1, got 0"),
        ({"name": "resize", "size": -3}, "size: expected at least 1, got -3"),
        (
            {"name": "contrastive", "size": 32, "scale": [1.0, 0.08]},
            r"scale: expected two positive numbers up to 1, the lower first, got \[1.0, 0.08\]",
        ),
        ({"name": "contrastive", "size": 32, "scale": [0.0, 1.0]}, "scale: expected two positive numbers up to 1"),
        ({"name": "contrastive", "size": 32, "scale": [0.5, 1.5]}, "scale: expected two positive numbers up to 1"),
        ({"name": "contrastive", "size": 32, "scale": [0.5]}, r"scale: expected two .*, got \[0.5\]"),
        ({"name": "contrastive", "size": 32, "ratio": [2, 1]}, "ratio: expected two positive numbers, the lower first"),
        (
            {"name": "contrastive", "size": 32, "ratio": [1, math.nan]},
            "ratio: expected two positive numbers, the lower",
        ),
        ({"name": "strong", "size": 32, "blur_sigma": [-1, 2]}, "blur_sigma: expected two positive numbers, the lower"),
        (
            {"name": "contrastive", "size": 32, "jitter": [0.4, -0.4, 0.4, 0.1]},
            "jitter: expected a finite number of at least 0, got -0.4",
        ),
        (
            {"name": "contrastive", "size": 32, "jitter": [math.nan, 0.4, 0.4, 0.1]},
            "jitter: expected a finite number of at least 0, got nan",
        ),
        (
            {"name": "contrastive", "size": 32, "jitter": [0, 0, 0, 0.6]},
            "jitter: expected a hue of at most 0.5, got 0.6",
        ),
        (
            {"name": "contrastive", "size": 32, "operation_p": math.nan},
            "operation_p: expected a number .* got nan",
        ),
        ({"name": "contrastive", "size": 32, "levels": [9, 1]}, r"levels: expected two levels .*, got \(9, 1\)"),
        ({"name": "contrastive", "size": 32, "num_operations": -1}, "num_operations: expected at least 0, got -1"),
        (
            {"name": "resize", "size": 32, "mean": [math.nan], "std": [1]},
            r"mean: expected finite numbers, got \(nan,\)",
        ),
        ({"name": "resize", "size": 32, "mean": [0, 0], "std": [1, math.nan]}, "std: expected positive numbers, got"),
        ({"name": "affine", "degrees": math.nan}, "degrees: expected a finite number of at least 0, got nan"),
    ],
)
def test_errors_name_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_view(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resize", "size": 32.0}, "size: expected an integer, got 32.0"),
        ({"name": "contrastive", "size": True}, "size: expected an integer, got True"),
        ({"name": "contrastive", "size": 32, "flip_p": "0.5"}, "flip_p: expected a number, got '0.5'"),
        ({"name": "strong", "size": 32, "num_operations": 2.5}, "num_operations: expected an integer, got 2.5"),
        ({"name": "strong", "size": 32, "levels": [1, 9.5]}, "levels: expected an integer, got 9.5"),
    ],
)
def test_settings_of_a_wrong_type_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_view(**settings)


def test_channels_must_fit_the_mean() -> None:
    with pytest.raises(ValueError, match="mean: expected 1 number, one for each channel, got 3"):
        strong_view(32)(photographs(channels=1))


@pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))
def test_views_can_be_sent_to_another_process(maker: Callable[[int], nn.Module]) -> None:
    view, images = maker(16), photographs()
    copied = pickle.loads(pickle.dumps(view))
    torch.manual_seed(0)
    expected = view(images)
    torch.manual_seed(0)
    assert torch.equal(copied(images), expected)


def test_sacc_trains_on_them() -> None:
    weak, strong = weak_view(12), strong_view(12)
    images = photographs(torch.uint8, count=16)
    method = SACC(nn.Flatten(), 3 * 12 * 12, 4, hidden_dim=8)
    loss, _ = method.training_step([weak(images), weak(images), strong(images)])
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.5}, "scale: expected a list of numbers, got 0.5"),
        ({"jitter": 0.4}, "jitter: expected a list of numbers, got 0.4"),
        ({"levels": 3}, "levels: expected a list of numbers, got 3"),
        ({"mean": 0.5, "std": 0.5}, "mean: expected a list of numbers, got 0.5"),
        ({"mean": ("a",), "std": (1.0,)}, "mean: expected a number, got 'a'"),
        ({"mean": (True,), "std": (1.0,)}, "mean: expected a number, got True"),
        ({"generator": 3}, "generator: expected a torch.Generator or None, got int"),
    ],
)
def test_types_of_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        weak_view(8, **settings)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images: expected a tensor or a list of tensors, got NoneType"),
        (["a"], "images: expected tensors, got str"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8).half()], "images: expected one dtype, got torch.float32 and"),
        (torch.zeros(3, 8, 8), r"images: expected shape \(B, C, H, W\), got \(3, 8, 8\)"),
    ],
)
def test_what_is_no_batch_is_named(maker: Callable[[int], nn.Module], images: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        maker(8)(images)
