"""The nearest rows of a bank by cosine, in plain PyTorch."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepclust_ext.reference.autocast import float32_under_autocast
from deepclust_ext.reference.normalize import l2_normalize
from deepclust_ext.reference.tangents import refuse_tangents


@float32_under_autocast
def nearest_neighbors(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    k: int,
    exclude: Tensor | None = None,  # (B,) int64
    valid: Tensor | None = None,  # (M,) bool
) -> tuple[Tensor, Tensor]:
    """Sort the full (B, M) matrix of cosines; see :func:`deepclust_ext.nearest_neighbors` for the contract."""
    refuse_tangents("nearest_neighbors", query, bank)
    query, bank = query.detach(), bank.detach()
    if valid is not None:
        bank = torch.where(valid.unsqueeze(1), bank, 0)
    finite = query.isfinite().all(dim=1, keepdim=True) & bank.isfinite().all()  # (B, 1)
    cosines = l2_normalize(query, dim=1) @ l2_normalize(bank, dim=1).T  # (B, M)
    if valid is not None:
        cosines = cosines.masked_fill(~valid, -math.inf)
    if exclude is not None:
        cosines = cosines.masked_fill(torch.arange(len(bank), device=bank.device) == exclude.unsqueeze(1), -math.inf)
    cosines = pad(cosines, (0, max(k - len(bank), 0)), value=-math.inf)
    best, indices = (x[:, :k] for x in cosines.sort(dim=1, descending=True, stable=True))  # ties: the lowest index
    indices = torch.where(finite & (best > -math.inf), indices, -1)
    return torch.where(finite, best, math.nan), indices
