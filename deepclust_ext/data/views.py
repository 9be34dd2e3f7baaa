"""Views of images by name and numbers, random ones to learn from and a plain one to test with.

What works on photographs needs torchvision, the extra `vision`.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepclust_ext.data._checks import (
    check_amount,
    check_count,
    check_image,
    check_interval,
    check_probability,
    in_float32,
)
from deepclust_ext.data.augment import RandomAffine, RandomGamma
from deepclust_ext.data.operations import RandomOperations, torchvision_transforms

# Mean and deviation of each channel's values in [0, 1]. CIFAR's are those that most published code carries; its
# deviations for CIFAR-10 are means over images, below the 0.247, 0.244, 0.262 of all pixels together.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
#: torchvision's, for all of its weights of ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weak_view(
    size: int,
    *,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip_p: float = 0.5,
    jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
    jitter_p: float = 0.8,
    grayscale_p: float = 0.2,
    blur_p: float = 0.0,
    blur_kernel: int = 23,
    blur_sigma: Sequence[float] = (0.1, 2.0),
    num_operations: int = 0,
    operation_p: float = 0.5,
    levels: Sequence[int] = (1, 9),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return the augmentation of contrastive learning: crop, flip, color jitter, gray, and if asked for, more.

    The defaults are those of SACC for CIFAR. With ``mean`` and ``std`` they are those of HaDis. For photographs of 224
    pixels SACC takes ``jitter=(0.8, 0.8, 0.8, 0.2)`` and ``blur_p=0.5``.

    The module maps images (B, C, H, W) or a sequence of (C, H, W), uint8 or floating in [0, 1], with 1 or 3 channels
    unless no step changes colors, to (B, C, ``size``, ``size``): float32 of uint8, and the dtype of floating ones.
    Every image gets its own random numbers, from torch's global generator.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the area that a crop has.
        ratio: Smallest and largest ratio of a crop's sides.
        flip_p: Probability of a flip of left and right.
        jitter: How much brightness, contrast and saturation differ from 1 at most, and hue from 0.
        jitter_p: Probability of the jitter.
        grayscale_p: Probability of gray.
        blur_p: Probability of a Gaussian blur.
        blur_kernel: Its side in pixels, odd.
        blur_sigma: Its smallest and largest deviation in pixels.
        num_operations: How many of :class:`~deepclust_ext.data.RandomOperations` follow.
        operation_p: Probability that such an operation is applied.
        levels: Lowest and highest level of these operations, of 10.
        mean: What is subtracted from each channel in the end; None for no normalization.
        std: What each channel is divided by then.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range.
    """
    check_count("size", size)
    check_interval("scale", scale, most=1)
    check_interval("ratio", ratio)
    check_interval("blur_sigma", blur_sigma)
    probabilities = {"flip_p": flip_p, "jitter_p": jitter_p, "grayscale_p": grayscale_p, "blur_p": blur_p}
    for name, value in probabilities.items():
        check_probability(name, value)
    if len(jitter) != 4:
        raise ValueError(f"jitter: expected brightness, contrast, saturation and hue, got {jitter}")
    for value in jitter:
        check_amount("jitter", value)
    if jitter[3] > 0.5:  # half of the circle of colors
        raise ValueError(f"jitter: expected a hue of at most 0.5, got {jitter[3]}")
    operations = RandomOperations(num_operations, operation_p, levels)
    transforms = torchvision_transforms()
    steps = [
        transforms.RandomResizedCrop(size, scale=tuple(scale), ratio=tuple(ratio)),
        transforms.RandomHorizontalFlip(flip_p),
        transforms.RandomApply([transforms.ColorJitter(*jitter)], p=jitter_p),
        transforms.RandomGrayscale(grayscale_p),
    ]
    if blur_p:
        if blur_kernel % 2 == 0 or not 0 < blur_kernel < 2 * size:  # the border is mirrored
            raise ValueError(f"blur_kernel: expected an odd number below twice the size {size}, got {blur_kernel}")
        blur = transforms.GaussianBlur(blur_kernel, sigma=tuple(blur_sigma))
        steps.append(transforms.RandomApply([blur], p=blur_p))
    if num_operations:
        steps.append(operations)
    colors = (1, 3) if jitter_p or grayscale_p or num_operations else None
    return PerImage(transforms.Compose([*steps, *_floating(mean, std)]), channels=colors)


#: What SACC's strong view changes of the defaults. Its flip comes after the blur, which makes no difference.
STRONG = {"blur_p": 0.5, "num_operations": 5, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def strong_view(size: int, **settings: Any) -> nn.Module:
    """Return SACC's strong augmentation: :func:`weak_view` with blur, five operations and ImageNet's normalization.

    Args:
        size: Side of the result in pixels.
        **settings: What differs of the arguments of :func:`weak_view`.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        ValueError: If a setting is unknown or lies outside its range.
    """
    return make_view("strong", size=size, **settings)


def resize_view(
    size: int,
    *,
    interpolation: str = "bicubic",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return the view to test with, which draws nothing: resized to a square, and normalized.

    The defaults are those of HaDis, with its ``mean`` and ``std``; SACC takes 224 pixels, "bilinear", and no
    normalization. The module maps images (B, C, H, W) or a sequence of (C, H, W), uint8 or floating in [0, 1], to
    (B, C, ``size``, ``size``): float32 of uint8, and the dtype of floating ones. An image that has the size already is
    not resized.

    Args:
        size: Side of the result in pixels.
        interpolation: "bicubic" or "bilinear", both antialiased.
        mean: What is subtracted from each channel; None for no normalization.
        std: What each channel is divided by then.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range.
    """
    check_count("size", size)
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"interpolation: expected 'bicubic' or 'bilinear', got {interpolation!r}")
    return PerImage(nn.Sequential(_Resize(size, interpolation), *_floating(mean, std)))


def sequential(views: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Return several views one after the other, each given as the arguments of :func:`make_view`."""
    return nn.Sequential(*(make_view(**view) for view in views))


#: Name -> what makes the view, and what is changed of its defaults.
VIEWS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "contrastive": (weak_view, {}),
    "strong": (weak_view, STRONG),
    "resize": (resize_view, {}),
    "affine": (RandomAffine, {}),
    "gamma": (RandomGamma, {}),
    "sequential": (sequential, {}),
}


def make_view(name: str, **settings: Any) -> nn.Module:
    """Return a view by its name in ``VIEWS``, as a recipe has it.

    Example:
        >>> make_view("sequential", views=[{"name": "affine", "degrees": 10.0}, {"name": "gamma"}])
        Sequential(
          (0): RandomAffine(degrees=10.0, shear=0.15, scale=0.15, stretch=0.075, shift=0.125)
          (1): RandomGamma(gamma=0.7)
        )

    Args:
        name: "contrastive" is :func:`weak_view`, "strong" :func:`strong_view`, "resize" :func:`resize_view`, "affine"
            :class:`~deepclust_ext.data.RandomAffine`, "gamma" :class:`~deepclust_ext.data.RandomGamma` and
            "sequential" :func:`sequential`.
        **settings: The arguments of the view.

    Raises:
        ImportError: If the view needs torchvision, and that is missing or does not fit torch.
        ValueError: If the name or a setting is unknown, a setting is missing, or one lies outside its range.
    """
    if name not in VIEWS:
        raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {name!r}{_nearest(name, VIEWS)}")
    maker, defaults = VIEWS[name]
    parameters = inspect.signature(maker).parameters
    for setting in settings:
        if setting not in parameters:
            known = ", ".join(parameters)
            raise ValueError(
                f"view {name!r}: expected settings of {known}, got {setting!r}{_nearest(setting, parameters)}"
            )
    for setting, parameter in parameters.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise ValueError(f"view {name!r}: expected the setting {setting!r}, got none")
    return maker(**defaults | settings)


def _nearest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


class PerImage(nn.Module):
    """Apply a transform to each image of a batch by itself: torchvision's draw one set of random numbers per call.

    Half precision is transformed in float32, and the result is in its dtype.

    Args:
        transform: From an image (C, H, W), uint8 or floating, to another, all of one size.
        channels: How many channels an image may have; None for any number.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], channels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.transform = transform
        self.channels = channels

    def forward(
        self,
        images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W), of any sizes
    ) -> Tensor:
        """Return the transformed images, (B, C, H', W').

        Raises:
            TypeError: If the images are integers of another dtype than uint8.
            ValueError: If there is none, or a shape does not fit.
        """
        if not len(images):
            raise ValueError("images: expected at least one, got none")
        results = []
        for image in images:
            check_image(image, self.channels)
            with torch.autocast(image.device.type, enabled=False):
                result = self.transform(in_float32(image))
            results.append(result.to(image.dtype) if image.is_floating_point() else result)
        return torch.stack(results)


class ToFloat(nn.Module):
    """Turn integer values of 0 to 255 into float32 of 0 to 1, and leave floating values as they are."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the floating image, of the same shape."""
        return image if image.is_floating_point() else image.float() / 255


class Normalize(nn.Module):
    """Subtract a mean from every channel and divide it by a deviation.

    Args:
        mean: One for each channel of values in [0, 1].
        std: One for each channel, positive.

    Raises:
        ValueError: If they differ in length, a number is not finite, or a deviation not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"std: expected {len(mean)} numbers like mean, got {len(std)}")
        if not all(math.isfinite(value) for value in mean):
            raise ValueError(f"mean: expected finite numbers, got {tuple(mean)}")
        if not all(0 < deviation < math.inf for deviation in std):
            raise ValueError(f"std: expected positive numbers, got {tuple(std)}")
        self.mean = tuple(mean)
        self.std = tuple(std)

    def forward(
        self,
        image: Tensor,  # (C, H, W), floating
    ) -> Tensor:
        """Return the normalized image, (C, H, W).

        Raises:
            ValueError: If the image has another number of channels than the mean.
        """
        if len(image) != len(self.mean):
            raise ValueError(f"mean: expected a number for each of {len(image)} channels, got {len(self.mean)}")
        return (image - image.new_tensor(self.mean).view(-1, 1, 1)) / image.new_tensor(self.std).view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"mean={self.mean}, std={self.std}"


class _Resize(nn.Module):
    """torchvision's resizing, kept within the range of the values: a cubic overshoots at edges."""

    def __init__(self, size: int, interpolation: str) -> None:
        super().__init__()
        transforms = torchvision_transforms()
        self.resize = transforms.Resize((size, size), transforms.InterpolationMode(interpolation))

    def forward(self, image: Tensor) -> Tensor:
        resized: Tensor = self.resize(image)
        return resized.clamp(0, 1) if image.is_floating_point() else resized


def _floating(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[nn.Module]:
    """Return the last steps of a view: floating values, normalized if there is a mean."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean, std: expected both or neither, got {mean} and {std}")
    return [ToFloat()] if mean is None or std is None else [ToFloat(), Normalize(mean, std)]
