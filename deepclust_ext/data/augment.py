"""Augmentation of whole batches on tensors, without a loop over images."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from deepclust_ext.data._checks import check_image_tensor, in_float32
from deepclust_ext.data.draws import drawn
from deepclust_ext.ops._checks import check_non_negative


class RandomAffine(nn.Module):
    """Rotate, shear, scale, stretch and shift every image of a batch by its own random amounts.

    All five are drawn uniformly from an interval around "no change" and composed into one bilinear resampling with
    zeros outside the image. Rotation and shear are measured in pixels, even if the image is not square. There is no
    flip, because a mirrored digit is another sign. Random numbers come from torch's global generator of the batch's
    device, in float32, so a seed draws the same numbers for every dtype.

    Args:
        degrees: Largest rotation.
        shear: Largest shear factor.
        scale: Largest logarithm of the zoom.
        stretch: Largest logarithm of the aspect ratio's square root.
        shift: Largest shift, as a share of the image's side.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If an argument is negative or not finite.
    """

    draws_by_image = True

    def __init__(
        self,
        degrees: float = 15.0,
        shear: float = 0.15,
        scale: float = 0.15,
        stretch: float = 0.075,
        shift: float = 0.125,
    ) -> None:
        super().__init__()
        limits = {"degrees": degrees, "shear": shear, "scale": scale, "stretch": stretch, "shift": shift}
        for name, limit in limits.items():
            check_non_negative(limit, name)
        self.degrees = degrees
        self.shear = shear
        self.scale = scale
        self.stretch = stretch
        self.shift = shift

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the resampled images, (B, C, H, W), in their dtype; half precision is computed in float32.

        uint8 and uint16 become float32 between 0 and 1 first.

        Raises:
            TypeError: If ``images`` is of another dtype.
            ValueError: If ``images`` is not four-dimensional.
        """
        _check_images(images)
        wide = in_float32(images)
        if not images.numel():
            return wide.to(_result_dtype(images), copy=True)
        # The grid spans -1 to 1, so a shift by the whole side is 2.
        limits = (math.radians(self.degrees), self.shear, self.scale, self.stretch, 2 * self.shift, 2 * self.shift)
        device = images.device
        amounts = drawn(lambda n: torch.rand(6, n, device=device, dtype=torch.float32), len(images), dim=1) * 2 - 1
        angle, shear, scale, stretch, right, down = amounts * amounts.new_tensor(limits).unsqueeze(1)
        cos, sin = angle.cos(), angle.sin()
        width, height = (scale + stretch).exp(), (scale - stretch).exp()
        # A step of the grid is as long as the side that it goes along, which a turn mixes.
        ratio = images.shape[2] / images.shape[3]
        above, below = width * (shear * cos - sin) * ratio, height * sin / ratio
        rows = [width * cos, above, right, below, height * (shear * sin + cos), down]
        with torch.autocast(images.device.type, enabled=False):
            changes = torch.stack(rows, dim=1).view(-1, 2, 3).to(wide.dtype)
            grid = affine_grid(changes, list(images.shape), align_corners=False)
            return grid_sample(wide, grid, align_corners=False).to(_result_dtype(images))

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"degrees={self.degrees}, shear={self.shear}, scale={self.scale}, "
            f"stretch={self.stretch}, shift={self.shift}"
        )


class RandomGamma(nn.Module):
    """Raise the brightness of every image of a batch to its own random power: strokes get thicker or thinner.

    The logarithm of the power is drawn uniformly from ``-gamma`` to ``gamma``, by torch's global generator of the
    batch's device. Images are floating, in [0, 1], or uint8 or uint16, which are scaled to that. 0 and 1 do not change.

    Args:
        gamma: Largest logarithm of the power.

    Raises:
        TypeError: If ``gamma`` is no number.
        ValueError: If ``gamma`` is negative or not finite.
    """

    draws_by_image = True

    def __init__(self, gamma: float = 0.7) -> None:
        super().__init__()
        self.gamma = check_non_negative(gamma, "gamma")

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the images (B, C, H, W) with their new brightness, in their dtype; half precision is float32 inside.

        uint8 and uint16 become float32.

        Raises:
            TypeError: If ``images`` is of another dtype.
            ValueError: If ``images`` is not four-dimensional.
        """
        _check_images(images)
        device = images.device
        amounts = drawn(lambda n: torch.rand(n, 1, 1, 1, device=device, dtype=torch.float32), len(images)) * 2 - 1
        wide = in_float32(images)
        return wide.pow((self.gamma * amounts).exp().to(wide.dtype)).to(_result_dtype(images))

    def extra_repr(self) -> str:
        """Show the argument when the module is printed."""
        return f"gamma={self.gamma}"


class RandomTurn(nn.Module):
    """Turn every square image of a batch by its own random multiple of 90 degrees; for images without an up.

    The numbers are drawn from torch's global generator on the CPU. Images are floating, or uint8 or uint16, which
    become float32 between 0 and 1.
    """

    draws_by_image = True

    def __init__(self) -> None:  # without it the constructor seems to take any arguments
        super().__init__()

    def forward(
        self,
        images: Tensor,  # (B, C, S, S)
    ) -> Tensor:
        """Return the turned images (B, C, S, S), in their dtype.

        Raises:
            TypeError: If ``images`` is of another dtype.
            ValueError: If ``images`` is not four-dimensional, or not square.
        """
        _check_images(images)
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected squares (B, C, S, S), got {tuple(images.shape)}")
        turns = drawn(lambda n: torch.randint(4, (n,), device="cpu"), len(images))
        turned = in_float32(images).to(_result_dtype(images), copy=True)
        for quarter in range(1, 4):
            places = (turns == quarter).nonzero().squeeze(1).to(images.device, non_blocking=True)
            turned[places] = torch.rot90(turned[places], quarter, (2, 3))
        return turned


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (B, C, H, W), got {type(images).__name__}")
    if images.dim() != 4:
        raise ValueError(f"images: expected shape (B, C, H, W), got {tuple(images.shape)}")
    check_image_tensor(images)


def _result_dtype(images: Tensor) -> torch.dtype:
    return images.dtype if images.is_floating_point() else torch.float32
