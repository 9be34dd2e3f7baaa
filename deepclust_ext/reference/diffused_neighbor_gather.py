"""Samples drawn among the nearest neighbors of a query, in plain PyTorch."""

import math

import torch
from torch import Tensor

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.nearest_neighbors import nearest_neighbors
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.reference.philox import draw_seed, normal, uniform


@float32_under_autocast
def diffused_neighbor_gather(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    num_neighbors: int = 10,
    temperature: float = 0.1,
    noise_std: float = 0.001,
    num_steps: int = 1,
    num_samples: int = 1,
    exclude: Tensor | None = None,  # (B,) int64
    valid: Tensor | None = None,  # (M,) bool
    normalize: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw by inverting cumulative sums; see :func:`deepclust_ext.diffused_neighbor_gather` for the contract."""
    seed = draw_seed(generator)
    bank = bank if num_neighbors else query[:0]
    size = (query.shape[0], num_samples)
    indices = torch.full(size, -1, device=query.device)
    poison = torch.zeros(size, dtype=query.dtype, device=query.device)  # NaN where the sample is
    for step in range(num_steps if num_neighbors else 0):
        chances = uniform(seed, *size, step, query.device).unsqueeze(-1)
        if step == 0:
            found = nearest_neighbors(query.detach(), bank.detach(), k=num_neighbors, exclude=exclude, valid=valid)
            cosines, candidates = (x.unsqueeze(1).expand(-1, num_samples, -1) for x in found)
            counts = candidates >= 0
        else:  # one more, of which the query's excluded row is taken out again
            left_out = indices if exclude is None else torch.where(indices >= 0, indices, exclude.unsqueeze(1))
            count = num_neighbors + (exclude is not None)
            rows = _standing(query, bank, indices).flatten(0, 1)
            found = nearest_neighbors(rows.detach(), bank.detach(), k=count, exclude=left_out.flatten(), valid=valid)
            cosines, candidates = (x.unflatten(0, size) for x in found)
            counts = candidates >= 0
            if exclude is not None:
                counts = counts & (candidates != exclude.view(-1, 1, 1))
                counts = counts & (counts.cumsum(dim=-1) <= num_neighbors)
        poison = poison.masked_fill(cosines[..., 0].isnan(), math.nan)
        logits = cosines.double().masked_fill(~counts, -math.inf)
        largest = torch.where(counts.any(dim=-1, keepdim=True), logits.amax(dim=-1, keepdim=True), 0)
        weights = ((logits - largest) / temperature).exp()
        sums = weights.cumsum(dim=-1)
        has_weight = torch.where(weights > 0, torch.arange(weights.shape[-1], device=query.device), 0)
        position = (sums <= chances * sums[..., -1:]).sum(dim=-1).minimum(has_weight.amax(dim=-1))
        drawn = candidates.gather(-1, position.unsqueeze(-1)).squeeze(-1)
        indices = torch.where(counts.any(dim=-1), drawn, indices)
    samples = _standing(query, bank, indices) + poison.unsqueeze(-1)
    samples = samples + (noise_std * normal(seed, *size, query.shape[1], query.device)).to(query.dtype)
    if normalize:
        finite = samples.isfinite().all(dim=-1, keepdim=True)
        samples = l2_normalize(samples, dim=-1).masked_fill(~finite, math.nan)
    return samples, indices


def _standing(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    indices: Tensor,  # (B, S) int64
) -> Tensor:
    """Return the rows (B, S, D) of the bank at the indices, the query's own where the index is -1."""
    own = query.unsqueeze(1).expand(-1, indices.shape[1], -1)
    if len(bank) == 0:
        return own
    return torch.where(indices.unsqueeze(-1) >= 0, bank[indices.clamp(min=0)], own)
