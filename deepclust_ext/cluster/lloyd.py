"""One fit of k-means: the best of several starts, each of iterations on all rows or of passes in batches."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deepclust_ext.cluster.inputs import as_rows, checked_rows
from deepclust_ext.cluster.parallel_seeding import oversampled_centers
from deepclust_ext.cluster.ranks import rows_at, rows_of_all
from deepclust_ext.cluster.settings import Settings
from deepclust_ext.cluster.steps import assign_and_sum, cluster_sums, exact_sum, fill_empty, seed_centers
from deepclust_ext.cluster.stream import Stream
from deepclust_ext.distributed import Shards, shards_of
from deepclust_ext.ops import kmeans_assign, kmeans_step
from deepclust_ext.reference.kmeans_assign import centers_of
from deepclust_ext.reference.kmeans_seed import costs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SEEDINGS = {"k-means++": seed_centers, "k-means||": oversampled_centers}


class Fitted(NamedTuple):
    """The result of a fit: centers with the weights of their clusters, labels and inertia of the rows."""

    stream: Stream
    labels: Tensor  # (N,) int64
    inertia: float
    n_iter: int


def best_of_starts(
    features: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,) float64, above 0
    settings: Settings,
    generator: torch.Generator | None,
) -> Fitted:
    """Return the start of the least inertia."""
    in_batches = settings.batch_size is not None
    rows = features if in_batches else checked_rows(features, settings.metric, group=settings.group)
    best: Fitted | None = None
    for _ in range(settings.n_init):
        stream, n_iter = (_passes if in_batches else _lloyd)(rows, weights, settings, generator)
        parts = parts_of(rows, settings.metric, settings.batch_size) if in_batches else [rows]
        found = Fitted(stream, *assigned(parts, stream.centers, settings.metric, weights, settings.group), n_iter)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def _lloyd(
    rows: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,)
    settings: Settings,
    generator: torch.Generator | None,
) -> tuple[Stream, int]:
    """Return the centers of one start, and the number of its iterations."""
    metric, group = settings.metric, settings.group
    centers = first_centers(rows, weights, settings, generator)
    tolerance = _tolerance(rows, weights, settings.tol, group)
    n_iter, shift = 0, math.inf
    while n_iter < settings.max_iter and shift > tolerance:
        old, num_empty = centers, 0
        if weights is None and group is None:
            _, centers, counts, change = kmeans_step(rows, old, metric=metric)
            shift, num_empty = change.tolist()
        if weights is not None or group is not None or num_empty:
            labels, distances, sums, counts = assign_and_sum(rows, old, metric, weights, group)
            if bool((counts == 0).any()):
                labels = fill_empty(labels, distances, counts, group)
                sums, counts = cluster_sums(rows, labels, len(old), weights, group)
            centers = centers_of(sums, counts, old, metric).to(old.dtype)
            shift = float(_shift(old, centers))
        n_iter += 1
    return Stream(centers, metric, counts), n_iter


def _passes(
    features: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,)
    settings: Settings,
    generator: torch.Generator | None,
) -> tuple[Stream, int]:
    """Return the centers of one start in batches, and the number of its passes."""
    assert settings.batch_size is not None
    metric, group = settings.metric, settings.group
    shards = Shards((len(features),), 0) if group is None else shards_of(features, group)

    def batch(index: Tensor) -> tuple[Tensor, Tensor | None]:
        own = index[(index >= shards.start) & (index < shards.stop)] - shards.start
        place = own.to(features.device)
        return checked_rows(features[place], metric, group=group), None if weights is None else weights[place]

    # As in scikit-learn, first centers come of three batches or three rows per cluster.
    order = torch.randperm(shards.total, generator=generator, device="cpu")
    first = batch(order[: 3 * max(settings.batch_size, settings.n_clusters)].sort().values)
    stream = Stream(first_centers(*first, settings, generator), metric)
    tolerance = _tolerance(*first, settings.tol, group)
    n_iter, shift = 0, math.inf
    while n_iter < settings.max_iter and shift > tolerance:
        old = stream.centers
        order = torch.randperm(shards.total, generator=generator, device="cpu")
        for index in order.split(settings.batch_size):
            stream.step(*batch(index), group)
        shift = float(_shift(old, stream.centers))
        n_iter += 1
    return stream, n_iter


def parts_of(
    features: Tensor,  # (N, D)
    metric: str,
    batch_size: int | None,
) -> Iterator[Tensor]:
    """Yield checked rows, one batch at a time."""
    for part in features.split(batch_size or max(len(features), 1)):
        yield checked_rows(part, metric)


@torch.no_grad()
def assigned(
    parts: Iterable[Tensor],  # each (B, D)
    centers: Tensor,  # (K, D)
    metric: str,
    weights: Tensor | None = None,  # (N,)
    group: "ProcessGroup | None" = None,
) -> tuple[Tensor, float]:
    """Return the labels (N,) and the inertia of checked rows; with a group the inertia of all ranks' rows."""
    pairs = [kmeans_assign(rows, centers, metric=metric) for rows in parts]
    labels, distances = (torch.cat(columns) for columns in zip(*pairs, strict=True))
    has_some = bool(len(labels)) or group is not None
    return labels, float(exact_sum(costs(distances, metric, weights), group)) if has_some else 0.0


def first_centers(
    rows: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,)
    settings: Settings,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the centers (K, D) that a start begins with."""
    if isinstance(settings.init, str):
        if settings.init in _SEEDINGS:
            seeding = _SEEDINGS[settings.init]
            return seeding(rows, settings.n_clusters, settings.metric, generator, weights, settings.group)
        shards = Shards((len(rows),), 0) if settings.group is None else shards_of(rows, settings.group)
        everyone = None if weights is None else rows_of_all(weights, settings.group)
        places = _random_places(shards.total, everyone, generator)[: settings.n_clusters].to(rows.device)
        return rows_at(rows, places, settings.group, shards)
    given: Any = settings.init
    if callable(given):
        seed = int(torch.randint(2**32, (), generator=generator, device="cpu"))  # scikit-learn's are of 32 bits
        given = given(rows, settings.n_clusters, random_state=seed)
    centers = as_rows(given, "init")
    shape = (settings.n_clusters, rows.shape[1])
    if centers.shape != shape:
        raise ValueError(f"init: expected shape {shape}, got {tuple(centers.shape)}")
    return checked_rows(centers.to(rows.device), settings.metric, "init", dtype=rows.dtype).clone()


def _random_places(
    count: int,
    weights: Tensor | None,  # (N,)
    generator: torch.Generator | None,
) -> Tensor:
    """Return all indices (N,) in a random order, in which heavy rows tend to come first.

    With weights it is the order of drawing without replacement (Efraimidis and Spirakis, 2006: the keys log(u) / w).
    """
    if weights is None:
        return torch.randperm(count, generator=generator, device="cpu")
    uniform = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
    return (uniform.log() / weights.cpu()).sort(descending=True, stable=True).indices


def _tolerance(
    rows: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,)
    tol: float,
    group: "ProcessGroup | None",
) -> float:
    """Return `tol` times the mean variance of a column."""
    if tol == 0:
        return 0.0
    mean = rows.new_zeros(1, rows.shape[1])
    _, _, sums, counts = assign_and_sum(rows, mean, "euclidean", weights, group)
    _, distances = kmeans_assign(rows, centers_of(sums, counts, mean, "euclidean").to(rows.dtype))
    total = float(exact_sum(costs(distances, "euclidean", weights), group))
    return tol * total / (float(counts) * rows.shape[1])


def _shift(
    old: Tensor,  # (K, D)
    new: Tensor,  # (K, D)
) -> Tensor:
    """Return the sum of the centers' squared shifts, ()."""
    return exact_sum((new.double() - old.double()).square().flatten())
