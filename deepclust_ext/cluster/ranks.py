"""What k-means needs from rows that are spread over ranks; without a group there is only this process.

All choices are made from integers or by comparison, so they are those of one process with the rows of all ranks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext.distributed import Shards, gather_rows, shards_of, sum_over_ranks
from deepclust_ext.distributed.exchange import exchange
from deepclust_ext.ops import kmeans_assign
from deepclust_ext.reference.kmeans_seed import costs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def bounds_over_ranks(
    values: Tensor,
    group: "ProcessGroup | None",
) -> tuple[float, float]:
    """Return the least and the greatest number on any rank; NaN if there is a NaN, infinities without numbers."""
    ends = torch.stack(values.aminmax()) if values.numel() else values.new_tensor([torch.inf, -torch.inf])
    ends = ends.double()  # the same on all ranks
    if group is not None:
        ends = exchange(ends * ends.new_tensor([1, -1]), lambda parts: parts.amin(dim=0), group)
        ends = ends * ends.new_tensor([1, -1])
    low, high = ends.tolist()
    return low, high


def total_rows(
    rows: Tensor,  # (n, ...)
    group: "ProcessGroup | None",
) -> int:
    """Return the number of rows of all ranks."""
    return len(rows) if group is None else shards_of(rows, group).total


def rows_of_all(
    rows: Tensor,  # (n, ...)
    group: "ProcessGroup | None",
) -> Tensor:
    """Return the rows of all ranks, (N, ...)."""
    return rows if group is None else gather_rows(rows, group, with_gradient=False)


def same_generator(
    generator: torch.Generator | None,
    device: torch.device,
    group: "ProcessGroup",
) -> torch.Generator:
    """Return a generator that draws the same numbers on every rank, those of the first rank's generator."""
    if generator is None:  # what else is drawn from torch's default one shall not become the same on all ranks
        generator = torch.Generator("cpu").manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
    state = exchange(generator.get_state().to(device), lambda parts: parts[0], group)
    return generator.set_state(state.cpu())


def rows_at(
    rows: Tensor,  # (n, D)
    places: Tensor,  # (C,) among the rows of all ranks
    group: "ProcessGroup | None",
    shards: Shards,
) -> Tensor:
    """Return rows (C, D) by their indices among all rows, on every rank."""
    if group is None:
        return rows.index_select(0, places)
    local = places - shards.start
    is_own = ((local >= 0) & (local < len(rows))).unsqueeze(1)
    own = rows.index_select(0, local.clamp(0, max(len(rows) - 1, 0))) if len(rows) else rows.new_zeros(1, rows.shape[1])
    found: Tensor = sum_over_ranks(torch.where(is_own, own, 0), group)
    return found


def scale_over_ranks(
    values: Tensor,  # (n,) float64, none negative
    total: int,
    group: "ProcessGroup",
) -> Tensor:
    """Return :func:`deepclust_ext.reference.kmeans_seed.integer_scale` of the values of all ranks, ()."""
    largest = values.amax() if len(values) else values.new_zeros(())
    largest = exchange(largest, lambda parts: parts.amax(dim=0), group)
    room = float(2 ** (62 - total.bit_length()))
    scale: Tensor = room / largest.clamp(min=1e-280)
    return scale


def seeds_over_ranks(
    rows: Tensor,  # (n, D)
    uniform: Tensor,  # (K, C) float64, in [0, 1)
    metric: str,
    weights: Tensor | None,  # (n,) float64
    group: "ProcessGroup",
) -> Tensor:
    """Return the rows (K, D) that :func:`deepclust_ext.ops.kmeans_seed` chooses from those of all ranks.

    Each center takes four exchanges, of a few numbers and of the candidate rows.
    """
    shards = shards_of(rows, group)

    def costs_to(
        centers: Tensor,  # (C, D)
    ) -> Tensor:
        distances = [kmeans_assign(rows, center, metric=metric)[1] for center in centers.split(1)]
        return costs(torch.stack(distances), metric, weights)

    if weights is None:
        places = (uniform[0, :1] * shards.total).long()
    else:
        places = _drawn(weights, scale_over_ranks(weights, shards.total, group), uniform[0, :1], shards, group)
    chosen = [rows_at(rows, places, group, shards)]
    least = costs_to(chosen[0]).squeeze(0)
    for row in uniform[1:]:
        scale = scale_over_ranks(least, shards.total, group)
        candidates = rows_at(rows, _drawn(least, scale, row, shards, group), group, shards)
        left = torch.minimum(costs_to(candidates), least)  # (C, n)
        best = sum_over_ranks((left * scale).long().sum(dim=1), group).argmin(dim=0, keepdim=True)
        least = left.index_select(0, best).squeeze(0)
        chosen.append(candidates.index_select(0, best))
    return torch.cat(chosen)


def _drawn(
    values: Tensor,  # (n,) float64, none negative
    scale: Tensor,  # ()
    uniform: Tensor,  # (C,) float64, in [0, 1)
    shards: Shards,
    group: "ProcessGroup",
) -> Tensor:
    """Return the indices (C,) among the rows of all ranks that uniform numbers choose, in proportion to the values."""
    cumulative = (values * scale).long().cumsum(dim=0)
    own = cumulative[-1:] if len(cumulative) else cumulative.new_zeros(1)
    sums = gather_rows(own, group, with_gradient=False).cumsum(dim=0)  # (P,)
    before = sums[shards.rank] - own
    drawn = (uniform * sums[-1]).long()
    place = torch.searchsorted(cumulative, drawn - before, right=True) + shards.start
    is_own = (drawn >= before) & (drawn < before + own)
    # Where all values are 0, it is the last row.
    last = torch.full_like(place, shards.total - 1)
    found = sum_over_ranks(torch.where(is_own, place, 0), group)
    return torch.where(sums[-1] > 0, found, last)


def fill_empty_over_ranks(
    labels: Tensor,  # (n,)
    distances: Tensor,  # (n,)
    counts: Tensor,  # (K,) of the rows of all ranks
    group: "ProcessGroup",
) -> Tensor:
    """Return :func:`deepclust_ext.cluster.steps.fill_empty` over the rows of all ranks, for this rank's rows (n,)."""
    shards = shards_of(labels, group)
    order = distances.sort(descending=True, stable=True).indices
    place = torch.arange(len(order), device=order.device)
    nearest = place.new_full((len(counts),), -1).scatter_reduce(0, labels[order], place, "amax")
    # A cluster keeps the nearest row of all ranks; of several as near, the last one.
    own = distances.new_full((len(counts),), torch.inf)
    own[nearest >= 0] = distances[order[nearest[nearest >= 0]]]
    everyone = gather_rows(own.unsqueeze(0), group, with_gradient=False)  # (P, K)
    keeper = len(shards.sizes) - 1 - everyone.flip(0).argmin(dim=0)
    free = distances[order] > 0
    free[nearest[(keeper == shards.rank) & (nearest >= 0)]] = False
    empty = (counts == 0).nonzero().squeeze(1)
    mine = order[free][: len(empty)]
    places = gather_rows(mine + shards.start, group, with_gradient=False)
    far = gather_rows(distances[mine], group, with_gradient=False).sort(descending=True, stable=True).indices
    moved = places[far][: len(empty)] - shards.start
    is_own = (moved >= 0) & (moved < len(labels))
    return labels.index_copy(0, moved[is_own], empty[: len(moved)][is_own])
