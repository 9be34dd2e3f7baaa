"""kmeans_seed against scikit-learn's `kmeans_plusplus` and against a call of kmeans_assign for every candidate.

Rows and dims of a case are rows and features; the number of centers stands in its name. All choose each center among
2 + log K candidates, as scikit-learn does by itself. Ours, the loop and the reference get the same random numbers and
are compared by the rows that they choose. scikit-learn draws its own: its centers have to be as good as ours, by
inertia, to DEVIATION.
"""

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import Function
from benchmarks.floors import WorkOf
from benchmarks.floors.kmeans import CUDA_SEEDINGS, INTEGER_BYTES, seed_work
from benchmarks.harness import Case, Provider, Yardstick
from benchmarks.kmeans import find_inertia
from deepclust_ext import kmeans_assign, kmeans_seed, reference
from deepclust_ext.reference.kmeans_seed import integer_scale

MODES = ("forward",)
TRUTH = reference.kmeans_seed
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own

DEVIATION = 0.05  # of inertias, which differ by a percent or two with the numbers drawn


def loop_over_kmeans_assign(
    features: Tensor,  # (N, D)
    *,
    uniform: Tensor,  # (K, C)
) -> Tensor:
    """Do what `KMeans` did before there was this op: distances from one candidate after the other."""
    rows = features.to(torch.promote_types(features.dtype, torch.float32))

    def costs_to(
        places: Tensor,  # (C,)
    ) -> Tensor:
        centers = rows.index_select(0, places).split(1)
        return torch.stack([kmeans_assign(rows, center)[1].double() for center in centers]).square()

    chosen = [(uniform[0, :1] * len(features)).long()]
    least = costs_to(chosen[0]).squeeze(0)
    for numbers in uniform[1:]:
        scale = integer_scale(least)
        running = (least * scale).long().cumsum(dim=0)
        candidates = torch.searchsorted(running, (numbers * running[-1]).long(), right=True).clamp(max=len(least) - 1)
        left = torch.minimum(costs_to(candidates), least)  # (C, N)
        best = (left * scale).long().sum(dim=1).argmin(dim=0, keepdim=True)
        least = left.index_select(0, best).squeeze(0)
        chosen.append(candidates.index_select(0, best))
    return torch.cat(chosen)


def load_scikit_learn() -> Function:
    """Return scikit-learn's, at as many threads as torch; it computes in float32."""
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def choose(features: Tensor, *, uniform: Tensor) -> Tensor:
        clusters, candidates = uniform.shape
        with threadpool_limits(torch.get_num_threads()):
            _, places = kmeans_plusplus(features.float().numpy(), clusters, random_state=0, n_local_trials=candidates)
        return torch.from_numpy(places).long()

    return choose


def check_inertia(places: Tensor, inputs: tuple[Tensor, ...], _: Mapping[str, Any]) -> str | None:
    """Return what is wrong with rows that were drawn with other random numbers, or None."""
    features, uniform = inputs
    if places.shape != uniform.shape[:1]:
        return f"WRONG: {tuple(places.shape)} places"
    inertia, ours = (find_inertia(features, features[x]) for x in (places, kmeans_seed(features, uniform)))
    return None if abs(inertia / ours - 1) <= DEVIATION else f"WRONG: inertia is {inertia:.6g}, ours {ours:.6g}"


PROVIDERS = {
    "ours": Provider(lambda: kmeans_seed),
    "loop over kmeans_assign": Provider(lambda: loop_over_kmeans_assign),
    "scikit-learn": Provider(load_scikit_learn, check=check_inertia),
    "reference": Provider(lambda: reference.kmeans_seed),
}


def multiply_in_steps(
    features: Tensor,  # (N, D)
    *,
    uniform: Tensor,  # (K, C)
) -> Tensor:
    """Multiply all rows with C of them as often as C candidates are looked at."""
    columns = features[: uniform.shape[1]].T
    for _ in uniform[1:]:
        product = features @ columns
    return product


YARDSTICK = Yardstick(
    "K products",
    multiply_in_steps,
    lambda features, uniform: 2 * features.numel() * uniform[1:].numel(),
)


def random_rows(clusters: int, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return normal rows, and numbers for at most as many centers."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, dims, generator=generator)
    uniform = torch.rand(min(clusters, rows), candidates_for(clusters), generator=generator, dtype=torch.float64)
    return features, uniform


def candidates_for(clusters: int) -> int:
    """Return how many rows each center is chosen among."""
    return 2 + int(math.log(clusters))


def make_case(rows: int, clusters: int, dims: int, skip: Mapping[str, str] = MappingProxyType({})) -> Case:
    """Return a case, named by the number of centers, rows and features, and with what is skipped and why."""
    is_large = rows * clusters > LARGE_PAIRS
    return Case(
        f"random-k{clusters}",
        rows,
        dims,
        partial(random_rows, clusters),
        keywords=("uniform",),
        skip={**skip, "reference": "skipped: takes minutes"} if is_large else skip,
        works={"forward": partial(seed_work, clusters=clusters, candidates=candidates_for(clusters))},
        passes=clusters,
        pass_bytes=INTEGER_BYTES * rows * dims,
        checked_rows=CHECKED_ROWS if is_large else None,
    )


LARGE_PAIRS = 1_000_000  # of rows and centers, from which the reference is only asked for CHECKED_ROWS
CHECKED_ROWS = 2000

CASES = [make_case(2000, 10, 64), make_case(20_000, 40, 64), make_case(100_000, 1000, 128)]
SERIES = [make_case(rows, 40, 64) for rows in (5000, 20_000, 80_000)]
CUDA_CASES = [make_case(*seeding, {"scikit-learn": "skipped: on the CPU"}) for seeding in CUDA_SEEDINGS]
