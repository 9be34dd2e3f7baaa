"""Fused kernels and training methods for contrastive deep clustering."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepclust_ext.clusterer import DeepClusterer
    from deepclust_ext.ops.augment_views import augment_views
    from deepclust_ext.ops.batch_hard_mining import batch_hard_mining
    from deepclust_ext.ops.diffused_neighbor_gather import diffused_neighbor_gather
    from deepclust_ext.ops.fused_contrastive_loss import fused_contrastive_loss
    from deepclust_ext.ops.fused_hsd_loss import fused_hsd_loss
    from deepclust_ext.ops.kmeans_assign import kmeans_assign
    from deepclust_ext.ops.kmeans_seed import kmeans_seed
    from deepclust_ext.ops.nearest_neighbors import nearest_neighbors
    from deepclust_ext.ops.pair_information import pair_information
    from deepclust_ext.ops.sinkhorn_knopp import sinkhorn_knopp
    from deepclust_ext.reference import HardPairs, HSDStats

__version__ = "0.1.0"

__all__ = [
    "DeepClusterer",
    "HSDStats",
    "HardPairs",
    "augment_views",
    "batch_hard_mining",
    "diffused_neighbor_gather",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "kmeans_assign",
    "kmeans_seed",
    "nearest_neighbors",
    "pair_information",
    "sinkhorn_knopp",
]


if not TYPE_CHECKING:  # which knows all names from above

    def __getattr__(name: str) -> Any:
        """Return a public name, or `ops` or `reference`; imported late, because help must not wait for torch."""
        if name in ("ops", "reference"):
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = "clusterer" if name == "DeepClusterer" else "ops"
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{room}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "ops", "reference"})
