"""Backbones of a user's own for exports, by name, and what is wrong with some."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from deepclust_ext import nearest_neighbors


class Tied(nn.Module):
    """Two layers of one weight, channels last, and a view of a larger tensor."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.second, self.third = nn.Linear(256, 256), nn.Linear(256, 256)
        self.third.weight = self.second.weight
        self.register_buffer("shift", torch.randn(256, 2)[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(torch.cat([images, images], dim=1)).relu().flatten(1)
        shifted: Tensor = self.third(self.second(features).relu()) + self.shift
        return shifted


class Stubborn(nn.BatchNorm2d):
    """A part that never leaves training mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        return super().train(True)


class Searching(nn.Module):
    """A part that calls an operator of this package."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        cosines, _ = nearest_neighbors(rows, torch.eye(64), k=3)
        return cosines


class Chance(nn.Module):
    """A part that is random in evaluation mode too."""

    def forward(self, images: Tensor) -> Tensor:
        return dropout(images.flatten(1), 0.5, training=True)


class OfTwo(nn.Module):
    """A part that takes two images alone."""

    def forward(self, images: Tensor) -> Tensor:
        return (
            images.flatten(1)
            if len(images) == 2
            else images.flatten(1).new_zeros(len(images), 64) * images.max().item()
        )


def pooling() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), nn.Flatten())


def tied() -> nn.Module:
    return Tied()


def stubborn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), Stubborn(1), nn.Flatten())


def searching() -> nn.Module:
    return Searching()


def chance() -> nn.Module:
    return Chance()


def of_two() -> nn.Module:
    return OfTwo()
