"""A backbone by its name, or by that of a function of the user's."""

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.backbones.modes import evaluation
from deepclust_ext.backbones.resnet import RESNETS, check_resnet, resnet
from deepclust_ext.backbones.small import small_linear_network, small_network
from deepclust_ext.backbones.stem_transformer import StemTransformer
from deepclust_ext.ops._checks import check_size

#: Name -> a network of a size and channels. Those of the digits take other sizes too, without another block for them.
#: "flatten" leaves features as they are. "vit" is PICI's transformer, "vit-small" one for scans with a stem of
#: convolutions.
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small": small_network,
    "small-linear": small_linear_network,
    "digits": lambda image_size, channels: small_network(8, channels, 512),
    "digits-linear": lambda image_size, channels: small_linear_network(8, channels),
    "flatten": lambda image_size, channels: nn.Flatten(),
    "vit": lambda image_size, channels: VisionTransformer(image_size, channels=channels),
    "vit-small": lambda image_size, channels: StemTransformer(image_size, 8, 64, 2, 4, 2, channels),
}
BACKBONES = (*NETWORKS, *RESNETS)


def check_backbone(name: str, stem: str | None = None) -> None:
    """Require a network that :func:`load_backbone` finds, without making it; a function's module is imported.

    Raises:
        ImportError: If a ResNet needs torchvision and there is none, or there is no such module.
        ValueError: If the name is unknown, or a stem is given to a network that has none.
    """
    if name in RESNETS:
        check_resnet(stem)
    elif stem is not None:
        raise ValueError(f"backbone.stem: expected none for {name!r}, which is no ResNet, got {stem!r}")
    elif ":" in name:
        _find(name)
    elif name not in BACKBONES:
        raise ValueError(f"backbone.name: expected one of {', '.join(BACKBONES)}, or 'module:function', got {name!r}")


def load_backbone(name: str, image_size: int, *, channels: int = 3, stem: str | None = None) -> tuple[nn.Module, int]:
    """Return a network from (B, ``channels``, ``image_size``, ``image_size``) to (B, D), and D.

    Args:
        name: One of ``BACKBONES``, or "module:function" of a function without arguments that returns an nn.Module.
        image_size: Side of the images in pixels.
        channels: Number of channels of the images.
        stem: Stem of a ResNet, see :func:`deepclust_ext.backbones.resnet.resnet`; None for all others.

    Raises:
        ImportError: If a ResNet needs torchvision and there is none, or there is no such module.
        TypeError: If a size is no integer, the function returns no nn.Module, or the network no floating tensor.
        ValueError: If the name is unknown, a size is out of range, a stem is given to a network that has none, or the
            network does not map such images to rows.
    """
    check_backbone(name, stem)
    image_size, channels = check_size(image_size, "image_size"), check_size(channels, "channels")
    if name in RESNETS:
        network = resnet(name, image_size, channels=channels, stem=stem)
    elif name in NETWORKS:
        network = NETWORKS[name](image_size, channels)
    else:
        network = own_network(name)
    return network, feature_dim_of(network, name, (2, channels, image_size, image_size))


def _find(name: str) -> Callable[[], Any]:
    """Return the function that "module:function" names."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"backbone.name: expected 'module:function', got {name!r}")
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ImportError(f"backbone.name: expected a module that can be imported, got {name!r}: {error}") from error
    if not callable(make):
        raise ValueError(f"backbone.name: expected a function {function} in {module}, got {make!r}")
    return cast(Callable[[], Any], make)


def own_network(name: str) -> nn.Module:
    """Return the network that the function of a name "module:function" makes.

    Raises:
        ImportError: If there is no such module.
        TypeError: If the function returns no nn.Module.
        ValueError: If there is no such function, or it raises, for example because it needs arguments.
    """
    make = _find(name)
    try:
        network = make()
    except (Exception, SystemExit) as error:  # whatever code of the user's raises
        raise ValueError(
            f"backbone.name: expected {name} to need no arguments and return an nn.Module, got {_in_a_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"backbone.name: expected {name} to return an nn.Module, got {type(network).__name__}")
    return network


def feature_dim_of(network: nn.Module, name: str, shape: tuple[int, ...]) -> int:
    """Return the width of the network's rows, from a forward pass on zeros that changes no statistics.

    Raises:
        TypeError: If the network returns no floating tensor.
        ValueError: If it does not map images of this shape (B, C, H, W) to finite rows (B, D).
    """
    # A function of the user's may choose dtype and device.
    weight = next(network.parameters(), torch.empty(0, device="cpu"))
    try:
        with evaluation(network):
            features: Any = network(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    except Exception as error:  # whatever code of the user's raises
        raise ValueError(
            f"backbone {name}: expected it to take images of shape {shape}, got {_in_a_line(error)}"
        ) from error
    if not isinstance(features, torch.Tensor):
        raise TypeError(f"backbone {name}: expected a tensor of features, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(f"backbone {name}: expected floating features, got {features.dtype}")
    if features.dim() != 2 or len(features) != shape[0] or not features.shape[1]:
        raise ValueError(
            f"backbone {name}: expected features of shape ({shape[0]}, D) for images of shape {shape}, "
            f"got {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError(f"backbone {name}: expected finite features of black images, got NaN or infinity")
    return features.shape[1]


def _in_a_line(error: BaseException) -> str:
    """Return what an error is and says, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
