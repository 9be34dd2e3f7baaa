"""Sinkhorn-Knopp in the log domain, in plain PyTorch."""

import math

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.tangents import refuse_tangents

#: Exponents from which on columns count from their largest: potentials of the size of cosines / 0.01 keep their digits.
_LARGEST_LOGIT = 128.0
#: By how much a row is below all columns' largest to be lifted: exp(-64) counts nothing at first, beside 1.
_LIFTED_LOGIT = 64.0


@float32_under_autocast
def sinkhorn_knopp(
    scores: Tensor,  # (..., N, K)
    *,
    epsilon: float = 0.05,
    num_iters: int = 3,
    sample_marginals: Tensor | None = None,  # (N,) or (..., N)
    cluster_marginals: Tensor | None = None,  # (K,) or (..., K)
    tolerance: float | None = None,
    differentiable: bool = False,
    return_num_iters: bool = False,
    out: Tensor | None = None,  # (..., N, K)
) -> Tensor | tuple[Tensor, Tensor]:
    """Iterate with full logarithmic sums; see :func:`deepclust_ext.sinkhorn_knopp` for the contract.

    A potential is one number here, not two as in the kernels. If both the samples' and the clusters' potentials spread
    over S times epsilon, entries err in float32 by up to about 1e-8 S, so by 1e-3 for S = 1e5.
    """
    refuse_tangents("sinkhorn_knopp", None if differentiable else scores, sample_marginals, cluster_marginals)
    if not differentiable:
        scores = scores.detach()
    *batch, num_samples, num_clusters = scores.shape
    used = torch.full(batch, num_iters, dtype=torch.int64, device=scores.device)
    if scores.numel() == 0:
        plan = scores.clone() if out is None else out
        return (plan, used) if return_num_iters else plan
    dtype, scores = scores.dtype, scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_samples = log_shares(sample_marginals, scores, num_samples)  # (..., N)
    log_clusters = log_shares(cluster_marginals, scores, num_clusters)  # (..., K)
    tops = largest_by_cluster(scores, log_samples > -math.inf)
    logits = scaled_scores(scores, epsilon, tops, log_clusters > -math.inf)
    by_sample = torch.where(log_samples == -math.inf, -math.inf, 0.0).to(scores.dtype).expand(*batch, num_samples)
    by_cluster = torch.zeros(*batch, num_clusters, dtype=scores.dtype, device=scores.device)
    active = torch.ones(batch, dtype=torch.bool, device=scores.device)
    for iteration in range(num_iters):
        column_sums = (logits + by_sample.unsqueeze(-1)).logsumexp(dim=-2)  # (..., K)
        if tolerance is not None and iteration > 0:
            error = ((column_sums + by_cluster).exp() - log_clusters.exp()).abs().sum(dim=-1)
            used = torch.where(active & (error <= tolerance), iteration, used)
            active = active & (error > tolerance)
        new_by_cluster = log_clusters - column_sums
        new_by_sample = log_samples - (logits + new_by_cluster.unsqueeze(-2)).logsumexp(dim=-1)
        by_cluster = torch.where(active.unsqueeze(-1), new_by_cluster, by_cluster)
        by_sample = torch.where(active.unsqueeze(-1), new_by_sample, by_sample)
    plan = ((logits + by_sample.unsqueeze(-1) + by_cluster.unsqueeze(-2)).exp() * num_samples).to(dtype)
    if out is not None:
        plan = out.copy_(plan)
    return (plan, used) if return_num_iters else plan


def largest_by_cluster(
    scores: Tensor,  # (..., N, K)
    has_sample: Tensor,  # (..., N) bool, shares above 0
) -> Tensor:
    """Return the largest score of every cluster, (..., 1, K); all are NaN where a score is NaN or infinite."""
    largest = scores.detach().masked_fill(~has_sample.unsqueeze(-1), -math.inf).amax(dim=-2, keepdim=True)
    return largest + nan_if_not_finite(scores, (-2, -1))


def scaled_scores(
    scores: Tensor,  # (..., N, K)
    epsilon: float,
    tops: Tensor,  # (..., 1, K) of :func:`largest_by_cluster`
    has_cluster: Tensor,  # (..., K) bool, shares above 0
) -> Tensor:
    """Return s / epsilon; scores far from 0 are shifted, as potentials allow, so that these keep their precision."""
    largest = torch.finfo(scores.dtype).max / 2  # so that no sum with a mask overflows
    epsilon = max(epsilon, torch.finfo(scores.dtype).tiny)
    no_cluster = ~has_cluster.unsqueeze(-2)
    # A column counts from its largest score.
    centers = torch.where(tops.abs() > _LARGEST_LOGIT * epsilon, tops, 0)
    centered = (scores - centers).clamp(-largest, largest)
    # A row so far below all columns' largest that it counts nothing at first counts from its own largest.
    floor = ((tops - centers) / epsilon).masked_fill(no_cluster, math.inf).amin(dim=-1, keepdim=True) - _LIFTED_LOGIT
    own = centered.detach().masked_fill(no_cluster, -largest).amax(dim=-1, keepdim=True)  # (..., N, 1)
    # Large numbers may cancel here. Then the result is in what rounding takes from their differences.
    row_tops = scores.detach().masked_fill(no_cluster, -math.inf).amax(dim=-1, keepdim=True)
    nearest = centers.abs().masked_fill(no_cluster, math.inf).argmin(dim=-1, keepdim=True)
    common = centers.gather(-1, nearest)
    relative, lost_by_relative = difference(centers, common)
    of_row, lost_by_row = difference(scores, row_tops)
    rest, lost_by_rest = difference(of_row, relative)
    rest = (rest + (lost_by_rest + lost_by_row - lost_by_relative)).clamp(-largest, largest)
    rest = rest - rest.detach().masked_fill(no_cluster, -largest).amax(dim=-1, keepdim=True)
    logits = torch.where(own / epsilon < floor, rest / epsilon + floor, centered / epsilon)
    return logits.clamp(-largest, largest).masked_fill(tops.isnan(), math.nan)


def difference(
    first: Tensor,
    second: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return a difference and, without a gradient, what rounding takes from it; 0 if it is not finite."""
    result = first - second
    a, b, d = first.detach(), second.detach(), result.detach()
    return result, torch.where(d.isfinite(), (a - (d + (a - d))) + ((a - d) - b), 0)  # Knuth


def log_shares(
    marginals: Tensor | None,  # (count,) or (..., count)
    scores: Tensor,  # (..., N, K)
    count: int,
) -> Tensor:
    """Return the logarithms of marginals that add up to 1, (..., count)."""
    if marginals is None:
        return scores.new_full((*scores.shape[:-2], count), -math.log(count))
    shares = marginals.detach().to(torch.promote_types(marginals.dtype, scores.dtype))
    # A power of two changes no digit, and then neither shares nor their sum overflow.
    shares = (shares / power_of_two(shares.amax(dim=-1, keepdim=True))).to(scores.dtype)
    logarithms = (shares / shares.sum(dim=-1, keepdim=True)).log() + nan_if_not_finite(shares, (-1,))
    return logarithms.expand(*scores.shape[:-2], count)


def power_of_two(numbers: Tensor) -> Tensor:
    """Return the largest powers of two that are not above positive numbers; NaN for 0 and for what is not finite."""
    return numbers / (2 * torch.frexp(numbers).mantissa)


def nan_if_not_finite(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Reduce dimensions to 0, or to NaN if a value is NaN or infinite."""
    return (0 * values.detach()).sum(dim=dims, keepdim=True)
