"""Every method at a size for tests, for whatever goes through all methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.methods import CLC, PICI, SACC, TURTLE, Boost, ClusteringMethod, HaDis, NeighborHead

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


def small_transformer() -> VisionTransformer:
    """Return a transformer from (B, 1, 8, 8), which are four patches, to (B, 8)."""
    return VisionTransformer(8, 4, width=8, depth=2, heads=2, mlp_ratio=2, channels=1)


def small_pici(**options: Any) -> PICI:
    """Return a PICI with the same weights at every call."""
    torch.manual_seed(0)
    decoder = {"decoder_width": 4, "decoder_depth": 1, "decoder_heads": 2}
    options = {"hidden_dim": 16, "embedding_dim": 8} | decoder | options
    return PICI(small_transformer(), 8, NUM_CLUSTERS, **options)


def small_neighborhead(**options: Any) -> NeighborHead:
    """Return a NeighborHead with the same weights at every call."""
    torch.manual_seed(0)
    options = {"num_heads": 3, "hidden_dim": 16, "embedding_dim": 8} | options
    return NeighborHead(small_backbone(), 36, NUM_CLUSTERS, **options)


def small_turtle(**options: Any) -> TURTLE:
    """Return a TURTLE with the same weights at every call."""
    torch.manual_seed(0)
    options = {"inner_steps": 3} | options
    return TURTLE(small_backbone(), 36, NUM_CLUSTERS, **options)


def small_boost(**options: Any) -> Boost:
    """Return a Boost with the same weights at every call, of HaDis unless told otherwise."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_dim": 16, "base_model": {"hidden_dim": 16, "embedding_dim": 8}, "num_neighbors": 3}
    return Boost(small_backbone(), 36, NUM_CLUSTERS, **small | options)


@dataclass
class MethodSample:
    """A method, how many views it takes, and another backbone for it."""

    method: Callable[..., Any]
    num_views: int
    backbone: Callable[[], nn.Module] = small_backbone


METHODS = {
    "boost": MethodSample(small_boost, 2),
    "hadis": MethodSample(small_hadis, 2),
    "clc": MethodSample(small_clc, 2),
    "neighborhead": MethodSample(small_neighborhead, 2),
    "pici": MethodSample(small_pici, 2, small_transformer),
    "sacc": MethodSample(small_sacc, 3),
    "turtle": MethodSample(small_turtle, 1),
}


def make_views(count: int, batch: int = 12) -> list[Tensor]:
    """Return the same random images (B, 1, 8, 8) at every call; SACC warns of fewer than 16."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, batch, 1, 8, 8, generator=generator))


def every_statistic(method: ClusteringMethod) -> dict[str, float]:
    """Return the numbers that steps by each of the method's terms log."""
    views, labels = make_views(method.num_views, 4 * NUM_CLUSTERS), torch.arange(4 * NUM_CLUSTERS) % NUM_CLUSTERS
    steps = [method.training_step(views, labels, terms=terms)[1] for terms in method.terms]
    return {name: float(term) for step in steps for name, term in step.items()}


def collapsed(method: ClusteringMethod) -> ClusteringMethod:
    """Set every weight to 0, so that all images look alike."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    return method
