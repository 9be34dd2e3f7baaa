"""The small networks, for scans of 8 to 64 pixels."""

import torch
from torch import nn

from deepclust_ext.ops._checks import check_integer, check_size

#: Width of the linear layer, and of the blocks but the last, from the end; all further ones are as narrow as the third.
LINEAR_WIDTH, WIDTHS = 512, (64, 32, 16)
#: A plane is halved until its side is at most this: 8, 16, 32 and 64 pixels end at 2, 28 at 3.
LAST_SIDE = 3
SIDES = (8, 64)
#: Above it the first convolution halves the plane, which would take half of the time otherwise.
LARGEST_WHOLE_SIDE = 16


def small_network(image_size: int, channels: int = 1, width: int = 256) -> nn.Module:
    """Return a network from (B, ``channels``, S, S) to (B, ``width`` s s), S halved to an s of 2 or 3.

    Each block is a convolution, batch normalization and ReLU. After each block but the last, max-pooling halves the
    plane. Convolutions are 3 x 3; above 16 pixels the first one is 5 x 5 and also halves the plane. A side of 8 or 28
    has three blocks, of 16 and 32 four and of 64 five. Widths double towards the end, because wide blocks on large
    planes would take nearly all of the time. For 8 pixels and a width of 512 this is the network "digits".

    Args:
        image_size: S, from 8 to 64.
        channels: Of the images.
        width: Of the last block.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is out of range.
    """
    width = check_size(width, "width")
    return _channels_last(*_blocks(image_size, channels), *_block(WIDTHS[0], width), nn.Flatten())


def small_linear_network(image_size: int, channels: int = 1) -> nn.Module:
    """Return a network from (B, ``channels``, S, S) to (B, 512), with a third of the work of :func:`small_network`.

    A linear layer with batch normalization and ReLU replaces the last block. For 8 pixels this is the
    network "digits-linear".

    Args:
        image_size: S, from 8 to 64.
        channels: Of the images.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is out of range.
    """
    *_, side = _sides(image_size)
    linear = nn.Linear(
        WIDTHS[0] * side**2, LINEAR_WIDTH, bias=False
    )  # before the blocks: a seed gives the weights it gave
    norm = nn.BatchNorm1d(LINEAR_WIDTH)
    return _channels_last(*_blocks(image_size, channels), nn.Flatten(), linear, norm, nn.ReLU(inplace=True))


def _sides(image_size: int) -> list[int]:
    """Return the side of the plane before each halving by maxima, and in the end."""
    side = check_integer(image_size, "image_size", *SIDES)
    sides = [(side + 1) // 2 if side > LARGEST_WHOLE_SIDE else side]
    while sides[-1] > LAST_SIDE:
        sides.append(sides[-1] // 2)
    return sides


def _blocks(image_size: int, channels: int) -> list[nn.Module]:
    """Return all blocks but the last, each with its halving."""
    count = len(_sides(image_size)) - 1
    channels = check_size(channels, "channels")
    widths = [WIDTHS[min(left, len(WIDTHS) - 1)] for left in reversed(range(count))]
    layers: list[nn.Module] = []
    for before, width in zip([channels, *widths], widths, strict=False):
        strided = not layers and image_size > LARGEST_WHOLE_SIDE
        layers += [*_block(before, width, strided=strided), nn.MaxPool2d(2)]
    return layers


def _channels_last(*layers: nn.Module) -> nn.Module:
    # Channels last halves the time of these convolutions on a CPU.
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _block(in_channels: int, out_channels: int, *, strided: bool = False) -> list[nn.Module]:
    side, stride = (5, 2) if strided else (3, 1)
    convolution = nn.Conv2d(in_channels, out_channels, side, stride, padding=side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
