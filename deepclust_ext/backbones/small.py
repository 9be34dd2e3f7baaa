"""The small networks for scans: of 8 x 8 pixels by hand, of any side up to 64 by the same rule."""

import torch
from torch import nn

from deepclust_ext.ops._checks import check_integer

#: Width of the last block, and of those before it from the last to the first; further ones are as narrow as the last.
LAST_WIDTH, WIDTHS = 512, (64, 32, 16)
#: A plane is halved until its side is at most this: 8, 16, 32 and 64 pixels end at 2, 28 at 3.
LAST_SIDE = 3
SIDES = (8, 64)
#: Above it the first convolution halves the plane, which would take half of the time otherwise.
LARGEST_WHOLE_SIDE = 16


def digits_network(channels: int = 1) -> nn.Module:
    """Return three convolutions from (B, ``channels``, 8, 8) to (B, 2048)."""
    return _channels_last(*_two_blocks(channels), *_block(64, 512), nn.Flatten())


def digits_linear_network(channels: int = 1) -> nn.Module:
    """Return two convolutions and a linear layer from (B, ``channels``, 8, 8) to (B, 512), a third of the work."""
    linear = nn.Linear(64 * 2 * 2, 512, bias=False)
    return _channels_last(*_two_blocks(channels), nn.Flatten(), linear, nn.BatchNorm1d(512), nn.ReLU(inplace=True))


def small_network(image_size: int, channels: int = 1) -> nn.Module:
    """Return a network from (B, ``channels``, S, S) to (B, 512 s s), s the 2 or 3 pixels to which S is halved.

    Each block is a convolution, batch normalization and ReLU. After all but the last the plane is halved by maxima.
    Above 16 pixels the first convolution is of 5 x 5 and halves it too, else of 3 x 3 as all others are: a side of 8
    has three blocks, of 28 three, of 16 and 32 four and of 64 five. Widths double towards the end, because wide blocks
    on large planes take nearly all of the time. At 8 pixels these are the layers of :func:`digits_network`.

    Args:
        image_size: S, from 8 to 64.
        channels: Of the images.

    Raises:
        TypeError: If the size is no integer.
        ValueError: If the size is out of range.
    """
    side = check_integer(image_size, "image_size", *SIDES)
    strided = side > LARGEST_WHOLE_SIDE
    side = (side + 1) // 2 if strided else side
    halvings = 0
    while side > LAST_SIDE:
        side, halvings = side // 2, halvings + 1
    widths = [WIDTHS[min(left, len(WIDTHS) - 1)] for left in reversed(range(halvings))]
    layers: list[nn.Module] = []
    for before, width in zip([channels, *widths], widths, strict=False):
        layers += [*_block(before, width, strided=strided and not layers), nn.MaxPool2d(2)]
    return _channels_last(*layers, *_block(widths[-1], LAST_WIDTH), nn.Flatten())


def _channels_last(*layers: nn.Module) -> nn.Module:
    # Channels last halves the time of these convolutions on a CPU.
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _two_blocks(channels: int) -> list[nn.Module]:
    return [*_block(channels, 32), nn.MaxPool2d(2), *_block(32, 64), nn.MaxPool2d(2)]


def _block(in_channels: int, out_channels: int, *, strided: bool = False) -> list[nn.Module]:
    side, stride = (5, 2) if strided else (3, 1)
    convolution = nn.Conv2d(in_channels, out_channels, side, stride, padding=side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
