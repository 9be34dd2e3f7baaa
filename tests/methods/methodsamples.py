"""Every method at a size for tests, for whatever goes through all methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepclust_ext.methods import CLC, SACC, ClusteringMethod, HaDis

NUM_CLUSTERS = 4


def small_backbone() -> nn.Module:
    """Return a network from (B, 1, 8, 8) to (B, 36)."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


def small_hadis(**options: Any) -> HaDis:
    """Return a HaDis with the same weights at every call."""
    torch.manual_seed(0)
    return HaDis(small_backbone(), 36, NUM_CLUSTERS, hidden_dim=16, embedding_dim=8, **options)


def small_sacc(**options: Any) -> SACC:
    """Return a SACC with the same weights at every call."""
    torch.manual_seed(0)
    return SACC(small_backbone(), 36, NUM_CLUSTERS, hidden_dim=16, embedding_dim=8, **options)


def small_clc(**options: Any) -> CLC:
    """Return a CLC with the same weights at every call."""
    torch.manual_seed(0)
    options = {"hidden_dim": 16, "embedding_dim": 8, "queue_size": 40} | options
    return CLC(small_backbone(), 36, NUM_CLUSTERS, **options)


@dataclass
class MethodSample:
    """A method and how many views it takes."""

    method: Callable[..., Any]
    num_views: int


METHODS = {
    "hadis": MethodSample(small_hadis, 2),
    "clc": MethodSample(small_clc, 2),
    "sacc": MethodSample(small_sacc, 3),
}


def make_views(count: int, batch: int = 12) -> list[Tensor]:
    """Return the same random images (B, 1, 8, 8) at every call; SACC warns of fewer than 16."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, batch, 1, 8, 8, generator=generator))


def collapsed(method: ClusteringMethod) -> ClusteringMethod:
    """Set every weight to 0, so that all images look alike."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    return method
