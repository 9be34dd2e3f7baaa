"""Temperatures whose value only the device knows."""

import torch
from torch import Tensor


def positive_or_nan(
    temperature: float | Tensor,  # a tensor ()
) -> float | Tensor:
    """Return the temperature; a tensor becomes NaN, which keeps its gradient, if it is not above 0."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature * torch.ones_like(temperature).masked_fill(~(temperature > 0), torch.nan)
