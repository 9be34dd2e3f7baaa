"""Hardness-weighted contrastive loss as a module."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.ops._checks import (
    check_bool,
    check_divisor,
    check_factor,
    check_reduction,
    check_share,
    check_temperature,
    plain,
)
from deepclust_ext.ops.fused_contrastive_loss import fused_contrastive_loss

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class ContrastiveLoss(nn.Module):
    """Module form of :func:`deepclust_ext.fused_contrastive_loss`, with its arguments, defaults and errors.

    Begin with the defaults, which are NT-Xent. A large batch or a queue allows a lower temperature, down to 0.1. Once
    that works, try ``hardness`` up to 1, with a ``debias`` of about 1 / K, because near negatives are often false ones.

    Source: NT-Xent, https://arxiv.org/abs/2002.05709, equation 1; hardness and debias,
    https://arxiv.org/abs/2010.04592; queue, https://arxiv.org/abs/1911.05722, equation 1; class weights,
    https://arxiv.org/abs/2306.05439.

    Args:
        temperature: Divides the cosines. A parameter of shape () is learned with the rest.
        hardness: How much more near negatives weigh than far ones; 0 is NT-Xent.
        debias: The assumed probability that a negative belongs to the anchor's class; τ⁺ in the paper, no temperature.
        class_temperature: Divides the products of class vectors.
        normalize: Divide every row of the features by its L2 norm first.
        reduction: "mean", "sum" or "none".
        gather_distributed: Whether negatives are the rows of all ranks. The mean over the ranks of what they return is
            then the loss of the whole batch, and under DistributedDataParallel every parameter gets its gradient; see
            :func:`deepclust_ext.distributed.fused_contrastive_loss`.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, or the reduction unknown.

    Example:
        >>> import torch
        >>> rows = torch.eye(2)  # two images, whose views agree
        >>> float(ContrastiveLoss()(rows, rows))  # log(1 + 2 exp(-1 / 0.5)): two negatives at a right angle
        0.2395...
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        hardness: float = 0.0,
        debias: float = 0.0,
        class_temperature: float = 1.0,
        normalize: bool = True,
        reduction: str = "mean",
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.temperature = check_temperature(temperature)
        self.hardness = check_factor(hardness, "hardness")
        self.debias = check_share(debias, "debias")
        self.class_temperature = check_divisor(class_temperature, "class_temperature")
        self.normalize = check_bool(normalize, "normalize")
        self.reduction = reduction
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        z_a: Tensor,  # (B, D)
        z_b: Tensor,  # (B, D)
        class_a: Tensor | None = None,  # (B, K)
        class_b: Tensor | None = None,  # (B, K)
        queue: Tensor | None = None,  # (M, D)
        class_queue: Tensor | None = None,  # (M, K)
    ) -> Tensor:
        """Return the loss: (), or with reduction "none" (2B,), with a queue (B,)."""
        loss = fused_contrastive_loss
        if self.gather_distributed:
            loss = partial(distributed.fused_contrastive_loss, process_group=self.process_group)
        return loss(
            z_a,
            z_b,
            temperature=self.temperature,
            hardness=self.hardness,
            debias=self.debias,
            class_a=class_a,
            class_b=class_b,
            class_temperature=self.class_temperature,
            queue=queue,
            class_queue=class_queue,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"temperature={plain(self.temperature)}, hardness={self.hardness}, debias={self.debias}, "
            f"class_temperature={self.class_temperature}, normalize={self.normalize}, reduction={self.reduction!r}, "
            f"gather_distributed={self.gather_distributed}"
        )
