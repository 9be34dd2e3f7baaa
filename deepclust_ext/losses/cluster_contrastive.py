"""Contrastive loss between clusters, as CC, SACC and PICI use it."""

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.distributed.columns import column_contrast_and_usage
from deepclust_ext.ops._checks import check_factor, check_feature_pair, check_temperature, plain
from deepclust_ext.ops.fused_contrastive_loss import fused_contrastive_loss

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class ClusterContrastiveLoss(nn.Module):
    r"""Contrast each cluster with all other clusters, by the samples that belong to it, and keep all clusters in use.

    The vectors are the K columns of the assignment matrices: how much each of the B samples belongs to the cluster. The
    positive of a column is the same cluster in the other view; the negatives are the other 2K - 2 columns. Added is

    .. math::
        \sum_{views} \Big( \log K + \sum_k p_k \log p_k \Big)

    times ``entropy_weight``, where :math:`p` is the mean assignment of the view. For each view the sum is 0 when all
    clusters are used equally, and :math:`\log K` when one takes everything. An empty cluster, a column of zeros, gets
    no gradient; loss and gradients stay finite. There is one exception. The gradient of a nearly empty cluster is about
    1 over the norm of its column, and in float16 assignments this may exceed 65504 and become infinite. So use float32
    assignments, as softmax gives under autocast.

    A column of few samples says little: the first batch below ``4 K`` gives a RuntimeWarning, once per module.

    Keep the temperature of 1, the papers' value. The lower it is, the more only the most similar column counts.

    Sources: Contrastive Clustering, https://arxiv.org/abs/2009.09687, section "Cluster-level Contrastive Head"; PICI,
    equations 8 to 11 of its manuscript, see :class:`~deepclust_ext.methods.PICI`.

    Args:
        temperature: Divides the cosines between columns. A parameter of shape () is learned with the rest.
        entropy_weight: Weight of the second term; take less than 1 if clusters are known to be of unequal size.
        gather_distributed: Whether columns are those of the samples of all ranks. Ranks exchange the 2K x 2K products
            of columns. Every rank returns the loss of the whole batch. Under DistributedDataParallel, which takes the
            mean over the ranks, every parameter gets the gradient of that loss.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: An argument is no number.
        ValueError: The temperature is not above 0, or the weight below 0.

    Example:
        >>> shares = torch.eye(2).repeat(4, 1)  # eight samples, half of them in each cluster, in both views
        >>> float(ClusterContrastiveLoss()(shares, shares))  # log(1 + 2 exp(-1)), and 0 for clusters of equal size
        0.5514...
    """

    def __init__(
        self,
        temperature: float | Tensor = 1.0,
        entropy_weight: float = 1.0,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.entropy_weight = check_factor(entropy_weight, "entropy_weight")
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group
        self._warned = False

    def forward(
        self,
        c_a: Tensor,  # (B, K) rows on the simplex
        c_b: Tensor,  # (B, K) the same samples in another view
    ) -> Tensor:
        """Return the loss, (), in the dtype of ``c_a``; float16 and bfloat16 are computed in float32.

        Raises:
            TypeError: If an argument is no tensor, or of an unsupported or different dtype.
            ValueError: If a shape, a device or the temperature does not fit, or there is no sample.
        """
        check_feature_pair(c_a, c_b, "c_a", "c_b")
        temperature = check_temperature(self.temperature, "temperature", c_a, "c_a")
        group = distributed.resolve_group(self.process_group) if self.gather_distributed else None
        num_samples = distributed.shards_of(c_a, group).total if self.gather_distributed else len(c_a)
        if not num_samples:
            raise ValueError("c_a: expected at least one row, got none")
        self._warn_of_a_small_batch(num_samples, c_a.shape[1])
        if self.gather_distributed:
            wide = torch.promote_types(c_a.dtype, torch.float32)
            with torch.autocast(c_a.device.type, enabled=False):
                contrast, sums = column_contrast_and_usage(c_a.to(wide), c_b.to(wide), temperature, group)
            usage = sums / num_samples
        else:
            a, b = _without_gradient_of_empty(c_a), _without_gradient_of_empty(c_b)
            contrast = fused_contrastive_loss(a.T, b.T, temperature=temperature)
            usage = torch.stack([a.mean(dim=0), b.mean(dim=0)])
        # PICI, equation 11: the mean of equation 8, less the entropy.
        return (contrast + self.entropy_weight * _unevenness(usage)).to(c_a.dtype)

    def _warn_of_a_small_batch(self, batch_size: int, num_clusters: int) -> None:
        # While a compiler traces, a warning would break the graph.
        if torch.compiler.is_compiling() or self._warned or batch_size >= 4 * num_clusters:
            return
        self._warned = True
        warnings.warn(
            f"a batch of {batch_size} tells little about {num_clusters} clusters, which a cluster-level loss compares "
            f"by their samples: take batches of at least {4 * num_clusters}, four samples a cluster, or fewer clusters",
            RuntimeWarning,
            stacklevel=2,
        )

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"temperature={plain(self.temperature)}, entropy_weight={self.entropy_weight}, "
            f"gather_distributed={self.gather_distributed}"
        )


def _without_gradient_of_empty(
    assignments: Tensor,  # (B, K)
) -> Tensor:
    """Return the assignments in at least float32."""
    wide = assignments.to(torch.promote_types(assignments.dtype, torch.float32))
    # The direction of a zero column has no gradient, but the entropy has.
    return wide.masked_fill((wide == 0).all(dim=0), 0)


def _unevenness(
    usage: Tensor,  # (2, K) mean assignments of both views
) -> Tensor:
    """Return log K minus the entropy of the mean assignment (PICI, equation 9), added up over the views, ()."""
    # The clamp is for the gradient alone: xlogy(0, 0) is 0, but its derivative by the second argument is NaN.
    logs = usage.clamp(min=torch.finfo(usage.dtype).tiny)
    return usage.shape[0] * math.log(usage.shape[1]) + torch.xlogy(usage, logs).sum()
