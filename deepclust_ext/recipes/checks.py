"""Makes dataclasses from YAML: unknown keys and wrong types are errors that say what to write."""

import difflib
import math
import re
import sys
import typing
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

#: What a type is called in a message.
WORDS: dict[Any, str] = {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}


def build(kind: type[T], values: Any, where: str) -> T:
    """Return a dataclass made from YAML values.

    Args:
        kind: The dataclass; its annotations say what a value may be.
        values: A mapping from its fields' names.
        where: Place of the values in the file, for messages.

    Raises:
        ValueError: If a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    check_keys(values, [field.name for field in fields(kind)], where)  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise ValueError(f"{where}: expected the key {field.name!r}, got none")
    checked = {key: check(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return kind(**checked)
    except ValueError as error:
        raise ValueError(in_place(error, where, hints)) from error


def in_place(error: ValueError, where: str, names: Container[str]) -> str:
    """Return what an error says of one of these names, or of their section, after its place in the file.

    Args:
        error: It may call a name "lr", "optimizer.lr" or "phase main, epochs".
        where: Place of the section, such as "mine.yaml.optimizer".
        names: Names in it.
    """
    called, _, rest = str(error).partition(":")
    parts = re.split("[., ]+", called)
    known = [place for place, part in enumerate(parts) if part in names]
    if known:
        return f"{where}.{'.'.join(parts[known[-1] :])}:{rest}"
    return f"{where}:{rest}" if called == where.rpartition(".")[2] else f"{where}: {error}"


def check_keys(values: Any, known: Sequence[str], where: str) -> None:
    """Require a mapping whose keys are known; ValueError otherwise, with the nearest known one."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {values!r}")
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: expected one of {', '.join(known)}, got {key!r}{nearest(key, known)}")


def nearest(word: Any, known: Iterable[str]) -> str:
    """Return the most similar known word, as a question, or ""."""
    matches = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check(value: Any, kind: Any, where: str) -> Any:
    """Return a value in the type of its annotation; an integer may stand for a float.

    Raises:
        ValueError: If it is of another type.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _check_union(value, parts, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, where)
    if origin in (tuple, Sequence, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(check(entry, parts[0], f"{where}.{place}") for place, entry in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected keys and values, got {value!r}")
        return {check(key, parts[0], where): check(entry, parts[1], f"{where}.{key}") for key, entry in value.items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number and abs(value) <= sys.float_info.max:  # NaN is not
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise ValueError(f"{where}: expected {WORDS.get(kind, kind)}, got {value!r}{_trap(value, kind)}")


def _check_union(value: Any, kinds: Sequence[Any], where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    failures = []
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return check(value, kind, where)
        except ValueError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    expected = " or ".join(WORDS.get(kind, str(kind)) for kind in kinds if kind is not NoneType)
    raise ValueError(f"{where}: expected {expected}, got {value!r}") from failures[0]


def _trap(value: Any, kind: Any) -> str:
    """Return a hint if YAML reads the value differently than most people expect, else ""."""
    if isinstance(value, bool) and kind is not bool:
        return "; YAML reads on, off, yes and no without quotes as true and false"
    if isinstance(value, str) and kind in (int, float):
        try:
            number = float(value)
        except ValueError:
            return ""
        if not math.isfinite(number):
            return ""
        return f"; YAML reads this as text, so write {_as_yaml(number) if kind is float else int(number)}"
    return ""


def _as_yaml(number: float) -> str:
    """Return a number as YAML 1.1 reads it: with a point, and a sign in the exponent."""
    text = repr(number)
    mantissa, e, exponent = text.partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent
