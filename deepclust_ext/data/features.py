"""Rows of features as one data set: images of one pixel with a channel for each number."""

import copy
import csv
import hashlib
import operator
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.data.feature_stores import Rows, holds_features, open_rows
from deepclust_ext.data.labels import array_classes, in_words, number_classes, read_named
from deepclust_ext.data.pixels import ImageError
from deepclust_ext.data.stores import map_array
from deepclust_ext.ops._checks import counted

_BLOCK_BYTES = 1 << 25  # of float32 at a time

FeatureSource = str | os.PathLike[str] | NDArray[Any]


class Features(Dataset[Any]):
    """Rows of features with names; everything that takes images gets each row as an image (D, 1, 1) float32.

    Rows stay in their file and keep their type; batches become float32. Every row is read once at the start, so
    unusable rows are known before training: rows with a null, NaN or infinity are left out and listed in ``skipped``.
    Rows of zeros have no direction. They stay and are counted in ``notes``, but have no neighbors.

    Args:
        parts: The rows of each file or array, one after the other.
        classes: Each row's class, for scores alone.
        on_error: ``"skip"`` leaves out unusable rows; ``"raise"`` raises an error.

    Attributes:
        names: Names of the rows, N strings.
        labels: (N,) int64, or None.
        classes: The names of the classes, or None.
        channels: D.
        dtype: Dtype of the batches, float32.
        kind: Type of the stored rows.
        image_size: (1, 1).
        item: What messages call a row.
        zeros: Indices of the rows of zeros.
        largest: The largest absolute value in the finite rows of the files.
        skipped: Name and reason of all rows that were left out.
        notes: What was chosen or found while reading, for the user; the first says how many rows there are.
        fingerprint: A hash of names and values; rows that differ have another one.

    Raises:
        ImageError: If no row is left, or, with ``on_error="raise"``, one cannot be used; the message names it.
        ValueError: If files differ in their number of columns, or two rows have one name.
    """

    dtype = torch.float32
    image_size = (1, 1)
    item = "row"

    def __init__(self, parts: Sequence[Rows], *, classes: Sequence[str] | None = None, on_error: str = "skip") -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error: expected one of skip, raise, got {on_error!r}")
        self.parts = list(parts)
        for part in self.parts:
            if part.columns != self.parts[0].columns:
                first = self.parts[0]
                raise ValueError(
                    f"{part.name}: expected {counted(first.columns, 'column')} as in {first.name}, got {part.columns}"
                )
        self.channels = self.parts[0].columns
        self.kind = ", ".join(dict.fromkeys(part.kind for part in self.parts))
        self._ends = np.cumsum([part.count for part in self.parts])
        names = row_names(self.parts)
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"sources: expected every row once, got {twice} again")
        self.largest = 0.0
        reasons, zeros, self._checksums = self._read_all()
        self.skipped = [(names[place], reason) for place, reason in reasons.items()]
        if reasons and on_error == "raise":
            raise ImageError(f"{self.skipped[0][0]}: expected finite numbers, got {self.skipped[0][1]}")
        if len(reasons) == len(names):
            raise ImageError(f"expected rows of features, got none; all {len(names)} were skipped, such as {names[0]}")
        self.indices = np.setdiff1d(np.arange(len(names)), list(reasons)) if reasons else np.arange(len(names))
        self.names = [names[place] for place in self.indices] if reasons else names
        self.zeros = np.searchsorted(self.indices, np.setdiff1d(zeros, list(reasons)))
        self.labels: Tensor | None = None
        self.classes: tuple[str, ...] | None = None
        if classes is not None:
            self.labels, self.classes = number_classes([classes[place] for place in self.indices])
        self._sum_up()
        self.notes = [f"{counted(len(self), 'row')} of {counted(self.channels, 'feature')}, {self.kind}"]
        self.notes += [note for part in self.parts for note in part.notes]
        if len(self.zeros):
            first = self.names[self.zeros[0]]
            self.notes.append(
                f"{counted(len(self.zeros), 'row')} of zeros, first {first}: no direction and no neighbors"
            )
        if self.skipped:
            self.notes.append(
                f"{counted(len(self.skipped), 'row')} skipped, first {self.skipped[0][0]}: {self.skipped[0][1]}"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        """Yield all items in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Return a row (D, 1, 1), with labels the pair of row and class; for a slice a data set of these rows.

        Raises:
            ImageError: If the file has changed.
            IndexError: If there is no such row.
            TypeError: If the index is neither an integer nor a slice.
            ValueError: If no row is in the slice.
        """
        if isinstance(index, slice):
            return self._part(index)
        try:
            place = operator.index(index)
        except TypeError as error:
            raise TypeError(f"index: expected an integer or a slice, got {index!r:.80}") from error
        if not -len(self) <= place < len(self):
            raise IndexError(f"index: expected {-len(self)} to {len(self) - 1}, got {place}")
        row = self.images_at([place])[0]
        return row if self.labels is None else (row, int(self.labels[place]))

    def images_at(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return a batch of rows without classes, (B, D, 1, 1) float32.

        Raises:
            ImageError: If a file has changed.
        """
        places = self.indices[np.asarray(indices, np.int64)]
        values = np.empty((len(places), self.channels), np.float32)
        owners = np.searchsorted(self._ends, places, side="right")
        for number in np.unique(owners):
            own, part = owners == number, self.parts[number]
            values[own] = part.read(places[own] - (self._ends[number] - part.count))
        return torch.from_numpy(values)[:, :, None, None]

    def stored(self) -> Tensor:
        """Return all rows (N, D) in their stored type, float16, bfloat16, float32 or float64.

        If there is one file, stored by rows, and no row is skipped, this is the mapped file itself: only read it.
        Otherwise it is a copy in the stored type, or in float32 if files have different types.

        Raises:
            ImageError: If a file has changed.
        """
        part = self.parts[0]
        array = part.array
        native = array.dtype.isnative and array.flags.c_contiguous
        if len(self.parts) == 1 and len(self) == part.count and native:
            return _as_tensor(array, part.bfloat16)
        if len({part.kind for part in self.parts}) > 1 or not array.dtype.isnative:
            blocks = np.array_split(np.arange(len(self)), max(1, 4 * len(self) * self.channels // _BLOCK_BYTES))
            return torch.cat([self.images_at(block).flatten(1) for block in blocks])
        values = np.concatenate([part.array for part in self.parts])[self.indices]
        return _as_tensor(np.ascontiguousarray(values), part.bfloat16)

    @property
    def pictures(self) -> Dataset[Any] | None:
        """Return None: rows alone have no pictures."""
        return None

    def path(self, index: int) -> Path | None:
        """Return None: a row is no file."""
        return None

    def write_skipped(self, path: str | os.PathLike[str]) -> None:
        """Write the rows that were left out as CSV: path, reason."""
        with Path(path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "reason"), *self.skipped])

    def _part(self, key: slice) -> "Features":
        """Return a data set of some of these rows."""
        inside = np.arange(len(self))[key]
        if not len(inside):
            raise ValueError(f"index: expected a slice with at least one of {counted(len(self), 'row')}, got {key}")
        part = copy.copy(self)
        part.indices, part.names = self.indices[inside], self.names[key]
        part.zeros = np.flatnonzero(np.isin(inside, self.zeros))
        if self.labels is not None:
            part.labels = self.labels[torch.from_numpy(inside)]
        part.notes = [f"{len(inside)} of {self.notes[0]}", *self.notes[1:]]
        part._sum_up()
        return part

    def _read_all(self) -> tuple[dict[int, str], NDArray[np.int64], list[int]]:
        """Read every row once, for ``largest``; return reasons by place, places of zeros, and checksums of blocks."""
        reasons: dict[int, str] = {}
        zeros, checksums, begin = [], [], 0
        step = max(1, _BLOCK_BYTES // (4 * self.channels))
        with tqdm(desc="reading features", total=int(self._ends[-1]), unit="row", leave=False, disable=None) as bar:
            for part in self.parts:
                reasons |= {begin + place: reason for place, reason in part.missing.items()}
                for start in range(0, part.count, step):
                    values = part.read(slice(start, min(start + step, part.count)))
                    checksums.append(crc32(values.data))
                    finite, places = np.isfinite(values).all(axis=1), begin + start + np.arange(len(values))
                    reasons |= dict.fromkeys(
                        [p for p in places[~finite].tolist() if p not in reasons], "NaN or infinity"
                    )
                    zeros.append(places[~values.any(axis=1)])
                    known = values if finite.all() else values[finite]
                    self.largest = max(self.largest, float(known.max(initial=0)), -float(known.min(initial=0)))
                    bar.update(len(values))
                begin += part.count
        return dict(sorted(reasons.items())), np.concatenate(zeros), checksums

    def _sum_up(self) -> None:
        """Set the attributes that depend on all rows together."""
        self.kinds = Counter({(1, 1, self.channels, self.kind): len(self)})
        digest = hashlib.sha256(repr((self.channels, self._checksums)).encode())
        digest.update("\n".join(self.names).encode(errors="surrogateescape"))
        self.fingerprint = digest.hexdigest()


def row_names(parts: Sequence[Rows]) -> list[str]:
    """Return the name of each row: as in its file, else the file and its index."""
    return [
        name
        for part in parts
        for name in (part.names if part.names is not None else (f"{part.name}[{place}]" for place in range(part.count)))
    ]


def load_features(
    *sources: FeatureSource,
    labels: str | os.PathLike[str] | Sequence[int] | NDArray[Any] | Tensor | None = None,
    key: str | None = None,
    on_error: str = "skip",
) -> Features:
    """Return rows of features from files and arrays as one data set.

    Args:
        *sources: Each a .npy or .safetensors file, which is mapped; an .npz or .parquet file, which is read into memory
            once, in its own type; a .csv file that `embed` has written; or an array (N, D). Rows are float16, bfloat16
            (safetensors), float32 or float64. Names are those that `embed` writes, or a text column name or path.
        labels: ``"own"`` for the one array of whole numbers (N,) in the same file; a .npy file of such numbers, a CSV
            file with the columns path and label, or whole numbers (N,). For scores alone.
        key: The array or column of the rows; by default the only one that can hold rows.
        on_error: See :class:`Features`.

    Raises:
        FileNotFoundError: If a file is missing.
        ImageError: See :class:`Features`.
        ImportError: If Parquet needs pyarrow and there is none.
        KeyError: If a file has no such array.
        MemoryError: If what cannot be mapped is more than half of the free memory.
        ValueError: If a file holds something else, or labels do not fit.

    Example:
        >>> rows = np.eye(3, dtype=np.float16)
        >>> load_features(rows).images_at([2, 0]).flatten(1)
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    if not sources:
        raise ValueError("sources: expected files or arrays of features, got none")
    parts = []
    for place, source in enumerate(sources):
        if not isinstance(source, str | os.PathLike | np.ndarray):
            raise TypeError(f"sources: expected files or arrays of features, got {type(source).__name__}")
        if isinstance(source, np.ndarray) and source.ndim != 2:
            raise ValueError(f"sources: expected an array (N, D), got shape {source.shape}")
        part = open_rows(source if isinstance(source, np.ndarray) else Path(source), key)
        if isinstance(source, np.ndarray) and len(sources) > 1:
            part.name = f"rows {place}"
        parts.append(part)
    return Features(parts, classes=_classes(labels, parts), on_error=on_error)


def are_features(sources: Sequence[str]) -> bool:
    """Return whether files hold features, by their headers.

    Raises:
        ValueError: If some do and some do not.
    """
    found = [holds_features(Path(source)) for source in sources]
    if any(found) and not all(found):
        features, others = sources[found.index(True)], sources[found.index(False)]
        raise ValueError(f"data: expected features alone or images alone, got {features} and {others}")
    return any(found)


def _classes(labels: Any, parts: Sequence[Rows]) -> Sequence[str] | None:
    count = sum(part.count for part in parts)
    if labels is None:
        return None
    if not isinstance(labels, str | os.PathLike):
        return array_classes(labels, count, "row")
    if labels == "own":
        without = next((part.name for part in parts if part.labels is None), None)
        if without is not None:
            raise ValueError(f"labels: expected one array of whole numbers beside {without}, got none or several")
        return [name for part in parts for name in array_classes(part.labels, part.count, "row")]
    path = Path(labels)
    if path.suffix == ".npy" and path.is_file():
        return array_classes(map_array(path), count, "row")
    if path.suffix != ".csv" or not path.is_file():
        raise ValueError(
            "labels: expected 'own', a .npy file of whole numbers, or a CSV file of path and label for features, "
            f"got {in_words(path)}"
        )
    return read_named(path, row_names(parts))


def _as_tensor(array: NDArray[Any], bfloat16: bool) -> Tensor:
    """Return an array as a tensor without a copy; of a map for reading alone torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        found = torch.from_numpy(array.view(np.int16) if bfloat16 else array)
    return found.view(torch.bfloat16) if bfloat16 else found
