"""Checks of settings: each gives back a plain Python value, which a checkpoint can hold, or names the setting."""

from numbers import Integral, Real
from typing import Any


def integer(value: Any, name: str, least: int) -> int:
    """Return an integer of any library as Python's own.

    Raises:
        TypeError: If it is no integer; True and False are none.
        ValueError: If it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def number(value: Any, name: str) -> float:
    """Return a number of any library as Python's own float.

    Raises:
        TypeError: If it is no number; True, False and tensors are none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def instance(value: Any, name: str, kind: Any, expected: str) -> Any:
    """Return a value of a kind, which ``expected`` describes; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return value
