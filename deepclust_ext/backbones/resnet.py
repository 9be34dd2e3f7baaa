"""torchvision's ResNets without their last layer. Needs torchvision, the extra `vision`."""

import sys

import torch
from torch import nn

from deepclust_ext.ops._checks import check_size

RESNETS = ("resnet18", "resnet34", "resnet50")
STEMS = ("cifar", "imagenet")

#: Side in pixels up to which a ResNet gets the CIFAR stem where none is named: HaDis has it at 32 and at 96 pixels, and
#: with the ImageNet stem, made for 224, images of 32 pixels are 1 x 1 after the last block.
LARGEST_CIFAR_SIZE = 96


def default_stem(image_size: int) -> str:
    """Return "cifar" for images of up to 96 pixels, and "imagenet" for larger ones."""
    return "cifar" if image_size <= LARGEST_CIFAR_SIZE else "imagenet"


def check_resnet(stem: str | None = None) -> None:
    """Require a known stem, or None, and torchvision.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        ValueError: If the stem is unknown.
    """
    if stem is not None and stem not in STEMS:
        raise ValueError(f"backbone.stem: expected one of {', '.join(STEMS)}, got {stem!r}")
    try:
        import torchvision.models  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the latter two for a torchvision of another torch
        message = f"torchvision cannot be imported ({error}); pip install 'deepclust_ext[vision]'"
        raise ImportError(message) from error


def resnet(name: str, image_size: int, *, channels: int = 3, stem: str | None = None) -> nn.Module:
    """Return a ResNet with random weights from (B, ``channels``, H, W) to (B, 512), or (B, 2048) for ResNet-50.

    Args:
        name: "resnet18", "resnet34" or "resnet50".
        image_size: Side of the images in pixels.
        channels: Number of channels of the images.
        stem: "imagenet" begins with a convolution of 7 x 7, stride 2, and a pooling, which leave a quarter of each
            side; "cifar" begins with a convolution of 3 x 3, stride 1, and no pooling. None for :func:`default_stem`,
            which is then printed on standard error.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        TypeError: If a size is no integer.
        ValueError: If the name or the stem is unknown, or a size out of range.
    """
    if name not in RESNETS:
        raise ValueError(f"backbone.name: expected one of {', '.join(RESNETS)}, got {name!r}")
    check_resnet(stem)
    image_size, channels = check_size(image_size, "image_size"), check_size(channels, "channels")
    from torchvision import models

    if stem is None:
        stem = default_stem(image_size)
        print(f"backbone: {name} with the {stem} stem, for images of {image_size} pixels", file=sys.stderr)
    network: nn.Module = getattr(models, name)()
    network.fc = nn.Identity()
    if stem == "cifar":
        network.conv1 = _convolution(channels, 3, stride=1)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _convolution(channels, 7, stride=2)
    # On a CPU this saves a sixth to a third of a forward pass and up to a fifth of a step.
    return network.to(memory_format=torch.channels_last)


def _convolution(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, 64, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    return convolution
