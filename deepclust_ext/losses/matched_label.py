"""Cross entropy of assignments to labels that name the same clusters, as PICI uses it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.ops._checks import check_dtype, check_labels, check_tensor, result_dtype

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class MatchedLabelLoss(nn.Module):
    r"""Cross entropy of each sample's shares of the clusters to its label.

    With :math:`c_i` the shares of sample :math:`i` and :math:`l_i` its label, the loss is the mean of

    .. math::
        -\log c_{i, l_i}

    Labels must name the clusters of the shares: :func:`deepclust_ext.cluster.match_labels` renames the labels of
    k-means so that they do. A sample whose label is outside ``0 .. K - 1`` takes no part; if no sample takes part, the
    loss is 0. The loss is finite even for a share of 0: a share below the smallest normal number of its dtype counts as
    that number, and has no gradient.

    Match the labels again whenever k-means has run, because it numbers its clusters arbitrarily.

    In PICI this is the cross-level interaction (CLI). Source: https://arxiv.org/abs/2401.13503, equation 16 of its
    manuscript, see :class:`~deepclust_ext.methods.PICI`.

    Args:
        gather_distributed: Whether the mean is over the samples of all ranks that take part. A rank returns its own sum
            times P / N, for P ranks with N such samples in all. So the mean over the ranks is the loss of the whole
            batch, and under DistributedDataParallel every parameter gets its gradient.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: If ``gather_distributed`` is neither True nor False.
        ValueError: If there is a group and nothing is gathered.

    Example:
        >>> shares = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        >>> float(MatchedLabelLoss()(shares, torch.tensor([0, 2])).exp())  # 1 / 0.25; there is no cluster 2
        4.0
    """

    def __init__(self, gather_distributed: bool = False, process_group: "Group" = None) -> None:
        super().__init__()
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        shares: Tensor,  # (B, K) rows on the simplex
        labels: Tensor,  # (B,) integers
    ) -> Tensor:
        """Return the loss, (), in the dtype of ``shares``, under autocast at least float32.

        float16 and bfloat16 are computed in float32.

        Raises:
            TypeError: If an argument is no tensor, the shares are of an unsupported dtype, or the labels no integers.
            ValueError: If a shape or device does not fit.
        """
        _check(shares, labels)
        wide = torch.promote_types(shares.dtype, torch.float32)
        labels = labels.to(torch.int64)
        last = shares.shape[1] - 1
        takes_part = (labels >= 0) & (labels <= last)
        with torch.autocast(shares.device.type, enabled=False):
            own = shares.to(wide).gather(1, labels.clamp(0, last).unsqueeze(1)).squeeze(1)
            losses = -own.clamp_min(torch.finfo(shares.dtype).tiny).log()
            loss, count = torch.where(takes_part, losses, 0).sum(), takes_part.sum()
            if self.gather_distributed:
                loss = loss * distributed.num_ranks(self.process_group)
                count = distributed.sum_over_ranks(count, self.process_group)
            loss = loss / count.clamp(min=1)
        return loss.to(result_dtype(shares))

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"gather_distributed={self.gather_distributed}"


def _check(
    shares: Tensor,  # (B, K)
    labels: Tensor,  # (B,)
) -> None:
    for tensor, name in ((shares, "shares"), (labels, "labels")):
        check_tensor(tensor, name)
    check_dtype(shares, "shares")
    if shares.dim() != 2 or shares.shape[1] == 0:
        raise ValueError(f"shares: expected shape (B, K) with K > 0, got {tuple(shares.shape)}")
    if labels.shape != shares.shape[:1]:
        raise ValueError(f"labels: expected shape ({shares.shape[0]},), got {tuple(labels.shape)}")
    check_labels(labels, "labels")
    if labels.device != shares.device:
        raise ValueError(f"labels: expected device {shares.device} like shares, got {labels.device}")
