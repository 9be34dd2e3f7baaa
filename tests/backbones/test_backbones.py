"""Backbones: shapes, stems, channels, and the user's own."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.backbones import BACKBONES, load_backbone
from deepclust_ext.backbones.load import check_backbone
from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.backbones.resnet import RESNETS, default_stem


def tiny() -> nn.Module:
    """A user's network."""
    return nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def no_module() -> int:
    return 3


def keeps_the_plane() -> nn.Module:
    return nn.Conv2d(3, 5, 3)


@pytest.fixture
def torchvision() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_resnets_have_their_stems(torchvision: None, name: str, width: int, stem: str) -> None:
    network, feature_dim = load_backbone(name, 32, stem=stem)
    assert feature_dim == width
    planes: list[tuple[int, ...]] = []
    assert isinstance(network.layer1, nn.Module)
    network.layer1.register_forward_hook(lambda module, inputs, output: planes.append(tuple(inputs[0].shape[2:])))
    rows = network(torch.rand(2, 3, 32, 32))
    assert rows.shape == (2, width)
    # After the stem: the whole plane, or a quarter of each side.
    assert planes == [(32, 32) if stem == "cifar" else (8, 8)]
    assert network.training


@pytest.mark.parametrize(("name", "width", "patches"), [("vit", 384, 4), ("vit-small", 64, 16)])
def test_transformers_are_of_the_size_and_channels(name: str, width: int, patches: int) -> None:
    network, feature_dim = load_backbone(name, 32, channels=2)
    assert isinstance(network, VisionTransformer)
    assert (feature_dim, network.num_patches) == (width, patches)
    assert network(torch.rand(3, 2, 32, 32)).shape == (3, width)
    with pytest.raises(ValueError, match="patch_size: expected a divisor of image_size, which is 28, got "):
        load_backbone(name, 28)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_one_channel(torchvision: None, stem: str) -> None:
    network, _ = load_backbone("resnet18", 28, channels=1, stem=stem)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 512)


@pytest.mark.parametrize(
    ("size", "stem"), [(28, "cifar"), (32, "cifar"), (96, "cifar"), (97, "imagenet"), (224, "imagenet")]
)
def test_the_stem_goes_by_the_size_and_is_printed(
    torchvision: None, size: int, stem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert default_stem(size) == stem
    network, _ = load_backbone("resnet18", size)
    assert isinstance(network.conv1, nn.Conv2d)
    assert network.conv1.kernel_size == ((3, 3) if stem == "cifar" else (7, 7))
    assert capsys.readouterr().err == f"backbone: resnet18 with the {stem} stem, for images of {size} pixels\n"


def test_the_digits_network() -> None:
    network, feature_dim = load_backbone("digits", 8, channels=1)
    assert feature_dim == 2048
    # The pass that finds the width leaves the batch statistics alone.
    means = [buffer for name, buffer in network.named_buffers() if name.endswith("running_mean")]
    assert len(means) == 3
    assert not any(mean.any() for mean in means)
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 2048)
    assert set(BACKBONES) == {
        "digits",
        "digits-linear",
        "flatten",
        "small",
        "small-linear",
        "vit",
        "vit-small",
        *RESNETS,
    }


@pytest.mark.parametrize(
    ("side", "blocks", "width"),
    [(8, 3, 1024), (13, 3, 2304), (16, 4, 1024), (28, 3, 2304), (32, 4, 1024), (64, 5, 1024)],
)
@pytest.mark.parametrize("channels", [1, 13])
def test_the_small_network_halves_any_side_to_two_or_three(side: int, blocks: int, width: int, channels: int) -> None:
    network, feature_dim = load_backbone("small", side, channels=channels)
    assert feature_dim == width
    assert len([part for part in network.modules() if isinstance(part, nn.Conv2d)]) == blocks
    assert network(torch.rand(2, channels, side, side)).shape == (2, width)


@pytest.mark.parametrize("side", [7, 65])
def test_the_small_network_has_its_sizes(side: int) -> None:
    with pytest.raises(ValueError, match=rf"image_size: expected 8 to 64, got {side}"):
        load_backbone("small", side, channels=1)


@pytest.mark.parametrize(("name", "digest"), [("digits", -6.591785), ("digits-linear", 5.128931)])
def test_a_seed_gives_the_networks_of_the_digits_the_weights_it_gave(name: str, digest: float) -> None:
    torch.manual_seed(0)
    network, _ = load_backbone(name, 8, channels=1)
    weights = torch.cat([weight.detach().flatten() for weight in network.parameters() if weight.dim() > 1])
    order = torch.linspace(-1, 1, len(weights))
    assert float(weights.double() @ order.double()) == pytest.approx(digest, rel=1e-6)


def test_a_function_of_the_user_s() -> None:
    network, feature_dim = load_backbone(f"{__name__}:tiny", 32)
    assert feature_dim == 5
    assert isinstance(network, nn.Sequential)
    assert network.training


class Changed(nn.Module):
    """Apply a function to the pixels of each image as its features."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(images.flatten(1))


def needs_a_width(width: int) -> nn.Module:
    return nn.Linear(width, width)


def whole_numbers() -> nn.Module:
    return Changed(lambda pixels: pixels.long())


def no_features() -> nn.Module:
    return Changed(lambda pixels: pixels[:, :0])


def not_finite() -> nn.Module:
    return Changed(lambda pixels: pixels / 0)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet19", {}, ValueError, "backbone.name: expected one of small, .*, or 'module:function', got 'resnet19'"),
        ("resnet18", {"stem": "small"}, ValueError, "backbone.stem: expected one of cifar, imagenet, got 'small'"),
        ("digits", {"stem": "cifar"}, ValueError, "backbone.stem: expected none for 'digits'"),
        ("no.such:network", {}, ImportError, "No module named 'no'"),
        (f"{__name__}:missing", {}, ValueError, "backbone.name: expected a function missing in .*, got None"),
        (f"{__name__}:no_module", {}, TypeError, "to return an nn.Module, got int"),
        (f"{__name__}:keeps_the_plane", {}, ValueError, r"features of shape \(2, D\) .* got \(2, 5, 30, 30\)"),
        (
            f"{__name__}:needs_a_width",
            {},
            ValueError,
            "no arguments and return an nn.Module, got TypeError: .* 'width'",
        ),
        (f"{__name__}:whole_numbers", {}, TypeError, "expected floating features, got torch.int64"),
        (f"{__name__}:no_features", {}, ValueError, r"features of shape \(2, D\) .* got \(2, 0\)"),
        (f"{__name__}:not_finite", {}, ValueError, "expected finite features of black images, got NaN or infinity"),
        (":network", {}, ValueError, "expected 'module:function', got ':network'"),
        (
            f"{__name__}:tiny",
            {"channels": 1},
            ValueError,
            r"to take images of shape \(2, 1, 32, 32\), got RuntimeError: ",
        ),
    ],
)
def test_errors_name_the_argument(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_backbone(name, 32, **options)


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for refuse in (partial(load_backbone, image_size=32), check_backbone):
        with pytest.raises(
            ImportError, match=r"torchvision cannot be imported .*; pip install 'deepclust_ext\[vision\]'"
        ):
            refuse("resnet18", stem="cifar")


def frozen_in_double() -> nn.Module:
    """Return a network of another dtype than torch's default, a part of which is in evaluation mode."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()).double()
    network[1].eval()
    return network


def test_dtype_and_modes_of_an_own_network_stay() -> None:
    network, dim = load_backbone(f"{__name__}:frozen_in_double", 8, channels=1)
    assert dim == 72
    assert [part.training for part in network.modules()] == [True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_by_name_under_another_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        network, dim = load_backbone("digits-linear", 8, channels=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert dim == 512
    assert next(network.parameters()).dtype == dtype
