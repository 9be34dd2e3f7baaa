"""Sinkhorn-Knopp over samples that are spread over ranks, with one exchange of K numbers in each iteration."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepclust_ext import ops
from deepclust_ext.distributed.exchange import exchange, sum_in_order, sum_over_ranks
from deepclust_ext.distributed.group import resolve_group, shards_of
from deepclust_ext.ops._checks import check_bool, result_dtype
from deepclust_ext.ops.sinkhorn_knopp import check_sinkhorn
from deepclust_ext.reference.sinkhorn_knopp import (
    largest_by_cluster,
    log_shares,
    nan_if_not_finite,
    power_of_two,
    scaled_scores,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deepclust_ext.distributed.group import Group


@torch.compiler.disable
def sinkhorn_knopp(
    scores: Tensor,  # (..., n, K)
    *,
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,  # (n,) or (..., n)
    cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    tolerance: float | None = None,
    differentiable: bool = False,
    return_num_iters: bool = False,
    process_group: "Group" = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute :func:`deepclust_ext.sinkhorn_knopp` of samples that are spread over ranks.

    The iterates are those of the op with the samples of all ranks, and finite for the same inputs. An iteration
    exchanges K numbers for each problem: the logarithms of the ranks' sums, which are combined in the order of the
    ranks. Sums are logarithmic and computed by torch. So memory is several times n K, and a rank takes longer than the
    op does for as many samples.

    Args:
        scores: This rank's similarities (..., n, K); n may differ between ranks and be 0.
        epsilon: As of the op.
        num_iters: As of the op.
        sample_marginals: Shares (n,) or (..., n) of this rank's samples; divided by the sum over all ranks.
        cluster_marginals: As of the op, the same on all ranks.
        tolerance: As of the op. Problems stop on all ranks at once.
        differentiable: As of the op; the gradients of other ranks' results reach this rank's scores too.
        return_num_iters: As of the op.
        process_group: The ranks; all by default.

    Returns:
        The assignments (..., n, K) of this rank's samples in the input dtype, times the number of all samples. A NaN or
        Inf on any rank makes a problem NaN on all.

    Raises:
        TypeError: As the op.
        ValueError: As the op.
    """
    check_bool(return_num_iters, "return_num_iters")
    epsilon, num_iters, tolerance = check_sinkhorn(
        scores, epsilon, num_iters, sample_marginals, cluster_marginals, tolerance, differentiable
    )
    group = resolve_group(process_group)
    total = shards_of(scores.transpose(0, -2), group).total
    *batch, _, num_clusters = scores.shape
    dtype = result_dtype(scores)
    used = torch.full(batch, num_iters, dtype=torch.int64, device=scores.device)
    if total == 0 or num_clusters == 0 or 0 in batch:
        return (scores.to(dtype), used) if return_num_iters else scores.to(dtype)
    if group is None or group.size() == 1:
        whole: Tensor | tuple[Tensor, Tensor] = ops.sinkhorn_knopp(
            scores,
            epsilon=epsilon,
            num_iters=num_iters,
            sample_marginals=sample_marginals,
            cluster_marginals=cluster_marginals,
            tolerance=tolerance,
            differentiable=differentiable,
            return_num_iters=return_num_iters,  # type: ignore[call-overload]
        )
        return whole
    with torch.autocast(scores.device.type, enabled=False), torch.set_grad_enabled(differentiable):
        wide = scores.to(torch.promote_types(dtype, torch.float32))
        log_samples = _log_sample_shares(sample_marginals, wide, total, group)  # (..., n)
        log_clusters = log_shares(cluster_marginals, wide, num_clusters)  # (..., K)
        tops = exchange(_largest(wide, log_samples > -math.inf), lambda parts: parts.amax(dim=0), group)
        logits = scaled_scores(wide, epsilon, tops, log_clusters > -math.inf)
        by_sample = torch.where(log_samples == -math.inf, -math.inf, 0.0).to(wide.dtype)
        by_cluster = torch.zeros_like(log_clusters)
        active = torch.ones(batch, dtype=torch.bool, device=wide.device)
        for iteration in range(num_iters):
            column_sums = _OverRanks.apply(_LogSumExp.apply(logits, by_sample.unsqueeze(-1), -2), group)  # (..., K)
            if tolerance is not None and iteration > 0:
                error = ((column_sums + by_cluster).exp() - log_clusters.exp()).abs().sum(dim=-1)
                used = torch.where(active & (error <= tolerance), iteration, used)
                active = active & (error > tolerance)
            new_by_cluster = log_clusters - column_sums
            new_by_sample = log_samples - _LogSumExp.apply(logits, new_by_cluster.unsqueeze(-2), -1)
            by_cluster = torch.where(active.unsqueeze(-1), new_by_cluster, by_cluster)
            by_sample = torch.where(active.unsqueeze(-1), new_by_sample, by_sample)
        plan = ((logits + by_sample.unsqueeze(-1) + by_cluster.unsqueeze(-2)).exp() * total).to(dtype)
    return (plan, used) if return_num_iters else plan


def _largest(
    scores: Tensor,  # (..., n, K)
    has_sample: Tensor,  # (..., n)
) -> Tensor:
    """Return the largest scores of this rank's samples, (..., 1, K)."""
    if scores.shape[-2]:
        return largest_by_cluster(scores, has_sample)
    return scores.new_full((*scores.shape[:-2], 1, scores.shape[-1]), -math.inf)


def _log_sample_shares(
    marginals: Tensor | None,  # (n,) or (..., n)
    scores: Tensor,  # (..., n, K)
    total: int,
    group: "ProcessGroup",
) -> Tensor:
    """Return the logarithms of shares that add up to 1 over the samples of all ranks, (..., n)."""
    shape = scores.shape[:-1]
    if marginals is None:
        return scores.new_full(shape, -math.log(total))
    shares = marginals.detach().double()
    largest = shares.amax(dim=-1, keepdim=True) if shape[-1] else shares.new_zeros(*shares.shape[:-1], 1)
    largest = exchange(largest, lambda parts: parts.amax(dim=0), group)
    shares = (shares / power_of_two(largest)).to(scores.dtype)
    sums = sum_over_ranks(shares.sum(dim=-1, keepdim=True) + nan_if_not_finite(shares, (-1,)), group)
    logarithms: Tensor = (shares / sums).log() + 0 * sums
    return logarithms.expand(shape)


class _LogSumExp(torch.autograd.Function):
    """log sum exp(logits + potential) over a dimension; the backward pass computes the exponentials again."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,  # (..., n, K)
        potential: Tensor,  # (..., n, 1) or (..., 1, K)
        dim: int,
    ) -> Tensor:
        result = (logits + potential).logsumexp(dim=dim)
        ctx.dim = dim
        ctx.save_for_backward(logits, potential, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        logits, potential, result = ctx.saved_tensors
        # A rank whose samples all have no share takes no part.
        result = result.masked_fill(result == -math.inf, 0).unsqueeze(ctx.dim)
        shares = (logits + potential - result).exp() * grad.unsqueeze(ctx.dim)
        return shares, shares.sum(dim=-3 - ctx.dim, keepdim=True), None


class _OverRanks(torch.autograd.Function):
    """log sum exp over the ranks, the same on each."""

    @staticmethod
    def forward(ctx: Any, logarithms: Tensor, group: "ProcessGroup") -> Tensor:
        result = exchange(logarithms, lambda parts: parts.logsumexp(dim=0), group)
        ctx.group = group
        ctx.save_for_backward(logarithms, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logarithms, result = ctx.saved_tensors
        return exchange(grad, sum_in_order, ctx.group) * (logarithms - result).exp(), None
