"""Writes rows of images to files."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
from torch import Tensor

from deepclust_ext.training.files import replacing, write_array, write_text

FORMATS = ("npz", "npy", "csv")


def names_beside(path: Path) -> Path:
    """Return where the names of the rows in an .npy file are written."""
    return path.with_suffix(".txt")


def check_names(path: Path, names: Sequence[str]) -> None:
    """Require names that the file for rows can hold; ValueError otherwise."""
    if path.suffix == ".npy" and (broken := [name for name in names if "\n" in name or "\r" in name]):
        raise ValueError(
            f"out: expected a name that ends in .npz or .csv, since {broken[0]!r} takes two lines of a list, got {path}"
        )


def write_rows(
    path: Path,
    rows: Tensor,  # (N, D)
    names: Sequence[str],
) -> list[Path]:
    """Write rows and names by the path's ending, .npz, .npy with a list of names, or .csv, and return the files.

    Raises:
        OSError: If a file cannot be written; the message names it.
        ValueError: If the path has another ending.
    """
    values = np.ascontiguousarray(rows.numpy())
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"out: expected a name that ends in one of {', '.join(FORMATS)}, got {path}")
    if kind == "npz":
        with replacing(path) as unfinished:
            np.savez(unfinished, rows=values, names=np.array(names, dtype=np.str_))
        return [path]
    if kind == "npy":
        write_array(path, values)
        beside = names_beside(path)
        write_text(beside, "".join(name + "\n" for name in names))
        return [path, beside]
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", *range(values.shape[1])])
    writer.writerows([name, *row] for name, row in zip(names, values.tolist(), strict=True))
    write_text(path, text.getvalue())
    return [path]
