"""Rows and sums of all ranks, with gradients, always in the order of the ranks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext.distributed.group import Shards, all_gather, resolve_group, shards_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deepclust_ext.distributed.group import Group

#: Up to so many bytes a rank sends its part to each other one; beyond, each rank merges a part of its own.
SMALL = 65536

#: So many bytes of rows of all ranks are gathered at once at most; more go round in blocks.
MOST_GATHERED_BYTES = 256 << 20


@torch.compiler.disable
def gather_rows(
    x: Tensor,  # (n, ...)
    group: "Group" = None,
    with_gradient: bool = True,
    shards: Shards | None = None,
) -> Tensor:
    """Return the rows of all ranks, (N, ...), in the order of the ranks.

    Ranks may have different numbers of rows, even none. The gradient of a row is the sum of the gradients that all
    ranks return for it, added up in the order of the ranks, in float32 for half precision. It travels only to the row's
    owner. So backward must run on every rank, even on one without rows.

    Args:
        x: The rows of this rank. All ranks have the same shape, except for the number of rows, and the same dtype.
        group: The ranks; all by default.
        with_gradient: Whether the result carries a gradient, if ``x`` does.
        shards: The numbers of rows, if they are known; finding them out waits for the device.
    """
    group = resolve_group(group)
    if group is None or group.size() == 1:
        return x if with_gradient else x.detach()
    shards = shards_of(x, group) if shards is None else shards
    if with_gradient:
        return _GatherRows.apply(x, shards, group)  # type: ignore[no-any-return]
    return _gathered(x.detach(), shards, group)


@torch.compiler.disable
def sum_over_ranks(
    x: Tensor,
    group: "Group" = None,
) -> Tensor:
    """Return the sum of the tensors of all ranks, added up in the order of the ranks, and the same on each.

    Half precision is added up in float32. The gradient of each rank's tensor is the sum of all ranks' gradients.
    """
    group = resolve_group(group)
    if group is None or group.size() == 1:
        return x
    return _SumOverRanks.apply(x, group)  # type: ignore[no-any-return]


def exchange(
    x: Tensor,
    merge: Callable[[Tensor], Tensor],
    group: "ProcessGroup | None",
) -> Tensor:
    """Return the tensors of all ranks merged into one, the same on each rank; without gradient.

    ``merge`` gets some elements of all ranks, (P, m), in the order of the ranks, and merges them to (m,).
    """
    flat = x.detach().reshape(1, -1)
    if group is None or group.size() == 1:
        return merge(flat).view(x.shape)
    ranks, count = group.size(), flat.shape[1]
    if flat.nbytes <= SMALL:
        everyone = flat.new_empty(ranks, count)
        all_gather(everyone, flat.contiguous(), group)
        return merge(everyone).view(x.shape)
    part = -(-count // ranks)
    sent = torch.nn.functional.pad(flat, (0, part * ranks - count)).view(ranks, part)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    merged = flat.new_empty(ranks, part)
    all_gather(merged, merge(received).contiguous().unsqueeze(0), group)
    return merged.view(-1)[:count].view(x.shape)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards, group: "ProcessGroup") -> Tensor:
        ctx.shards, ctx.group = shards, group
        return _gathered(x, shards, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return sum_in_order(_at_owners(grad, ctx.shards, ctx.group)), None, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: "ProcessGroup") -> Tensor:
        ctx.group = group
        return exchange(x, sum_in_order, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return exchange(grad, sum_in_order, ctx.group), None


def _at_owners(
    x: Tensor,  # (N, ...)
    shards: Shards,
    group: "ProcessGroup",
) -> Tensor:
    """Return what each rank has for this rank's rows, (P, n, ...)."""
    own, ranks = shards.sizes[shards.rank], len(shards.sizes)
    received = x.new_empty(ranks * own, *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), [own] * ranks, list(shards.sizes), group=group)
    return received.view(ranks, own, *x.shape[1:])


def _gathered(
    x: Tensor,  # (n, ...)
    shards: Shards,
    group: "ProcessGroup",
) -> Tensor:
    """Return the rows of all ranks, (N, ...)."""
    if x.dtype == torch.bool:
        return _gathered(x.to(torch.uint8), shards, group).bool()
    ranks, most = len(shards.sizes), max(shards.sizes)
    if min(shards.sizes) == most:
        rows = x.new_empty(ranks * most, *x.shape[1:])
        all_gather(rows, x.contiguous(), group)
        return rows
    # All send as many rows; what fills the small shards up is left out again.
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    everyone = x.new_empty(ranks * most, *x.shape[1:])
    all_gather(everyone, padded, group)
    return torch.cat([part[:size] for part, size in zip(everyone.split(most), shards.sizes, strict=True)])


def sum_in_order(
    parts: Tensor,  # (P, ...)
) -> Tensor:
    """Return the sum over the ranks, (...), added up one after the other, in at least float32."""
    wide = torch.promote_types(parts.dtype, torch.float32) if parts.is_floating_point() else parts.dtype
    total = parts[0].to(wide)
    for part in parts[1:]:
        total = total + part
    return total.to(parts.dtype)
