"""Reconstruction loss of masked patches, as MAE and PICI use it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from deepclust_ext import distributed
from deepclust_ext.ops._checks import check_dtype, check_tensor, result_dtype
from deepclust_ext.reference.autocast import is_autocast_on

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

EPS = 1e-6
#: Above it a patch is scaled down, so that no sum of squares overflows.
LARGE = 2.0**40
EXPECTED = "(B, R, P) with at least one patch of at least two values"


class MaskedPatchLoss(nn.Module):
    r"""Mean squared error of predicted patches, each compared with its patch normalized by mean and deviation.

    For the values :math:`x_{ij}` of masked patch :math:`i`, with mean :math:`\mu_i` and unbiased variance
    :math:`\sigma^2_i`, and their predictions :math:`y_{ij}`, the loss is the mean over all :math:`i, j` of

    .. math::
        \Big( y_{ij} - \frac{x_{ij} - \mu_i}{\sqrt{\sigma^2_i + 10^{-6}}} \Big)^2

    Pass the masked patches alone: patches that the network saw must not be among the rows. For a patch of one color the
    target is 0. In PICI this is the partial information self-discrimination (PISD).

    Take the patches from the images that the network gets, normalized by the mean and deviation of the data set. Choose
    patches that are large enough to have structure, such as 16 pixels at 224.

    Sources: Masked Autoencoders Are Scalable Vision Learners, https://arxiv.org/abs/2111.06377, "Reconstruction
    target"; PICI, https://arxiv.org/abs/2401.13503, equation 1 of its manuscript, the mean of this loss over two views,
    see :class:`~deepclust_ext.methods.PICI`.

    Args:
        gather_distributed: Whether the mean is over the patches of all ranks, some of which may have none. A rank
            returns its own sum times P / N, for P ranks with N values in all. So the mean over the ranks is the loss of
            the whole batch, and under DistributedDataParallel every parameter gets its gradient.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: If ``gather_distributed`` is neither True nor False.
        ValueError: If there is a group and nothing is gathered.

    Example:
        >>> loss = MaskedPatchLoss()
        >>> patch = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> float(loss(torch.tensor([[[-1.0, 0.0, 2.0]]]), patch))  # of (-1, 0, 1) the last is missed by 1
        0.3333...
    """

    def __init__(self, gather_distributed: bool = False, process_group: "Group" = None) -> None:
        super().__init__()
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        predicted: Tensor,  # (B, R, P) of R masked patches of P values
        patches: Tensor,  # (B, R, P) the same patches of the images
    ) -> Tensor:
        """Return the loss, (), in the dtype of ``predicted``, under autocast at least float32.

        float16 and bfloat16 are computed in float32.

        Raises:
            TypeError: If an argument is no tensor, or of an unsupported or, but under autocast, different dtype.
            ValueError: If a shape or device does not fit, there is no patch, or a patch has a single value.
        """
        _check(predicted, patches)
        group = distributed.resolve_group(self.process_group) if self.gather_distributed else None
        num_patches, num_ranks = predicted.shape[0] * predicted.shape[1], distributed.num_ranks(group)
        if self.gather_distributed:
            num_patches = distributed.shards_of(predicted.flatten(0, 1), group).total
        if not num_patches:
            raise ValueError(f"predicted: expected shape {EXPECTED}, got {tuple(predicted.shape)}")
        wide = torch.promote_types(torch.promote_types(predicted.dtype, patches.dtype), torch.float32)
        with torch.autocast(predicted.device.type, enabled=False):
            if not patches.numel():  # of this rank; others have some
                return (predicted.to(wide).sum() + patches.to(wide).sum()).to(result_dtype(predicted))
            values = patches.to(wide)
            values = values / (values.abs().amax(dim=2, keepdim=True) / LARGE).clamp(min=1)
            variance, mean = torch.var_mean(values, dim=2, keepdim=True, correction=1)
            targets = (values - mean) / (variance + EPS).sqrt()
            if self.gather_distributed:
                loss = mse_loss(predicted.to(wide), targets, reduction="sum")
                loss = loss * num_ranks / (num_patches * predicted.shape[2])
            else:
                loss = mse_loss(predicted.to(wide), targets)
        return loss.to(result_dtype(predicted))

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"gather_distributed={self.gather_distributed}"


def _check(
    predicted: Tensor,  # (B, R, P)
    patches: Tensor,  # (B, R, P)
) -> None:
    for tensor, name in ((predicted, "predicted"), (patches, "patches")):
        check_tensor(tensor, name)
        check_dtype(tensor, name)
    if predicted.dim() != 3 or predicted.shape[2] < 2:
        raise ValueError(f"predicted: expected shape {EXPECTED}, got {tuple(predicted.shape)}")
    if patches.shape != predicted.shape:
        expected = f"{tuple(predicted.shape)} like predicted"
        raise ValueError(f"patches: expected shape {expected}, got {tuple(patches.shape)}")
    if patches.device != predicted.device:
        raise ValueError(f"patches: expected device {predicted.device} like predicted, got {patches.device}")
    if patches.dtype != predicted.dtype and not is_autocast_on(predicted.device.type):
        raise TypeError(f"patches: expected dtype {predicted.dtype} like predicted, got {patches.dtype}")
