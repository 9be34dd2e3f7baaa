"""The public functions, one file per op."""

from deepclust_ext.ops.batch_hard_mining import HardPairs, batch_hard_mining
from deepclust_ext.ops.fused_hsd_loss import HSDStats, fused_hsd_loss

__all__ = ["HSDStats", "HardPairs", "batch_hard_mining", "fused_hsd_loss"]
