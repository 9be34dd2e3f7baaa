"""Half precision: like the native ops, the references make no products in it under autocast, and overflow nowhere."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def is_autocast_on(device: str) -> bool:
    """Return whether autocast is on for a type of device; of the device meta torch does not know, and it is not."""
    return device != "meta" and torch.is_autocast_enabled(device)


def float32_under_autocast(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function cast its tensors of half precision to float32 if autocast is on, and compute without autocast."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> _Result:
        devices = (x.device.type for x in itertools.chain(args, kwargs.values()) if isinstance(x, Tensor))
        device = next(devices, "cpu")
        if not is_autocast_on(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})

    return run


def _wide(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


def with_range(value: Any) -> Any:
    """Return a tensor of float16 in float32, and all else as it is: float16 has no numbers beyond 65504."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
