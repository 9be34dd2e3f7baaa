"""Checks of the arguments of views and augmentations."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepclust_ext.ops._checks import SUPPORTED_DTYPES, check_number, check_tensor
from deepclust_ext.reference.augment_views import WHITE


def check_interval(name: str, values: Sequence[float], *, most: float = math.inf) -> None:
    """Require two finite numbers above 0, up to ``most``, the lower first; TypeError or ValueError otherwise."""
    limit = "" if most == math.inf else f" up to {most:g}"
    fault = f"{name}: expected two positive numbers{limit}, the lower first, got {values}"
    check_sequence(name, values)
    if len(values) != 2:
        raise ValueError(fault)
    low, high = values
    if not (0 < low <= high <= most and high < math.inf):
        raise ValueError(fault)


def check_sequence(name: str, values: object) -> None:
    """Require a list or tuple of numbers; TypeError otherwise."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name}: expected a list of numbers, got {values!r}")
    for value in values:
        check_number(value, name)


def check_images(
    images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W)
) -> None:
    """Require images of at least one pixel, uint8, uint16 or floating.

    Raises:
        TypeError: If one has another dtype, for which it is not known which value is white.
        ValueError: If there is none, or a shape does not fit.
    """
    if not isinstance(images, Tensor | list | tuple):
        raise TypeError(f"images: expected a tensor or a list of tensors, got {type(images).__name__}")
    if isinstance(images, Tensor):
        check_image_tensor(images)
    if isinstance(images, Tensor) and images.dim() != 4:
        raise ValueError(f"images: expected shape (B, C, H, W), got {tuple(images.shape)}")
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    for image in images[:1] if isinstance(images, Tensor) else images:
        if not isinstance(image, Tensor):
            raise TypeError(f"images: expected tensors, got {type(image).__name__}")
        if image.dim() != 3 or not image.numel():
            raise ValueError(f"images: expected shape (C, H, W) with at least one pixel, got {tuple(image.shape)}")
        check_image_tensor(image)
        if image.dtype != images[0].dtype:
            raise TypeError(f"images: expected one dtype, got {images[0].dtype} and {image.dtype}")


def check_image_tensor(images: Tensor) -> None:
    """Require a dense tensor of a dtype that images may have; TypeError otherwise."""
    check_tensor(images, "images")
    if images.dtype not in (torch.uint8, torch.uint16, *SUPPORTED_DTYPES):
        raise TypeError(f"images: expected uint8, uint16 or a floating dtype of 16 bits or more, got {images.dtype}")


def in_float32(
    images: Tensor,  # any shape
) -> Tensor:
    """Return images to compute with: uint8 and uint16 scaled to 0 to 1, float64 unchanged, all else as float32."""
    if images.is_floating_point():
        return images.to(torch.promote_types(images.dtype, torch.float32))
    return images.to(torch.float32) / WHITE[images.dtype]
