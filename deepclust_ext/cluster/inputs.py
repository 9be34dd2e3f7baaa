"""Inputs of the estimators: rows of many kinds as tensors, their weights, and sources of random numbers."""

import math
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.cluster.ranks import bounds_over_ranks
from deepclust_ext.ops._checks import SUPPORTED_DTYPES, check_tensor, check_values
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ArrayRows: TypeAlias = NDArray[Any] | Sequence[Sequence[float]]
Rows: TypeAlias = Tensor | ArrayRows
RandomState: TypeAlias = int | np.random.RandomState | np.random.Generator | torch.Generator | None

Weights: TypeAlias = Tensor | ArrayLike | None

_GREATEST_WEIGHT = 1e100  # times a squared distance it is still a number


class UnfittedError(NotFittedError, RuntimeError):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator was used before it was fitted."""


def as_rows(
    values: Rows,  # (N, D)
    name: str,
) -> Tensor:
    """Return rows as a floating tensor: of arrays without a copy where torch can, integers as float64.

    Raises:
        TypeError: They are not numbers, or are sparse, or a complex tensor.
        ValueError: They do not have the shape (N, D) with D > 0, or are a complex array (as scikit-learn requires).
    """
    rows = values if isinstance(values, Tensor) else _from_array(values, name)
    if rows.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got a sparse one of layout {rows.layout}")
    check_values(rows, name)
    if rows.is_complex() or rows.is_quantized or (rows.is_floating_point() and rows.dtype not in SUPPORTED_DTYPES):
        raise TypeError(f"{name}: expected real numbers, got {rows.dtype}")
    if rows.dim() != 2 or rows.shape[1] == 0:
        hint = ""  # in scikit-learn's words
        if rows.dim() == 1:
            hint = ". Reshape your data: (1, D) for a single row, (N, 1) for a single column"
        elif rows.dim() == 2:
            hint = f": 0 feature(s) (shape={tuple(rows.shape)}) while a minimum of 1 is required."
        raise ValueError(f"{name}: expected shape (N, D) with D > 0, got {tuple(rows.shape)}{hint}")
    return rows.detach() if rows.is_floating_point() else rows.double()


def as_given(
    result: Tensor,
    values: object,
) -> Any:
    """Return a result in the form of the input: a tensor for a tensor, else a numpy array."""
    return result if isinstance(values, Tensor) else result.numpy()


def same_values(
    first: Tensor,
    second: Tensor,
) -> bool:
    """Return whether two tensors have the same values, in one dtype on one device."""
    return (first.dtype, first.device) == (second.dtype, second.device) and torch.equal(first, second)


def checked_rows(
    features: Tensor,  # (N, D)
    metric: str,
    name: str = "features",
    group: "ProcessGroup | None" = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return rows, for cosine unit rows, in the dtype of the computation; waits for the device once.

    With a group all ranks raise if one rank has such a number.

    Raises:
        ValueError: A number is not finite, or so large that squared Euclidean distances are not.
    """
    dtype = torch.promote_types(features.dtype, torch.float32) if dtype is None else dtype
    is_large = check_numbers(features, metric, name, group, dtype)
    if is_large:  # of cosine: their direction is known in their own dtype, perhaps in no shorter one
        return l2_normalize(features.to(torch.promote_types(features.dtype, dtype)), dim=1).to(dtype)
    rows = features.to(dtype).contiguous()
    return normalize(rows, dim=1) if metric == "cosine" else rows  # which reads rows less often


def check_numbers(
    features: Tensor,  # (N, D)
    metric: str,
    name: str,
    group: "ProcessGroup | None",
    dtype: torch.dtype,
) -> bool:
    """Return whether numbers are too large for squared Euclidean distances of a dtype, which cosines do not need.

    Raises:
        ValueError: A number is not finite, or too large for the metric.
    """
    if not features.numel() and group is None:
        return False
    # Beyond, a squared distance may overflow; of unit rows none does.
    limit = (torch.finfo(dtype).max / (4 * features.shape[1])) ** 0.5
    low, high = bounds_over_ranks(features, group)
    is_large = not (-limit <= low <= high <= limit or low > high)
    is_finite = math.isfinite(low) and math.isfinite(high)
    if is_large and not (metric == "cosine" and is_finite):
        what = f"{low:.3g} to {high:.3g}" if is_finite else "NaN or infinity"
        within = "" if metric == "cosine" else f" within {limit:.3g}"
        raise ValueError(f"{name}: expected finite numbers{within}, got {what}")
    return is_large


def as_weights(
    values: Weights,  # (N,)
    rows: Tensor,  # (N, D)
    group: "ProcessGroup | None" = None,
) -> Tensor | None:
    """Return weights (N,) as float64 on the device of their rows; None if all are 1, which is the same as no weights.

    Raises:
        TypeError: They are not real numbers.
        ValueError: There is not one for each row, one is below 0 or not finite, or none is above 0.
    """
    if values is None:
        return None
    weights = values if isinstance(values, Tensor) else _from_array(values, "sample_weight")
    check_tensor(weights, "sample_weight")
    check_values(weights, "sample_weight")
    if weights.is_complex() or weights.is_quantized:
        raise TypeError(f"sample_weight: expected real numbers, got {weights.dtype}")
    if weights.shape != rows.shape[:1]:
        raise ValueError(f"sample_weight: expected shape ({len(rows)},), one for each row, got {tuple(weights.shape)}")
    weights = weights.detach().to(rows.device, torch.float64)
    low, high = bounds_over_ranks(weights, group)
    if low > high:  # there is none
        low = high = 1.0
    if not 0 <= low <= high <= _GREATEST_WEIGHT:
        raise ValueError(f"sample_weight: expected numbers from 0 to {_GREATEST_WEIGHT:g}, got {low:.3g} to {high:.3g}")
    if high == 0:
        raise ValueError("sample_weight: expected at least one weight above zero, got zeros alone")
    return None if low == high == 1 else weights


def _from_array(values: Any, name: str) -> Tensor:
    if issparse(values):
        raise TypeError(f"{name}: expected a dense array, got sparse {type(values).__name__}; toarray() makes one")
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim:  # of None alone numpy would make NaN
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:  # rows of different lengths, or what are no numbers
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__}: {error}") from None
    if array.dtype.kind == "c":
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}: Complex data not supported")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__} of dtype {array.dtype}")
    if array.dtype.kind in "biu" or array.itemsize > 8:
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
    """Return a generator on the CPU, or None for torch's default one. A given generator advances with each call."""
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
