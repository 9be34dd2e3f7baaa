"""Random views of whole batches: the parameters of all images drawn at once, the pixels by one op."""

import inspect
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepclust_ext.data._checks import (
    check_images,
    check_interval,
    check_sequence,
)
from deepclust_ext.data.draws import drawn
from deepclust_ext.data.operations import LEVELS, OPERATIONS, operation_table
from deepclust_ext.ops._checks import check_fraction, check_integer, check_non_negative, check_size, counted
from deepclust_ext.ops.augment_views import augment_views
from deepclust_ext.reference.augment_views import STEPS

_CROP_ATTEMPTS = 10  # boxes drawn for an image until one lies within it, as torchvision draws them
_JITTER = ("brightness", "contrast", "saturation", "hue")
_STEPS = (*_JITTER, "gray", "blur")
_HALF = 128 / 255  # from where on a value is solarized, Pillow's default
#: Each order of the steps (6, 24): the jitter's in any, then gray and blur.
_ORDERS = torch.tensor([(*order, 4, 5) for order in itertools.permutations(range(4))], device="cpu").T


class RandomViews(nn.Module):
    """Random views of whole batches: crop, flip, color jitter, gray; on request blur, solarization and more.

    The defaults are those of SACC for CIFAR; with ``mean`` and ``std`` they are those of HaDis. Each step is
    torchvision's, drawn with its distributions: the crop of ``RandomResizedCrop``, the factors and the random order of
    ``ColorJitter``. Steps work on floating values between 0 and 1; images without three channels keep their colors.

    The module maps images (B, C, H, W), or a sequence of (C, H, W) of any sizes, uint8, uint16 or floating in [0, 1],
    to (B, C, ``size``, ``size``). The result is float32 for integers, and has the dtype of floating images.

    All numbers are drawn on the CPU, so a seed gives the same views on every device.

    The operations are drawn with replacement from 14, each with its own strength: identity, autocontrast, equalize,
    brightness, color, contrast, sharpness, posterize, solarize, rotate, and shear and shift along x and y. They are
    those of RandAugment (arXiv 1909.13719) in the ranges of FixMatch (arXiv 2001.07685). A level l of 10 means

    * brightness, color, contrast, sharpness: the factor 0.05 + 0.09 l, at most 0.95;
    * posterize: 4 + 0.4 l bits, rounded down;
    * solarize: values from (256 - 25.6 l) / 255 on are inverted;
    * rotate: 3 l degrees; shear: 0.03 l; shift: 3 l percent of the side, in whole pixels. Each goes in either
      direction, takes the nearest pixel's value, and is black outside the image.

    Args:
        size: Side of the views in pixels.
        scale: Smallest and largest share of the area that a crop has.
        ratio: Smallest and largest ratio of a crop's sides.
        flip_p: Probability of a flip of left and right.
        jitter: By how much brightness, contrast and saturation differ from 1 at most, and hue from 0.
        jitter_p: Probability of the jitter.
        grayscale_p: Probability of gray.
        blur_p: Probability of a Gaussian blur.
        blur_kernel: Side of the blur's kernel in pixels, odd; smaller if the view is too small for it.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels.
        solarize_p: Probability that values from 128 / 255 on are then inverted.
        num_operations: Number of operations that follow.
        operation_p: Probability that such an operation is applied.
        levels: Lowest and highest level of these operations, of 10.
        mean: What is subtracted from each channel at the end; None for no normalization.
        std: What each channel is then divided by.
        generator: Source of the random numbers, on the CPU; by default torch's global one.

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
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip_p: float = 0.5,
        jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_p: float = 0.0,
        blur_kernel: int = 23,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        solarize_p: float = 0.0,
        num_operations: int = 0,
        operation_p: float = 0.5,
        levels: Sequence[int] = (1, 9),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_size(size, "size")
        check_interval("scale", scale, most=1)
        check_interval("ratio", ratio)
        check_interval("blur_sigma", blur_sigma)
        probabilities = {"flip_p": flip_p, "jitter_p": jitter_p, "grayscale_p": grayscale_p, "blur_p": blur_p}
        for name, value in (probabilities | {"solarize_p": solarize_p, "operation_p": operation_p}).items():
            check_fraction(value, name)
        check_sequence("jitter", jitter)
        if len(jitter) != 4:
            raise ValueError(f"jitter: expected brightness, contrast, saturation and hue, got {jitter}")
        for value in jitter:
            check_non_negative(value, "jitter")
        if jitter[3] > 0.5:  # half of the circle of colors
            raise ValueError(f"jitter: expected a hue of at most 0.5, got {jitter[3]}")
        check_integer(blur_kernel, "blur_kernel", 1)
        if blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: expected an odd number, got {blur_kernel}")
        check_integer(num_operations, "num_operations", 0)
        check_sequence("levels", levels)
        for level in levels:
            check_integer(level, "levels", 0)
        if len(levels) != 2 or not levels[0] <= levels[1] <= LEVELS:
            raise ValueError(f"levels: expected two levels of 0 to {LEVELS}, the lower first, got {tuple(levels)}")
        check_normalization(mean, std)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
        self.size = size
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p = flip_p, jitter_p, grayscale_p, blur_p
        self.jitter = tuple(jitter)
        self.blur_kernel, self.blur_sigma = blur_kernel, tuple(blur_sigma)
        self.solarize_p = solarize_p
        self.num_operations, self.operation_p, self.levels = num_operations, operation_p, tuple(levels)
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.generator = generator

    def forward(
        self,
        images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W)
    ) -> Tensor:
        """Return a view of every image, (B, C, size, size).

        Raises:
            TypeError: If the images are no tensors, or of another integer dtype than uint8 and uint16.
            ValueError: If there is none, a shape does not fit, or ``mean`` has another number of channels.
        """
        check_images(images)
        device, dtype = images[0].device, images[0].dtype
        if isinstance(images, Tensor):
            sides = torch.tensor([images.shape[-2:]], device="cpu").expand(len(images), -1)
        else:
            sides = torch.tensor([image.shape[-2:] for image in images], device="cpu")
        parameters = self.draw(sides)
        parameters = {name: values.to(device, non_blocking=True) for name, values in parameters.items()}
        views = augment_views(
            images,
            size=self.size,
            boxes=parameters["boxes"],
            flips=parameters["flips"],
            steps=parameters["steps"],
            strengths=parameters["strengths"],
            blur_kernel=self.blur_kernel,
            mean=self.mean,
            std=self.std,
            dtype=dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32,
        )
        return views.double() if dtype == torch.float64 else views

    def draw(
        self,
        sides: Tensor,  # (B, 2) int64
    ) -> dict[str, Tensor]:
        """Draw the parameters of a view of every image.

        Args:
            sides: Height and width of the images, on the CPU.

        Returns:
            Boxes (B, 4) int64, flips (B,) bool, steps (B, S) int64 and strengths (B, S) float32, by their names in
            :func:`deepclust_ext.augment_views`.
        """
        # All numbers at once, in few calls: each takes microseconds, as a view of 32 pixels does.
        low, high = torch.tensor([*zip(*self._ranges(), strict=True)], dtype=torch.float32, device="cpu").unsqueeze(2)
        count, generator = len(low), self.generator
        shares = drawn(
            lambda n: torch.rand(count, n, generator=generator, dtype=torch.float32, device="cpu"), len(sides), dim=1
        )
        attempts, extra, solarized = _CROP_ATTEMPTS, self.num_operations, int(self.solarize_p > 0)
        areas, ratios, places, order, strengths, operations, below = torch.lerp(low, high, shares).split(
            [attempts, attempts, 2, 1, len(_STEPS), extra, 4 + solarized + extra]
        )
        flips, applied = below[0] < 0, torch.cat([below[1:2].expand(len(_JITTER), -1), below[2:]]) < 0
        # What never changes anything is no step: a hue turned by 0 is not the same to the bit.
        amounts = dict(zip(_JITTER, self.jitter, strict=True))
        numbers = [STEPS.index(name) if amounts.get(name, 1) else 0 for name in _STEPS]
        rows = _ORDERS[:, order[0].long()]
        steps, strengths = torch.tensor(numbers, device="cpu")[rows], strengths.gather(0, rows)
        if solarized:
            number = steps.new_full((1, len(sides)), STEPS.index("solarize"))
            steps, strengths = torch.cat([steps, number]), torch.cat([strengths, torch.full_like(strengths[:1], _HALF)])
        if extra:
            step_of, strength_of = operation_table(self.size, *self.levels)
            chosen = operations.long()
            steps, strengths = torch.cat([steps, step_of[chosen]]), torch.cat([strengths, strength_of[chosen]])
        return {
            "boxes": self._boxes(sides.T.float(), areas, ratios, places),
            "flips": flips,
            "steps": (steps * applied).T.contiguous(),
            "strengths": strengths.T.contiguous(),
        }

    def _ranges(self) -> list[tuple[float, ...]]:
        """Return the interval of each random number of an image, in the order in which ``draw`` uses them.

        Whole numbers are rounded down. An event of probability p happens if a number from -p to 1 - p is below 0.
        """
        extra = self.num_operations
        probabilities = [self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p]
        probabilities += ([self.solarize_p] if self.solarize_p else []) + extra * [self.operation_p]
        return [
            *_CROP_ATTEMPTS * [self.scale],
            *_CROP_ATTEMPTS * [(math.log(self.ratio[0]) / 2, math.log(self.ratio[1]) / 2)],
            *2 * [(0.0, 1.0)],
            (0.0, _ORDERS.shape[1]),
            *((max(0.0, 1 - amount), 1 + amount) for amount in self.jitter[:3]),
            (-self.jitter[3], self.jitter[3]),
            (0.0, 0.0),  # gray has no strength
            self.blur_sigma,
            *extra * [(0.0, 2 * len(OPERATIONS) * (self.levels[1] - self.levels[0] + 1))],
            *((-probability, 1 - probability) for probability in probabilities),
        ]

    def _boxes(
        self,
        sides: Tensor,  # (2, B)
        areas: Tensor,  # (10, B) shares of the image's
        ratios: Tensor,  # (10, B) logarithms of the ratio's root
        places: Tensor,  # (2, B) in [0, 1)
    ) -> Tensor:
        """Return top, left, height, width (B, 4): the first of ten crops that fits, else the largest in the middle."""
        side, stretch = (sides.prod(0) * areas).sqrt(), ratios.exp()
        crops = torch.stack([side / stretch, side * stretch]).round_()
        found, first = ((crops > 0) & (crops <= sides.unsqueeze(1))).all(0).max(0)
        crop = crops.gather(1, first.expand(2, 1, -1)).squeeze(1)
        corner = (places * (sides - crop + 1)).floor()
        if not found.all():  # too narrow or too wide an image for any: its whole height or width
            height, width = sides
            flat, tall = width / height > self.ratio[1], width / height < self.ratio[0]
            all_wide = torch.where(flat, (height * self.ratio[1]).round(), width)
            all_high = torch.where(tall, (width / self.ratio[0]).round(), height)
            crop = torch.where(found, crop, torch.stack([all_high, all_wide]))
            corner = torch.where(found, corner, (sides - crop).div(2, rounding_mode="floor"))
        return torch.cat([corner, crop]).T.long()

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        names = [name for name in inspect.signature(RandomViews).parameters if name not in ("size", "generator")]
        return ", ".join([str(self.size), *(f"{name}={getattr(self, name)}" for name in names)])


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Require both or neither, of one length, finite, and the deviations positive; ValueError otherwise."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean, std: expected both or neither, got {mean} and {std}")
    if mean is None or std is None:
        return
    check_sequence("mean", mean)
    check_sequence("std", std)
    if len(mean) != len(std):
        raise ValueError(f"std: expected {counted(len(mean), 'number')} like mean, got {len(std)}")
    if not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean: expected finite numbers, got {tuple(mean)}")
    if not all(0 < deviation < math.inf for deviation in std):
        raise ValueError(f"std: expected positive numbers, got {tuple(std)}")
