"""Some rows of other ranks beside all of a rank's own, with gradients."""

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext.distributed.group import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Choice(NamedTuple):
    """Which rows go from rank to rank."""

    sent: Tensor  # (S,) places among this rank's rows: those for the first rank, then those for the second, ...
    num_sent: list[int]  # to each rank
    num_received: list[int]  # from each rank
    places: Tensor  # (U,) of all rows that a rank then has, its own among them, counted over all ranks; ascending
    first: int  # the place of this rank's first row among these


def choose(
    places: Tensor,  # (M,) int64, among the rows of all ranks; ascending, each once, none of this rank
    shards: Shards,
    group: "ProcessGroup",
) -> Choice:
    """Tell the owners of rows that this rank wants them."""
    ends = places.new_tensor(list(accumulate(shards.sizes)))
    wanted = torch.searchsorted(places, ends).diff(prepend=ends.new_zeros(1))
    asked = torch.empty_like(wanted)
    dist.all_to_all_single(asked, wanted, group=group)
    num_sent, num_received = asked.tolist(), wanted.tolist()
    sent = places.new_empty(sum(num_sent))
    dist.all_to_all_single(sent, places, num_sent, num_received, group=group)
    first = sum(num_received[: shards.rank])
    own = torch.arange(shards.start, shards.stop, device=places.device)
    return Choice(sent - shards.start, num_sent, num_received, torch.cat([places[:first], own, places[first:]]), first)


def chosen_rows(
    x: Tensor,  # (n, ...)
    choice: Choice,
    group: "ProcessGroup",
) -> Tensor:
    """Return the rows (U, ...) of a choice.

    Gradients are added up at the owner as by :func:`deepclust_ext.distributed.gather_rows`, to the same bits.
    """
    return _ChosenRows.apply(x, choice, group)  # type: ignore[no-any-return]


class _ChosenRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, choice: Choice, group: "ProcessGroup") -> Tensor:
        ctx.choice, ctx.group, ctx.count = choice, group, len(x)
        received = x.new_empty(sum(choice.num_received), *x.shape[1:])
        dist.all_to_all_single(received, x[choice.sent], choice.num_received, choice.num_sent, group=group)
        return torch.cat([received[: choice.first], x, received[choice.first :]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        choice, stop = ctx.choice, ctx.choice.first + ctx.count
        returned = grad.new_empty(len(choice.sent), *grad.shape[1:])
        of_others = torch.cat([grad[: choice.first], grad[stop:]])
        dist.all_to_all_single(returned, of_others, choice.num_sent, choice.num_received, group=ctx.group)
        own = grad[choice.first : stop]
        total = torch.zeros_like(own, dtype=torch.promote_types(grad.dtype, torch.float32))
        parts = zip(choice.sent.split(choice.num_sent), returned.split(choice.num_sent), strict=True)
        for rank, (places, part) in enumerate(parts):
            if rank == ctx.group.rank():
                total += own
            else:  # no place comes twice, so that the sum is the same on every device
                total.index_add_(0, places, part.to(total.dtype))
        return total.to(grad.dtype), None, None
