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

    torch's own ``normalize`` multiplies the gradient of such a row, which is mostly a row of zeros, by 1e12. Clipping
    by the norm of all gradients then leaves nothing of any other row. And if squares or the norm overflow, in float32
    from about 1e19 on and in float16 from 65504 on, torch's result is a row of zeros.
    """
    if not rows.shape[dim]:
        return rows.clone()
    largest = rows.detach().abs().amax(dim=dim, keepdim=True)
    is_large = largest > torch.finfo(rows.dtype).max ** (3 / 8)
    # A power of two, so that digits stay as they are. It takes the largest number of the dtype to about that limit.
    factor = {torch.float16: 2.0**-10, torch.float64: 2.0**-640}.get(rows.dtype, 2.0**-80)
    scale = torch.ones_like(largest).masked_fill(is_large, factor)
    rows = rows * scale
    norms = rows.norm(dim=dim, keepdim=True)
    is_short = norms <= MIN_NORM * scale
    floor = 1.0 if rows.dtype == torch.float16 else MIN_NORM  # float16 has no such number, and short rows are 0
    unit = rows / norms.masked_fill(is_short, floor)
    return torch.where(is_short, unit.detach(), unit)
