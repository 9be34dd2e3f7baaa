"""The random operations of SACC's strong view. Needs torchvision, the extra `vision`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepclust_ext.data._checks import check_count, check_image, check_probability, in_float32


class RandomOperations(nn.Module):
    """Change an image by operations that are drawn with replacement from 14, each of a strength drawn for itself.

    The operations are identity, autocontrast, equalize, brightness, color, contrast, sharpness, posterize, solarize,
    rotate, shear and shift along x and y: those of RandAugment (arXiv 1909.13719) in the ranges of FixMatch
    (arXiv 2001.07685). A level l of 10 means

    * brightness, color, contrast, sharpness: the factor 0.05 + 0.09 l, so at most the image itself;
    * posterize: 4 bits and a tenth of 4 l, rounded down;
    * solarize: values from 256 - 25.6 l of 255 on are inverted;
    * rotate: 3 l degrees; shear: 0.03 l; shift: 3 l percent of the side, in whole pixels; either way, with black
      where nothing was, and the nearest pixel's value.

    Random numbers come from torch's global generator.

    Args:
        num_operations: How many are drawn.
        operation_p: Probability that a drawn one is applied.
        levels: Lowest and highest level, both drawn as often as those between.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
        TypeError: If an argument is no number.
        ValueError: If an argument lies outside its range.
    """

    def __init__(
        self,
        num_operations: int = 5,
        operation_p: float = 0.5,
        levels: Sequence[int] = (1, 9),
    ) -> None:
        super().__init__()
        check_count("num_operations", num_operations, least=0)
        check_probability("operation_p", operation_p)
        for level in levels:
            check_count("levels", level, least=0)
        if len(levels) != 2 or not levels[0] <= levels[1] <= 10:
            raise ValueError(f"levels: expected two levels of 0 to 10, the lower first, got {tuple(levels)}")
        self.num_operations = num_operations
        self.operation_p = operation_p
        self.levels = tuple(levels)
        torchvision_transforms()  # tells early that it is missing

    def forward(
        self,
        image: Tensor,  # (C, H, W), uint8 or floating in [0, 1], 1 or 3 channels
    ) -> Tensor:
        """Return the changed image, (C, H, W), in its dtype; half precision is computed in float32.

        Raises:
            TypeError: If the image is of another integer dtype.
            ValueError: If its shape does not fit.
        """
        check_image(image, channels=(1, 3))
        functional, names = torchvision_transforms().functional, list(OPERATIONS)
        low, high = self.levels
        changed = in_float32(image)
        with torch.autocast(image.device.type, enabled=False):
            for _ in range(self.num_operations):
                name = names[int(torch.randint(len(names), (), device="cpu"))]
                level = int(torch.randint(low, high + 1, (), device="cpu"))
                sign = 1 if torch.rand((), dtype=torch.float32, device="cpu") < 0.5 else -1
                if torch.rand((), dtype=torch.float32, device="cpu") < self.operation_p:
                    changed = OPERATIONS[name](functional, changed, level, sign)
        return changed.to(image.dtype)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"num_operations={self.num_operations}, operation_p={self.operation_p}, levels={self.levels}"


def torchvision_transforms() -> Any:
    """Return torchvision.transforms.v2.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, OSError, RuntimeError) as error:  # the latter two for a torchvision of another torch
        message = f"torchvision cannot be imported ({error}); pip install 'deepclust_ext[vision]'"
        raise ImportError(message) from error
    return v2


def _factor(level: int) -> float:
    return 0.05 + 0.09 * level


def _solarize(functional: Any, image: Tensor, level: int, sign: int) -> Any:
    threshold = 256 - int(25.6 * level)
    return functional.solarize(image, threshold / 255 if image.is_floating_point() else threshold)


def _move(
    functional: Any, image: Tensor, *, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
) -> Any:
    """Return the image moved by whole pixels and sheared about its upper left corner."""
    degrees = [math.degrees(math.atan(factor)) for factor in shear]
    return functional.affine(image, angle=0.0, translate=list(shift), scale=1.0, shear=degrees, center=[0.0, 0.0])


def _shift(level: int, sign: int, side: int) -> int:
    return sign * int(0.03 * level * side)


#: Name -> function of torchvision's functional module, an image (C, H, W), a level of 10 and a direction, 1 or -1.
OPERATIONS: dict[str, Callable[[Any, Tensor, int, int], Any]] = {
    "identity": lambda functional, image, level, sign: image,
    "autocontrast": lambda functional, image, level, sign: functional.autocontrast(image),
    "equalize": lambda functional, image, level, sign: functional.equalize(image),
    "brightness": lambda functional, image, level, sign: functional.adjust_brightness(image, _factor(level)),
    "color": lambda functional, image, level, sign: functional.adjust_saturation(image, _factor(level)),
    "contrast": lambda functional, image, level, sign: functional.adjust_contrast(image, _factor(level)),
    "sharpness": lambda functional, image, level, sign: functional.adjust_sharpness(image, _factor(level)),
    "posterize": lambda functional, image, level, sign: functional.posterize(image, 4 + int(0.4 * level)),
    "solarize": _solarize,
    "rotate": lambda functional, image, level, sign: functional.rotate(image, 3.0 * sign * level),
    "shear_x": lambda functional, image, level, sign: _move(functional, image, shear=(0.03 * sign * level, 0.0)),
    "shear_y": lambda functional, image, level, sign: _move(functional, image, shear=(0.0, 0.03 * sign * level)),
    "shift_x": lambda functional, image, level, sign: _move(
        functional, image, shift=(_shift(level, sign, image.shape[-1]), 0)
    ),
    "shift_y": lambda functional, image, level, sign: _move(
        functional, image, shift=(0, _shift(level, sign, image.shape[-2]))
    ),
}
