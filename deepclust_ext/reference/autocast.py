"""Autocast: like the native ops, the references make no products in half precision under it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def float32_under_autocast(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function cast its tensors of half precision to float32 if autocast is on, and compute without autocast."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> _Result:
        devices = (x.device.type for x in itertools.chain(args, kwargs.values()) if isinstance(x, Tensor))
        device = next(devices, "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})

    return run


def _wide(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value
