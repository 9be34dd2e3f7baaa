"""Temperatures whose value is known to the device alone."""

import torch
from torch import Tensor


def positive_or_nan(
    temperature: float | Tensor,  # a tensor ()
) -> float | Tensor:
    """Return the temperature, as a tensor NaN, with its gradient, where it is not above 0; a number stays."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature * torch.ones_like(temperature).masked_fill(~(temperature > 0), torch.nan)
