"""Argument checks of the public functions, the same for the native ops, the reference and traced calls.

The C++ ops check again what protects memory, for callers that reach them through ``torch.ops``.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from deepclust_ext.reference.autocast import is_autocast_on

#: The largest seed of a run is that of numpy's global generator.
LARGEST_SEED = 2**32 - 1

#: Ops take integers of 64 bits.
LARGEST_INTEGER = 2**63 - 1

#: The largest factor or divisor of a loss: float32 holds both it and its inverse.
LARGEST_FACTOR = 1e30

#: Of what cosines are multiplied with in an exponent: float32 holds it, with room for sums.
LARGEST_EXPONENT = 1e36

#: The largest size that an argument alone decides, such as a number of clusters: 32 bits.
LARGEST_SIZE = 2**31 - 1

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(value: object, name: str) -> None:
    """Require a dense tensor; TypeError otherwise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {got}")


def check_dtype(tensor: Tensor, name: str) -> None:
    """Require a floating dtype that the ops take; TypeError otherwise."""
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {tensor.dtype}")


def check_values(tensor: Tensor, name: str) -> None:
    """Require a tensor that has values; TypeError for one on the device meta."""
    if tensor.is_meta:
        raise TypeError(f"{name}: expected a tensor with values, got one on the device meta")


def check_labels(labels: Tensor, name: str) -> None:
    """Require a dense tensor of integers; TypeError otherwise."""
    check_tensor(labels, name)
    is_other = labels.is_floating_point() or labels.is_complex() or labels.is_quantized
    if is_other or labels.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {labels.dtype}")


def check_feature_pair(
    first: Tensor,  # (N, D)
    second: Tensor,  # (N, D)
    first_name: str,
    second_name: str,
) -> None:
    """Require two floating tensors of one shape (N, D), D > 0, one dtype and one device.

    Under autocast half precision counts as float32.

    Raises:
        TypeError: An argument is no dense tensor, or of an unsupported or different dtype.
        ValueError: A shape or device does not fit.
    """
    if (  # the common case in one expression: this runs on every call
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and first.layout is second.layout is torch.strided
        and not (first.is_nested or second.is_nested)
        and first.dtype is second.dtype
        and first.dtype in SUPPORTED_DTYPES
        and first.dim() == 2
        and first.shape == second.shape
        and first.shape[1] > 0
        and first.device == second.device
    ):
        return
    for tensor, name in ((first, first_name), (second, second_name)):
        check_tensor(tensor, name)
        check_dtype(tensor, name)
    if first.dim() != 2 or first.shape[1] == 0:
        raise ValueError(f"{first_name}: expected shape (N, D) with D > 0, got {tuple(first.shape)}")
    if second.shape != first.shape:
        expected = f"{tuple(first.shape)} like {first_name}"
        raise ValueError(f"{second_name}: expected shape {expected}, got {tuple(second.shape)}")
    if second.device != first.device:
        raise ValueError(f"{second_name}: expected device {first.device} like {first_name}, got {second.device}")
    if not fit(first, second):
        raise TypeError(f"{second_name}: expected dtype {first.dtype} like {first_name}, got {second.dtype}")


def fit(first: Tensor, second: Tensor) -> bool:
    """Return whether two floating tensors of a device have one dtype, under autocast once it has cast them."""
    is_cast = is_autocast_on(first.device.type)
    return first.dtype == second.dtype or (is_cast and torch.float64 not in (first.dtype, second.dtype))


def check_like(
    tensor: Tensor,  # (`rows`, `columns`)
    name: str,
    like: Tensor,
    like_name: str,
    *,
    rows: int | None = None,
    columns: int | None = None,
) -> None:
    """Require a tensor of two dimensions, with the dtype (except under autocast) and device of a checked one.

    `rows` and `columns` are the sizes that it must have. Without `rows` there may be any number of rows, without
    `columns` any number of columns above 0.

    Raises:
        TypeError: It is no dense tensor, or of another dtype.
        ValueError: Its shape or device does not fit.
    """
    check_tensor(tensor, name)
    fits = tensor.dim() == 2 and (tensor.shape[1] > 0 if columns is None else tensor.shape[1] == columns)
    if not fits or (rows is not None and tensor.shape[0] != rows):
        expected = f"({'any number' if rows is None else rows}, {'above 0' if columns is None else columns})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")
    if tensor.dtype != like.dtype:
        check_dtype(tensor, name)
        if not fit(like, tensor):
            raise TypeError(f"{name}: expected dtype {like.dtype} like {like_name}, got {tensor.dtype}")


def check_query_and_bank(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    exclude: Tensor | None,  # (B,)
    valid: Tensor | None,  # (M,)
) -> None:
    """Require floating queries and bank rows of D > 0 elements, an index for each query, and a mask of rows.

    Raises:
        TypeError: An argument is no dense tensor, or of an unsupported or different dtype (except under autocast).
        ValueError: A shape or device does not fit.
    """
    check_tensor(query, "query")
    check_dtype(query, "query")
    if query.dim() != 2 or query.shape[1] == 0:
        raise ValueError(f"query: expected shape (B, D) with D > 0, got {tuple(query.shape)}")
    check_like(bank, "bank", query, "query", columns=query.shape[1])
    for tensor, name, like, like_name, dtype in (
        (exclude, "exclude", query, "query", torch.int64),
        (valid, "valid", bank, "bank", torch.bool),
    ):
        if tensor is None:
            continue
        check_tensor(tensor, name)
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.shape[0] != like.shape[0]:
            expected = f"({like.shape[0]},), one for each row of {like_name}"
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
        if tensor.device != like.device:
            raise ValueError(f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")


def check_rows_of_bank(
    exclude: Tensor | None,  # (B,) int64
    bank_rows: int,
) -> None:
    """Require indices of rows of the bank or -1; ValueError otherwise.

    Values are checked only where that waits for nothing: on the CPU, outside of compilers and transforms.
    """
    if exclude is None or not len(exclude) or not can_look_at(exclude):
        return
    low, high = (int(end) for end in exclude.aminmax())
    if low < -1 or high >= bank_rows:
        got = low if low < -1 else high
        rows = f"rows of bank, 0 to {bank_rows - 1}, or -1 for none" if bank_rows else "-1, since bank has no rows"
        raise ValueError(f"exclude: expected {rows}, got {got}")


def check_number(value: object, name: str) -> float:
    """Return a number as Python's float, numpy's numbers too; TypeError if it is none, or a bool."""
    if type(value) is float:  # the common case: the rest costs more
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r:.80}")
    return float(value)


def check_positive(value: object, name: str) -> float:
    """Return a finite number above 0 as a float; TypeError or ValueError otherwise."""
    number = check_number(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return number


def check_non_negative(value: object, name: str) -> float:
    """Return a finite number of at least 0 as a float; TypeError or ValueError otherwise."""
    number = check_number(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    return number


def check_divisor(value: object, name: str) -> float:
    """Return a number from 1e-30 to 1e30 as a float; TypeError or ValueError otherwise."""
    number = check_positive(value, name)
    if not 1 / LARGEST_FACTOR <= number <= LARGEST_FACTOR:
        raise ValueError(f"{name}: expected a number from {1 / LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}, got {value}")
    return number


def check_factor(value: object, name: str) -> float:
    """Return a number from 0 to 1e30 as a float; TypeError or ValueError otherwise."""
    number = check_non_negative(value, name)
    if number > LARGEST_FACTOR:
        raise ValueError(f"{name}: expected a number of at most {LARGEST_FACTOR:g}, got {value}")
    return number


def check_hardness(value: object, temperature: float | Tensor) -> float:
    """Return a number from 0 to 1e30, divided by a temperature that can be seen at most 1e36; errors otherwise.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    hardness = check_factor(value, "hardness")
    if isinstance(temperature, Tensor):
        if not can_look_at(temperature):
            return hardness
        temperature = temperature.item()
    if hardness > LARGEST_EXPONENT * temperature:
        most = f"{LARGEST_EXPONENT:g} times the temperature, which is {temperature:g}"
        raise ValueError(f"hardness: expected at most {most}, got {value}")
    return hardness


def check_share(value: object, name: str) -> float:
    """Return a number in [0, 1) as a float; TypeError or ValueError otherwise."""
    number = check_number(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
    return number


def check_fraction(value: object, name: str) -> float:
    """Return a number in [0, 1] as a float; TypeError or ValueError otherwise."""
    number = check_number(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return number


def check_temperature(
    value: float | Tensor,  # a tensor ()
    name: str = "temperature",
    rows: Tensor | None = None,
    rows_name: str = "",
) -> float | Tensor:
    """Return a number from 1e-30 to 1e30 as a float, or a 0-dimensional floating tensor of such a one.

    The value of a tensor is checked only where that waits for nothing: on the CPU, outside of compilers and transforms.
    Beside `rows` it must be on the CPU or on their device, as for torch's own operators.

    Raises:
        TypeError: It is neither a number nor a floating tensor.
        ValueError: The number is out of range, the tensor has dimensions, it is seen to be out of range, or its device
            does not fit.
    """
    if not isinstance(value, Tensor):
        return check_divisor(value, name)
    check_tensor(value, name)
    if value.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{name}: expected a number or a floating tensor, got a tensor of {value.dtype}")
    if value.dim():
        raise ValueError(f"{name}: expected a number or a tensor of shape (), got {tuple(value.shape)}")
    if rows is not None and value.device != rows.device and value.device.type != "cpu":
        expected = f"{rows.device} like {rows_name}" + (" or cpu" if rows.device.type != "cpu" else "")
        raise ValueError(f"{name}: expected device {expected}, got {value.device}")
    if can_look_at(value):
        number = value.item()
        if number <= 0:
            raise ValueError(f"{name}: expected a number above 0, got {number:g}")
        if not math.isnan(number):
            check_divisor(number, name)
    return value


def can_look_at(tensor: Tensor) -> bool:
    """Return whether a tensor has values that can be read without waiting for a device or breaking a trace."""
    return (
        tensor.device.type == "cpu"
        # Subclasses with rules of their own, such as fake tensors, which have no values outside of their mode either.
        and not torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and not is_in_torch_dispatch_mode()
    )


def counted(count: int, noun: str) -> str:
    """Return a number of things in words, such as "1 class" and "2 classes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def plain(temperature: float | Tensor) -> float | str:
    """Return the current value of a temperature, to print it; of one without a value, the device."""
    if not isinstance(temperature, Tensor):
        return temperature
    return "meta" if temperature.is_meta else temperature.item()


def check_integer(value: object, name: str, low: int, high: int | None = None, condition: str = "") -> int:
    """Return an integer of at least ``low`` and at most ``high`` as Python's int, numpy's integers too.

    A compiler's symbol for an integer that changes between calls stays one.

    Raises:
        TypeError: It is no integer, or a bool.
        ValueError: It is out of range; ``condition`` says, for the message, when that range applies.
    """
    # The common case is told by its type: the rest costs more. To make an int of a symbol would keep this call's value.
    if type(value) is int or isinstance(value, torch.SymInt):
        number: int = value  # type: ignore[assignment]
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r:.80}")
    else:
        number = int(value)
    if number < low or number > (LARGEST_INTEGER if high is None else high):
        above = f"at least {low}" if number < low else "an integer of 64 bits"
        expected = above if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: expected {expected}{condition}, got {value}")
    return number


def check_size(value: object, name: str, low: int = 1) -> int:
    """Return a size of 32 bits, such as a number of clusters; TypeError or ValueError otherwise."""
    size = check_integer(value, name, low)
    if size > LARGEST_SIZE:
        raise ValueError(f"{name}: expected at most {LARGEST_SIZE}, got {value}")
    return size


def check_seed(value: object, name: str = "seed") -> int:
    """Return the seed of a run as Python's int; TypeError or ValueError for what numpy's generator does not take."""
    return check_integer(value, name, 0, LARGEST_SEED)


def check_bool(value: object, name: str) -> bool:
    """Return True or False; TypeError for all else, even None, 0 or "no"."""
    if value is not True and value is not False:
        raise TypeError(f"{name}: expected True or False, got {value!r:.80}")
    return value


def check_type(value: Any, name: str, kind: Any, expected: str) -> Any:
    """Return a value of a kind, which ``expected`` describes; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return value


def result_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype of a loss of such features: theirs, under autocast at least float32."""
    is_cast = is_autocast_on(features.device.type)
    return torch.promote_types(features.dtype, torch.float32) if is_cast else features.dtype


def check_metric(metric: object) -> None:
    """Require "euclidean" or "cosine"; ValueError otherwise."""
    if not isinstance(metric, str) or metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric: expected 'euclidean' or 'cosine', got {metric!r}")


def check_reduction(reduction: str) -> None:
    """Require "none", "mean" or "sum"; ValueError otherwise."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
