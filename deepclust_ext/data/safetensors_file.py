"""Tensors in a file of safetensors, mapped without its package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Types of the format, as numpy has them; BF16 by its bits, which numpy does not know.
FLOATING = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
INTEGERS = {"U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}
_LONGEST_HEADER = 100_000_000  # by the format


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors of a file by name, each with dtype, shape and data_offsets, and where their bytes begin.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    fault, size = f"{path}: expected a whole file of safetensors", path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"{fault}, got a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for entry in header.values():
                start, end = entry["data_offsets"]
                if not 0 <= start <= end <= size - 8 - length or not all(side >= 0 for side in entry["shape"]):
                    raise ValueError("a tensor beyond its end")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{fault}: {error}") from error
    return header, 8 + length


def map_tensor(path: Path, kinds: dict[str, str], key: str) -> NDArray[Any]:
    """Return a tensor of a file, mapped; ValueError if it is of none of these types, or has no bytes."""
    header, begin = read_header(path)
    entry, name = header[key], f"{path.name}:{key}"
    if entry["dtype"] not in kinds:
        raise ValueError(f"{name}: expected one of {', '.join(kinds)}, got {entry['dtype']}")
    dtype, (start, end) = np.dtype(kinds[entry["dtype"]]), entry["data_offsets"]
    if int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize != end - start or start == end:
        raise ValueError(f"{name}: expected {entry['shape']} of {entry['dtype']}, got {end - start} bytes")
    return np.memmap(path, dtype, "r", begin + start, tuple(entry["shape"]))
