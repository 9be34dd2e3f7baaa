"""Hardness-aware self-distillation loss of HaDis as a module."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.ops import HSDStats, fused_hsd_loss
from deepclust_ext.ops._checks import check_bool, check_reduction, check_temperature, plain

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class HSDLoss(nn.Module):
    """Module form of :func:`deepclust_ext.fused_hsd_loss`, with its arguments, defaults and errors.

    Keep the temperature of 0.5 for rows of norm 1, whose distances are at most 2. Use ``return_stats`` while you set up
    a run: they show a collapsed batch, which has a loss of ln 2 and no weights.

    Source: "Hardness-aware self-distillation", HaDis, arXiv 2401.14038. The figure of the framework in the authors'
    repository, https://github.com/Regan-Zhang/HaDis, draws the weights w^p and w^n of both pairs.

    Args:
        temperature: Divides both logits. A parameter of shape () is learned with the rest.
        normalize: Divide every row by its L2 norm first.
        reduction: "mean", "sum" or "none".
        return_stats: Also return :class:`deepclust_ext.HSDStats`, which tells a converged batch from a collapsed one.
        gather_distributed: Whether pairs are mined among the rows of all ranks. The mean over the ranks of what they
            return is then the loss of the whole batch, and under DistributedDataParallel every parameter gets its
            gradient; see :func:`deepclust_ext.distributed.fused_hsd_loss`.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The temperature is out of range, or the reduction unknown.

    Example:
        >>> import torch
        >>> rows = torch.eye(3)
        >>> float(HSDLoss()(rows, rows))  # a student equal to its teacher has nothing to learn: ln 2, without gradient
        0.6931...
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        normalize: bool = True,
        reduction: str = "mean",
        return_stats: bool = False,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.temperature = check_temperature(temperature)
        self.normalize = check_bool(normalize, "normalize")
        self.reduction = reduction
        self.return_stats = check_bool(return_stats, "return_stats")
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        teacher: Tensor,  # (N, D)
        student: Tensor,  # (N, D)
    ) -> Tensor | tuple[Tensor, HSDStats]:
        """Return the loss, (), or with reduction "none" (N,); with ``return_stats`` the pair of loss and statistics."""
        temperature, normalize, reduction = self.temperature, self.normalize, self.reduction
        if self.gather_distributed:
            result: Tensor | tuple[Tensor, HSDStats] = distributed.fused_hsd_loss(
                teacher,
                student,
                temperature=temperature,
                normalize=normalize,
                reduction=reduction,
                return_stats=self.return_stats,
                process_group=self.process_group,
            )
            return result
        if self.return_stats:
            return fused_hsd_loss(
                teacher, student, temperature=temperature, normalize=normalize, reduction=reduction, return_stats=True
            )
        return fused_hsd_loss(teacher, student, temperature=temperature, normalize=normalize, reduction=reduction)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"temperature={plain(self.temperature)}, normalize={self.normalize}, "
            f"reduction={self.reduction!r}, return_stats={self.return_stats}, "
            f"gather_distributed={self.gather_distributed}"
        )
