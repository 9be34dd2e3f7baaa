"""kmeans_assign against torch's distances and argmin, and against the product and argmax, eager and compiled.

Rows and dims of a case are rows and features; the centroids' number stands in its name.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.floors import WorkOf
from benchmarks.floors.kmeans import CUDA_ASSIGNMENTS, assign_work
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import kmeans_assign, reference

MODES = ("forward",)
TRUTH = reference.kmeans_assign
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own


def cdist_and_argmin(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
) -> tuple[Tensor, Tensor]:
    """Write down all distances, in float32 at least: torch has none in half precision."""
    wide = torch.promote_types(features.dtype, torch.float32)
    distances, labels = torch.cdist(features.to(wide), centroids.to(wide)).min(dim=1)
    return labels, distances.to(features.dtype)


def product_and_argmax(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
) -> tuple[Tensor, Tensor]:
    """Compare x.y - |y|^2 / 2, and take the distance of the best alone; in float32 at least, or labels would be off."""
    wide = torch.promote_types(features.dtype, torch.float32)
    rows, columns = features.to(wide), centroids.to(wide)
    labels = torch.addmm(columns.square().sum(dim=1), rows, columns.T, beta=-0.5).argmax(dim=1)
    return labels, (rows - columns[labels]).norm(dim=1).to(features.dtype)


PROVIDERS = {
    "ours": Provider(lambda: kmeans_assign),
    "cdist, argmin": Provider(lambda: cdist_and_argmin),
    "product, argmax": Provider(lambda: product_and_argmax),
    "compiled product, argmax": Provider(lambda: torch.compile(product_and_argmax, dynamic=False), compiled=True),
    "reference": Provider(lambda: reference.kmeans_assign),
    "compiled reference": Provider(lambda: torch.compile(reference.kmeans_assign, dynamic=False), compiled=True),
}

YARDSTICK = Yardstick(
    "one product",
    lambda features, centroids: features @ centroids.T,
    lambda features, centroids: 2 * features.shape[0] * centroids.shape[0] * features.shape[1],
)


def random_rows(clusters: int, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return independent rows and centroids: neighbors at similar distances."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, dims, generator=generator), torch.randn(clusters, dims, generator=generator)


def rows_in_clusters(clusters: int, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return rows around the centroids, as at the end of k-means."""
    noise, centers = random_rows(clusters, rows, dims)
    return centers[torch.arange(rows) % clusters] + noise, centers


FORMS = {"random": random_rows, "clusters": rows_in_clusters}


def make_case(form: str, rows: int, clusters: int, dims: int, **changes: Any) -> Case:
    """Return a case of one of FORMS, named by the number of centroids, rows and features."""
    return Case(
        f"{form}-k{clusters}",
        rows,
        dims,
        partial(FORMS[form], clusters),
        keywords=("centroids",),
        works={"forward": partial(assign_work, clusters=clusters)},
        **changes,
    )


CASES = [
    make_case("clusters", 2000, 10, 64),
    make_case("clusters", 20_000, 40, 64),
    *(make_case(form, 65_536, 100, 128) for form in FORMS),
    make_case("clusters", 16_384, 1000, 128),
    make_case("clusters", 60_000, 10, 512),
]
SERIES = [make_case("clusters", rows, 100, 128) for rows in (4096, 16_384, 65_536)]
CHECKED_ROWS = 65_536  # of a million, whose float64 distances from 1000 centroids take 8 GB
CUDA_CASES = [
    make_case("clusters", rows, clusters, dims, checked_rows=CHECKED_ROWS if rows > CHECKED_ROWS else None)
    for rows, clusters, dims in CUDA_ASSIGNMENTS
]
