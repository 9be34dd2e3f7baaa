"""The ranks of ``torch.distributed``: rows and sums of all of them, and the ops over rows that are shared out.

Every function takes ``group`` or ``process_group``, a ProcessGroup or a DeviceMesh of one dimension; None is all ranks.
Without ``torch.distributed`` each works on the rows of the one rank that there is. What comes of several ranks is taken
in their order, so that no result depends on which one was first.
"""

from deepclust_ext.distributed.contrastive import fused_contrastive_loss
from deepclust_ext.distributed.exchange import gather_rows, sum_over_ranks
from deepclust_ext.distributed.group import Shards, num_ranks, rank_of, resolve_group, shards_of

__all__ = [
    "Shards",
    "fused_contrastive_loss",
    "gather_rows",
    "num_ranks",
    "rank_of",
    "resolve_group",
    "shards_of",
    "sum_over_ranks",
]
