"""Weak and strong views of photographs, with torchvision's transforms. Needs torchvision, the extra `vision`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def weak_view(size: int) -> nn.Module:
    """Return the usual augmentation of contrastive learning: crop, flip, colour jitter, grey, blur.

    Crop and flip are torchvision's defaults, jitter (0.4, 0.4, 0.4, 0.1) hits 80 %, grey 20 % and blur, of a tenth of
    the side, 50 % of the images. The module maps images (B, C, H, W), uint8 or floating in [0, 1], with 1 or 3
    channels, to (B, C, ``size``, ``size``) of the same dtype; every image gets its own random numbers, from torch's
    global generator.

    Args:
        size: Side of the result in pixels.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
    """
    return PerImage(_weak(size))


def strong_view(size: int) -> nn.Module:
    """Return SACC's strong augmentation: :func:`weak_view` followed by RandAugment, 5 operations of magnitude 10.

    Args:
        size: Side of the result in pixels.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
    """
    transforms = _transforms()
    return PerImage(transforms.Compose([_weak(size), transforms.RandAugment(num_ops=5, magnitude=10)]))


class PerImage(nn.Module):
    """Apply a transform to each image of a batch by itself: torchvision's draw one set of random numbers per call.

    Args:
        transform: From an image (C, H, W) to another.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the transformed images, (B, C, H', W')."""
        return torch.stack([self.transform(image) for image in images])


def _weak(size: int) -> Any:
    transforms = _transforms()
    blur = transforms.GaussianBlur(kernel_size=size // 20 * 2 + 1, sigma=(0.1, 2.0))
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
        ]
    )


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except (ImportError, OSError, RuntimeError) as error:  # the latter two for a torchvision of another torch
        message = f"torchvision cannot be imported ({error}); pip install 'deepclust_ext[vision]'"
        raise ImportError(message) from error
    return v2
