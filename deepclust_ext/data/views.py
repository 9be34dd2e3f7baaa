"""Views of images by name and numbers, random ones to learn from and a plain one to test with."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deepclust_ext.data._checks import check_images, in_float32
from deepclust_ext.data.augment import RandomAffine, RandomGamma, RandomTurn
from deepclust_ext.data.neighbors import NeighborView
from deepclust_ext.data.noise import RandomNoise
from deepclust_ext.data.random_views import RandomViews, check_normalization
from deepclust_ext.ops._checks import check_size, check_type
from deepclust_ext.ops.augment_views import augment_views

# Mean and deviation of each channel's values in [0, 1]. CIFAR's are those that most published code carries; its
# deviations for CIFAR-10 are means over images, below the 0.247, 0.244, 0.262 of all pixels together.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
#: torchvision's, for all of its weights of ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weak_view(size: int, **settings: Any) -> nn.Module:
    """Return the augmentation of contrastive learning: crop, flip, color jitter, gray.

    The defaults are those of SACC for CIFAR. With ``mean`` and ``std`` they are those of HaDis. For photographs of 224
    pixels SACC takes ``jitter=(0.8, 0.8, 0.8, 0.2)`` and ``blur_p=0.5``.

    Args:
        size: Side of the result in pixels.
        **settings: Other arguments of :class:`~deepclust_ext.data.RandomViews`.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is unknown or lies outside its range.
    """
    return make_view("contrastive", size=size, **settings)


#: What SACC's strong view changes of the defaults. Its flip comes after the blur, which makes no difference.
STRONG = {"blur_p": 0.5, "num_operations": 5, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}

#: The second of the two views that PICI's authors released; their first one has a ``solarize_p`` of 0.
BYOL = {"jitter": (0.4, 0.4, 0.2, 0.1), "blur_p": 1.0, "solarize_p": 0.2, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def strong_view(size: int, **settings: Any) -> nn.Module:
    """Return SACC's strong augmentation: :func:`weak_view` with blur, five operations and ImageNet's normalization.

    Args:
        size: Side of the result in pixels.
        **settings: Other arguments of :class:`~deepclust_ext.data.RandomViews`.

    Raises:
        ValueError: If a setting is unknown or lies outside its range.
    """
    return make_view("strong", size=size, **settings)


class ResizeView(nn.Module):
    """The view to test with, which draws nothing: resized to a square, with antialias, and normalized.

    HaDis takes the default interpolation, with its ``mean`` and ``std``. SACC takes 224 pixels, "bilinear", and no
    normalization. The module maps images (B, C, H, W) or a sequence of (C, H, W), uint8, uint16 or floating in [0, 1],
    to (B, C, ``size``, ``size``). The result is float32 for integers, and has the dtype of floating images. An image
    that already has the size is not resized.

    Args:
        size: Side of the result in pixels.
        interpolation: "bicubic", with values clamped to 0 and 1, or "bilinear".
        mean: What is subtracted from each channel; None for no normalization.
        std: What each channel is then divided by.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range.
    """

    any_size = True  # a batch may be a list of images of different sizes
    draws_by_image = True

    def __init__(
        self,
        size: int,
        *,
        interpolation: str = "bicubic",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_size(size, "size")
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation: expected 'bicubic' or 'bilinear', got {interpolation!r}")
        check_normalization(mean, std)
        self.size, self.interpolation, self.mean, self.std = size, interpolation, mean, std

    def forward(
        self,
        images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W)
    ) -> Tensor:
        """Return the resized images, (B, C, size, size).

        Raises:
            TypeError: If the images are no tensors, or of another integer dtype than uint8 and uint16.
            ValueError: If there is none, a shape does not fit, or ``mean`` has another number of channels.
        """
        check_images(images)
        dtype = images[0].dtype
        view_dtype = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
        if self.interpolation == "bicubic":  # the op resizes by lines alone, and leaves what has the size already
            if isinstance(images, Tensor):
                images = self._bicubic(images)
            else:
                images = [self._bicubic(image[None])[0] for image in images]
        views = augment_views(images, size=self.size, mean=self.mean, std=self.std, dtype=view_dtype)
        return views.double() if dtype == torch.float64 else views

    def _bicubic(self, images: Tensor) -> Tensor:
        values = in_float32(images).float()
        if images.shape[-2:] == (self.size, self.size):
            return values
        return interpolate(values, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"{self.size}, interpolation={self.interpolation!r}, mean={self.mean}, std={self.std}"


def resize_view(size: int, **settings: Any) -> nn.Module:
    """Return the view to test with, :class:`ResizeView`.

    Args:
        size: Side of the result in pixels.
        **settings: Other arguments of :class:`ResizeView`.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is unknown or lies outside its range.
    """
    return make_view("resize", size=size, **settings)


class IdentityView(nn.Identity):
    """The unchanged images, which must be floating, as features are."""

    draws_by_image = True

    def __init__(self) -> None:  # without it the constructor seems to take any arguments
        super().__init__()


class _PlacedSequential(nn.Sequential):
    """Views one after the other, some of which need to know which images of the data set these are."""

    takes_places = True

    def forward(  # type: ignore[override]
        self,
        images: Any,  # (B, C, H, W)
        places: Tensor,  # (B,)
    ) -> Tensor:
        """Return what the last view makes of the images."""
        for view in self:
            images = seen_by(view, images, places)
        return images  # type: ignore[no-any-return]


def takes_places(*views: object) -> bool:
    """Return whether a view needs to know the indices of its images in the data set, as neighbors do."""
    return any(getattr(view, "takes_places", False) for view in views)


def seen_by(
    view: Callable[..., Tensor],
    images: Any,  # (B, C, H, W), or where the view takes them a list of (C, H, W)
    places: Tensor,  # (B,)
) -> Tensor:
    """Return a view of images; if the view takes their indices in the data set, it gets them."""
    return view(images, places) if takes_places(view) else view(images)


def sequential(views: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Return several views one after the other, each given as the arguments of :func:`make_view`."""
    parts = [make_view(**view) for view in views]
    made = (_PlacedSequential if takes_places(*parts) else nn.Sequential)(*parts)
    vars(made)["any_size"] = any(getattr(view, "any_size", False) for view in made[:1])  # it makes them of one size
    return made


#: Name -> what makes the view, and what is changed of its defaults.
VIEWS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "contrastive": (RandomViews, {}),
    "strong": (RandomViews, STRONG),
    "byol": (RandomViews, BYOL),
    "resize": (ResizeView, {}),
    "affine": (RandomAffine, {}),
    "gamma": (RandomGamma, {}),
    "turn": (RandomTurn, {}),
    "noise": (RandomNoise, {}),
    "neighbor": (NeighborView, {}),
    "identity": (IdentityView, {}),
    "sequential": (sequential, {}),
}


def make_view(name: str, **settings: Any) -> nn.Module:
    """Return a view by its name in ``VIEWS``, as in a recipe.

    Example:
        >>> make_view("sequential", views=[{"name": "affine", "degrees": 10.0}, {"name": "gamma"}])
        Sequential(
          (0): RandomAffine(degrees=10.0, shear=0.15, scale=0.15, stretch=0.075, shift=0.125)
          (1): RandomGamma(gamma=0.7)
        )

    Args:
        name: "contrastive" is :class:`~deepclust_ext.data.RandomViews`, "strong" the same with the settings of
            :func:`strong_view`, "byol" the same with those of PICI's released code, "resize"
            :class:`~deepclust_ext.data.ResizeView`, "affine" :class:`~deepclust_ext.data.RandomAffine`, "gamma"
            :class:`~deepclust_ext.data.RandomGamma`, "turn" :class:`~deepclust_ext.data.RandomTurn`, "noise"
            :class:`~deepclust_ext.data.RandomNoise`, "neighbor" :class:`~deepclust_ext.data.NeighborView`, "identity"
            the unchanged images, and "sequential" :func:`sequential`.
        **settings: The arguments of the view.

    Raises:
        TypeError: If the name is no text.
        ValueError: If the name or a setting is unknown, a setting is missing, or one lies outside its range.
    """
    check_type(name, "name", str, "the name of a view")
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
    """Apply a transform to each image of a batch by itself; torchvision's draw one set of random numbers per call.

    uint8 and uint16 become float32 between 0 and 1 first, as in all views here. Half precision is transformed in
    float32, and the result is in its dtype.

    Args:
        transform: Maps a floating image (C, H, W) to another one; all results have one size.
    """

    any_size = True  # a batch may be a list of images of different sizes

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(
        self,
        images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W), of any sizes
    ) -> Tensor:
        """Return the transformed images, (B, C, H', W').

        Raises:
            TypeError: If the images are of another integer dtype.
            ValueError: If there is none, or a shape does not fit.
        """
        check_images(images)
        results = []
        for image in images:
            with torch.autocast(image.device.type, enabled=False):
                result = self.transform(in_float32(image))
            results.append(result.to(image.dtype) if image.is_floating_point() else result)
        return torch.stack(results)
