"""Classes of images, which scores read and training never does."""

import csv
import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust_ext.data.pixels import ImageError
from deepclust_ext.data.stores import Store, read_text
from deepclust_ext.ops._checks import counted

_COLUMNS = {"path", "label"}
_LONGEST_HEADER = 1000  # characters


def number_classes(classes: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return each image's class as a number (N,) int64, and the classes' names in that order.

    Names that are all whole numbers are ordered as numbers, others by their letters.
    """
    names = sorted(set(classes))
    if all(name.lstrip("-").isdecimal() for name in names):
        names.sort(key=int)
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number[name] for name in classes], dtype=torch.int64, device="cpu"), tuple(names)


def folder_classes(store: Store) -> list[str]:
    """Return the first folder in the name of each image; an unreadable image needs none, and has the class "".

    Raises:
        ValueError: If an image lies in no folder.
    """
    outside = {
        place for place, name in enumerate(store.names) if "/" not in name.lstrip("/") or name.startswith(("/", "../"))
    }
    image = next((store.names[place] for place in sorted(outside) if _can_read(store, place)), None)
    if image is not None:
        raise ValueError(
            f"labels: expected every image in a folder of its class, got {image}; move it into one, or give labels as "
            "a CSV file"
        )
    return ["" if place in outside else name.split("/", 1)[0] for place, name in enumerate(store.names)]


def read_classes(path: Path, store: Store, folder: Path | None = None) -> list[str]:
    """Return the class of each image or row from a CSV file with the columns path and label.

    Args:
        path: Path of the CSV file; its paths are names of images.
        store: Store of the images. An unreadable image needs no label, and has the class "".
        folder: Folder of the list of images, if there is one: paths may be written as in that list.

    Raises:
        ValueError: If a column or a label is missing, or an image is listed twice or not at all.
    """
    classes = _read_table(path)
    if folder is not None:
        classes = {(folder / name).as_posix(): label for name, label in classes.items()} | classes
    missing = [place for place, name in enumerate(store.names) if name not in classes]
    if image := next((store.names[place] for place in missing if _can_read(store, place)), None):
        of_others = bool(classes) and len(missing) == len(store.names)  # as where paths begin at another folder
        cure = f"; its first path is {next(iter(classes))}" if of_others else ""
        raise ValueError(
            f"{path}: expected a label for every image, got none for {len(missing)}, such as {image}{cure}"
        )
    return [classes.get(name, "") for name in store.names]


def read_named(path: Path, names: Sequence[str]) -> list[str]:
    """Return the class of each name from a CSV file with the columns path and label.

    Raises:
        ValueError: If a column or a label is missing, or a name is listed twice or not at all.
    """
    classes = _read_table(path)
    missing = [name for name in names if name not in classes]
    if missing:
        raise ValueError(f"{path}: expected a label for every row, got none for {len(missing)}, such as {missing[0]}")
    return [classes[name] for name in names]


def has_labels(path: Path) -> bool:
    """Return whether a file begins as a table with the columns path and label does; no more of it is read."""
    if not path.is_file():  # a pipe would never end
        return False
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader([file.readline(_LONGEST_HEADER)]), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return _COLUMNS.issubset(columns)


def in_words(labels: str | os.PathLike[str]) -> str:
    """Return what labels were taken for that are neither a known word nor a file of a known kind."""
    name = os.fspath(labels)
    return f"{name!r}, where there is no file" if Path(name).suffix and not Path(name).is_file() else repr(name)


def _read_table(path: Path) -> dict[str, str]:
    try:
        return _classes_by_name(path)
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table of path and label: {error}") from error


def _classes_by_name(path: Path) -> dict[str, str]:
    rows = csv.DictReader(StringIO(read_text(path), newline=""))  # a quoted name may hold the end of a line
    if not _COLUMNS.issubset(rows.fieldnames or ()):
        raise ValueError(f"{path}: expected the columns path and label, got {rows.fieldnames}")
    classes: dict[str, str] = {}
    for row in rows:
        name, label = Path(row["path"]).as_posix(), (row["label"] or "").strip()
        if not label:
            raise ValueError(f"{path}, line {rows.line_num}: expected a label for {name}, got none")
        if None in row:
            raise ValueError(
                f"{path}, line {rows.line_num}: expected a comma only within quotes, got one in {name}'s row"
            )
        if name in classes:
            raise ValueError(f"{path}, line {rows.line_num}: expected each image once, got {name} again")
        classes[name] = label
    return classes


def _can_read(store: Store, place: int) -> bool:
    try:
        store.read(place)
    except ImageError:
        return False
    return True


def array_classes(labels: Any, count: int, item: str = "image") -> list[str]:
    """Return the class of each image from an array of whole numbers (N,) or, as MedMNIST has them, (N, 1).

    Raises:
        ValueError: If the shape differs, as it does if images have several classes, or a number is not whole.
    """
    try:
        numbers = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"labels: expected one class for each of {counted(count, item)}: {error}") from error
    if numbers.shape not in ((count,), (count, 1)):
        raise ValueError(f"labels: expected one class for each of {counted(count, item)}, got shape {numbers.shape}")
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"labels: expected whole numbers, got {numbers.dtype}")
    return [str(number) for number in numbers.reshape(-1).tolist()]
