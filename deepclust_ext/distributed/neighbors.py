"""The nearest rows of a bank that is spread over ranks."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext import ops
from deepclust_ext.distributed.exchange import gather_rows
from deepclust_ext.distributed.group import resolve_group, shards_of
from deepclust_ext.ops._checks import check_rows_of_bank, result_dtype
from deepclust_ext.ops.nearest_neighbors import check_neighbors

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


@torch.compiler.disable
def nearest_neighbors(
    query: Tensor,  # (b, D)
    bank: Tensor,  # (m, D)
    *,
    k: int,
    exclude: Tensor | None = None,  # (b,) int64
    valid: Tensor | None = None,  # (m,) bool
    process_group: "Group" = None,
) -> tuple[Tensor, Tensor]:
    """Find the k rows nearest to each query of this rank in a bank of which each rank holds a part.

    The result equals, to the bit, that of :func:`deepclust_ext.nearest_neighbors` with the parts of all ranks, in their
    order, as one bank. The queries of all ranks are gathered. Each rank searches its own part for them, and sends every
    rank the k best for its queries. Ties go to the lowest index among all rows. No rank holds more of the bank than its
    own part (in half precision, a float32 copy of it).

    Args:
        query: This rank's queries (b, D); b may differ between ranks and be 0.
        bank: This rank's rows (m, D) of the bank; m may differ between ranks and be 0.
        k: How many neighbors, 1 to 256.
        exclude: For every query the index, among all rows, of one row that must not be among its neighbors; -1 for
            none. Give it on all ranks or on none.
        valid: Which rows of this rank's part count. It may be None on some ranks.
        process_group: The ranks; all by default.

    Returns:
        The pair of cosines (b, k) and indices (b, k), which count the rows of all ranks in the order of the ranks.

    Raises:
        TypeError: As the op.
        ValueError: As the op.
    """
    group = resolve_group(process_group)
    if group is None or group.size() == 1:
        return ops.nearest_neighbors(query, bank, k=k, exclude=exclude, valid=valid)
    k = check_neighbors(query, bank, k, exclude, valid)
    queries, rows = shards_of(query, group), shards_of(bank, group)
    # Half precision would round cosines before they are compared.
    dtype = result_dtype(query)
    wide = torch.promote_types(dtype, torch.float32)
    everyone = gather_rows(query, group, with_gradient=False, shards=queries).to(wide)
    without = None
    if exclude is not None:
        excluded = gather_rows(exclude, group, with_gradient=False, shards=queries)
        check_rows_of_bank(excluded, rows.total)  # of all ranks, so that all raise what one does
        without = excluded - rows.start
        without = torch.where((without >= 0) & (without < len(bank)), without, -1)
    cosines, indices = ops.nearest_neighbors(everyone, bank.detach().to(wide), k=k, exclude=without, valid=valid)
    found = torch.stack([cosines.double(), torch.where(indices < 0, -1, indices + rows.start).double()], dim=1)
    ranks, own = len(queries.sizes), len(query)
    received = found.new_empty(ranks * own, 2, k)
    dist.all_to_all_single(received, found, [own] * ranks, list(queries.sizes), group=group)
    of_ranks = received.view(ranks, own, 2, k).permute(1, 2, 0, 3).reshape(own, 2, ranks * k)
    # Each rank's are in order already, so that ties stay in the order of all rows.
    best = of_ranks[:, 0].sort(dim=1, descending=True, stable=True).indices[:, :k]
    values, places = of_ranks[:, 0].gather(1, best), of_ranks[:, 1].gather(1, best).long()
    is_nan = of_ranks[:, 0].isnan().any(dim=1, keepdim=True)  # a query or a bank that is not finite
    return torch.where(is_nan, torch.nan, values).to(dtype), torch.where(is_nan, -1, places)
