"""Division of rows by their norm, with gradient 0 where a row has no direction, in plain PyTorch."""

import torch
from torch import Tensor

#: Rows are divided by max(norm, this), as torch.nn.functional.normalize does.
MIN_NORM = 1e-12


def l2_normalize(
    rows: Tensor,  # (..., D, ...)
    dim: int = -1,
) -> Tensor:
    """Divide rows by max(L2 norm, 1e-12), with gradient 0 at rows whose norm is below that.

    torch's own ``normalize`` gives such a row, mostly one of zeros, a gradient of 1e12 times what comes in, beside
    which clipping by the norm of all gradients leaves nothing of any other row.
    """
    norms = rows.norm(dim=dim, keepdim=True)
    is_short = norms <= MIN_NORM
    short = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)) / MIN_NORM  # float16 has no such number
    return torch.where(is_short, short.to(rows.dtype), rows / torch.where(is_short, 1, norms))
