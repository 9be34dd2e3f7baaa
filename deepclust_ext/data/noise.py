"""Noise on the values of a batch."""

import torch
from torch import Tensor, nn

from deepclust_ext.data._checks import check_images, in_float32
from deepclust_ext.data.draws import drawn
from deepclust_ext.ops._checks import check_non_negative


class RandomNoise(nn.Module):
    """Add Gaussian noise to every value, from torch's global generator of the batch's device; nothing is clipped.

    It is drawn in float32, so a seed draws the same numbers for every dtype.

    Args:
        std: Its standard deviation.

    Raises:
        TypeError: If ``std`` is no number.
        ValueError: If ``std`` is negative or not finite.
    """

    draws_by_image = True

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = check_non_negative(std, "std")

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the images (B, C, H, W) with noise, in their dtype; uint8 and uint16 become float32.

        Raises:
            TypeError: If ``images`` is of another dtype.
            ValueError: If ``images`` is not four-dimensional.
        """
        check_images(images)
        wide = in_float32(images)
        shape, device = wide.shape[1:], wide.device
        noise = drawn(lambda n: torch.randn((n, *shape), dtype=torch.float32, device=device), len(wide))
        noisy = wide + self.std * noise
        return noisy.to(images.dtype) if images.is_floating_point() else noisy

    def extra_repr(self) -> str:
        """Show the argument when the module is printed."""
        return f"std={self.std}"
