"""A small vision transformer for scans, whose tokens are made by convolutions."""

import torch
from torch import Tensor, nn

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer

#: Channels after the first convolution; each further one doubles them.
FIRST = 16


class StemTransformer(VisionTransformer):
    """A vision transformer whose tokens come from convolutions, which learn faster from few images than a linear layer.

    Each convolution, of 3 x 3 with batch normalization and ReLU, halves the plane, until it has one pixel for each
    patch. A linear layer makes the token of that pixel. Source: Early Convolutions Help Transformers See Better,
    https://arxiv.org/abs/2106.14881.

    The stem works on the whole image. So the token of a patch with side p also depends on p - 1 pixels above the patch
    and to its left, and hidden patches are not completely hidden.

    Args:
        image_size: Side of the images in pixels.
        patch_size: Side of a patch in pixels, a power of two.
        width: Width of a token, see :class:`VisionTransformer`.
        depth: Number of blocks.
        heads: Of each attention.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        channels: Of the images.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an integer is below 1, or does not divide what it has to, or the patch is no power of two.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: int, channels: int
    ) -> None:
        super().__init__(image_size, patch_size, width, depth, heads, mlp_ratio, channels)
        if self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size: expected a power of two, got {patch_size}")
        layers: list[nn.Module] = []
        before, after = self.channels, FIRST
        for _ in range(self.patch_size.bit_length() - 1):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before, after = after, 2 * after
        # Channels last halves the time of these convolutions on a CPU.
        self.stem = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.embedding = nn.Linear(before, self.width)

        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)

    def _embedded(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor | None,  # (B, kept)
    ) -> Tensor:
        """Return the tokens of patches without their positions, (B, kept, ``width``)."""
        self._check_images(images)
        planes = self.stem(images.contiguous(memory_format=torch.channels_last))
        rows = planes.flatten(2).transpose(1, 2)  # (B, L, channels of the stem)
        if keep is not None:
            rows = rows.gather(1, keep.unsqueeze(2).expand(-1, -1, rows.shape[2]))
        tokens: Tensor = self.embedding(rows)
        return tokens
