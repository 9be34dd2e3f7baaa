"""The ranks of ``torch.distributed``: rows and sums of all ranks, and the ops over rows that are spread over ranks.

Every function takes ``group`` or ``process_group``, a ProcessGroup or a DeviceMesh of one dimension; None means all
ranks. Without ``torch.distributed`` there is one rank. Results of several ranks are combined in their order, so nothing
depends on which rank was first.
"""

from deepclust_ext.distributed.contrastive import fused_contrastive_loss
from deepclust_ext.distributed.exchange import gather_rows, sum_over_ranks
from deepclust_ext.distributed.group import Shards, check_ranks, num_ranks, rank_of, resolve_group, shards_of
from deepclust_ext.distributed.mining import batch_hard_mining, fused_hsd_loss
from deepclust_ext.distributed.neighbors import nearest_neighbors
from deepclust_ext.distributed.sinkhorn import sinkhorn_knopp

__all__ = [
    "Shards",
    "batch_hard_mining",
    "check_ranks",
    "fused_contrastive_loss",
    "fused_hsd_loss",
    "gather_rows",
    "nearest_neighbors",
    "num_ranks",
    "rank_of",
    "resolve_group",
    "shards_of",
    "sinkhorn_knopp",
    "sum_over_ranks",
]
