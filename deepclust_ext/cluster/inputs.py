"""What the estimators take: rows of many kinds as tensors, whole numbers, and sources of random numbers."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows: TypeAlias = Tensor | NDArray[Any] | Sequence[Sequence[float]]
RandomState: TypeAlias = int | np.random.RandomState | np.random.Generator | torch.Generator | None


def as_rows(
    values: Rows,  # (N, D)
    name: str,
) -> Tensor:
    """Return rows as a floating tensor: of arrays without a copy where torch can, integers as float64.

    Raises:
        TypeError: They are not numbers, or complex.
        ValueError: They are not of shape (N, D) with D > 0.
    """
    rows = values if isinstance(values, Tensor) else _from_array(values, name)
    if rows.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {rows.dtype}")
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, D) with D > 0, got {tuple(rows.shape)}")
    return rows.detach() if rows.is_floating_point() else rows.double()


def _from_array(values: Any, name: str) -> Tensor:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__}: {error}") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__} of dtype {array.dtype}")
    if array.dtype.kind in "biu" or array.dtype.itemsize > 16 or (array.dtype.kind == "f" and array.itemsize > 8):
        array = array.astype(np.float64)
    # Torch knows neither negative strides nor foreign byte orders.
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():  # a memory map may be for reading alone: nothing is written here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.as_tensor(array, device="cpu")


def check_random_state(state: object) -> None:
    """Require what :func:`make_generator` takes.

    Raises:
        TypeError: It is of another type.
        ValueError: A seed has more than 64 bits.
    """
    if isinstance(state, (np.random.RandomState, np.random.Generator, torch.Generator)) or state is None:
        return
    if isinstance(state, bool) or not isinstance(state, Integral):
        kinds = "an integer, numpy's RandomState or Generator, torch's Generator or None"
        raise TypeError(f"random_state: expected {kinds}, got {state!r}")
    if not -(2**63) <= int(state) < 2**64:
        raise ValueError(f"random_state: expected a seed of 64 bits, got {state}")


def make_generator(state: RandomState) -> torch.Generator | None:
    """Return a generator on the CPU; None is torch's default one. A given generator moves on with each call."""
    if state is None or (isinstance(state, torch.Generator) and state.device.type == "cpu"):
        return state
    if isinstance(state, np.random.RandomState):
        seed = int(state.randint(2**31 - 1))
    elif isinstance(state, np.random.Generator):
        seed = int(state.integers(2**63 - 1))
    elif isinstance(state, torch.Generator):
        seed = int(torch.randint(2**63 - 1, (), generator=state, device=state.device))
    else:
        seed = int(state)
    return torch.Generator(device="cpu").manual_seed(seed)
