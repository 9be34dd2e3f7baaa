"""Assignments of equal cluster sizes as a module."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deepclust_ext import distributed
from deepclust_ext.ops._checks import check_bool, check_integer, check_non_negative, check_positive
from deepclust_ext.ops.sinkhorn_knopp import sinkhorn_knopp

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class SinkhornKnopp(nn.Module):
    """Module form of :func:`deepclust_ext.sinkhorn_knopp`, with its arguments, defaults and errors.

    For scores that are cosines begin with the defaults, which are SwAV's. A smaller ``epsilon`` makes assignments
    harder, but takes more iterations until clusters are equally large. Set a ``tolerance`` and many iterations to be
    sure of it.

    Source: https://arxiv.org/abs/1306.0895; the order of the steps, https://arxiv.org/abs/2006.09882, equation 5.

    Args:
        epsilon: Smoothness; the smaller it is, the harder the assignments.
        num_iters: Number of iterations; with ``tolerance`` the largest number.
        tolerance: A problem stops early once its clusters' sums differ from their shares by at most this.
        differentiable: Let the gradient of the iterations reach the scores.
        gather_distributed: Whether clusters are equally large over the samples of all ranks. Each rank gets the
            assignments of its own samples; see :func:`deepclust_ext.distributed.sinkhorn_knopp`.
        process_group: The ranks, a ProcessGroup or a DeviceMesh of one dimension; all by default.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.5], [0.8, 0.1]])  # both samples prefer cluster 0,
        >>> SinkhornKnopp()(scores).argmax(dim=1)  # but clusters must be equally large
        tensor([1, 0])
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        num_iters: int = 3,
        tolerance: float | None = None,
        differentiable: bool = False,
        gather_distributed: bool = False,
        process_group: "Group" = None,
    ) -> None:
        super().__init__()
        self.epsilon = check_positive(epsilon, "epsilon")
        self.num_iters = check_integer(num_iters, "num_iters", 1)
        self.tolerance = None if tolerance is None else check_non_negative(tolerance, "tolerance")
        self.differentiable = check_bool(differentiable, "differentiable")
        self.gather_distributed = distributed.check_ranks(gather_distributed, process_group)
        self.process_group = process_group

    def forward(
        self,
        scores: Tensor,  # (..., N, K)
        sample_marginals: Tensor | None = None,  # (N,) or (..., N)
        cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    ) -> Tensor:
        """Return the assignments (..., N, K)."""
        assign: Callable[..., Tensor] = sinkhorn_knopp
        if self.gather_distributed:
            assign = partial(distributed.sinkhorn_knopp, process_group=self.process_group)
        return assign(
            scores,
            epsilon=self.epsilon,
            num_iters=self.num_iters,
            sample_marginals=sample_marginals,
            cluster_marginals=cluster_marginals,
            tolerance=self.tolerance,
            differentiable=self.differentiable,
        )

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"epsilon={self.epsilon}, num_iters={self.num_iters}, tolerance={self.tolerance}, "
            f"differentiable={self.differentiable}, gather_distributed={self.gather_distributed}"
        )
