"""The small networks for scans of 8 x 8 pixels."""

import torch
from torch import nn


def digits_network(channels: int = 1) -> nn.Module:
    """Return three convolutions from (B, ``channels``, 8, 8) to (B, 2048)."""
    return _channels_last(*_two_blocks(channels), *_block(64, 512), nn.Flatten())


def digits_linear_network(channels: int = 1) -> nn.Module:
    """Return two convolutions and a linear layer from (B, ``channels``, 8, 8) to (B, 512), a third of the work."""
    linear = nn.Linear(64 * 2 * 2, 512, bias=False)
    return _channels_last(*_two_blocks(channels), nn.Flatten(), linear, nn.BatchNorm1d(512), nn.ReLU(inplace=True))


def _channels_last(*layers: nn.Module) -> nn.Module:
    # Channels last halves the time of these convolutions on a CPU.
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _two_blocks(channels: int) -> list[nn.Module]:
    return [*_block(channels, 32), nn.MaxPool2d(2), *_block(32, 64), nn.MaxPool2d(2)]


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
