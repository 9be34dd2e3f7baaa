"""Stores of feature rows: files of numpy, safetensors, Parquet and this package's `embed`, and arrays in memory.

Files are mapped if possible, and rows keep their type until a batch of them is read. Nothing is ever written.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from deepclust_ext.data.kept import free_memory
from deepclust_ext.data.safetensors_file import FLOATING, INTEGERS, map_tensor, read_header
from deepclust_ext.data.stores import Mapped, map_array
from deepclust_ext.ops._checks import counted

#: Share of the free memory that rows may take which cannot stay in their file.
SHARE_OF_MEMORY = 0.5
_BLOCK_ROWS = 65_536  # of Parquet at a time


@dataclass
class Rows:
    """The rows of one file or array.

    Attributes:
        name: Name of the file or array.
        stored: (N, D), in memory or mapped.
        bfloat16: Whether the array's integers are the bits of bfloat16 numbers, which numpy does not have.
        names: Names of the rows, if the file has some.
        labels: Whole numbers (N,), if the file has one array of them.
        missing: Indices of rows without values in the file, and why.
        notes: What was chosen while reading, for the user.
    """

    name: str
    stored: NDArray[Any] | Mapped
    bfloat16: bool = False
    names: list[str] | None = None
    labels: NDArray[Any] | None = None
    missing: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        values = self.array
        self.count, self.columns = values.shape
        self.kind = "bfloat16" if self.bfloat16 else values.dtype.name

    @property
    def array(self) -> NDArray[Any]:
        """All rows as they are stored."""
        return self.stored.array if isinstance(self.stored, Mapped) else self.stored

    def read(self, places: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return some rows, (B, D) float32, as a copy."""
        values = np.asarray(self.array[places])
        if self.bfloat16:  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, which is looked for
            return values.astype(np.float32, order="C")


def holds_features(path: Path) -> bool:
    """Return whether a file holds rows of features by its name and its header: two-dimensional floats and no images.

    A damaged file counts as holding none; reading it then says what is wrong.
    """
    try:
        if path.suffix in (".safetensors", ".parquet"):
            return path.is_file()
        if path.suffix == ".npy":
            array = map_array(path)
            return array.ndim == 2 and array.dtype.kind == "f"
        if path.suffix == ".npz":
            shapes = npz_shapes(path)
            has_images = any(len(shape) in (3, 4) for shape, _ in shapes.values())
            return not has_images and any(_are_rows(shape, dtype) for shape, dtype in shapes.values())
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                return _is_table(next(csv.reader(file), []))
    except (OSError, ValueError, csv.Error):
        return False
    return False


def open_rows(source: Path | NDArray[Any], key: str | None = None) -> Rows:
    """Return the rows of a file or array.

    Args:
        source: A .npy, .npz, .safetensors, .parquet or .csv file, or an array (N, D).
        key: Name of the array or column; None for the only one that can hold rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If Parquet needs pyarrow and there is none.
        KeyError: If the file has no such array or column.
        MemoryError: If rows that have to be in memory are more than half of what is free.
        ValueError: If the file is damaged or holds something else, or several arrays could be meant.
    """
    if isinstance(source, np.ndarray):
        return _checked(Rows("rows", source))
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: expected a file of features, found {'a folder' if source.is_dir() else 'nothing'}"
        )
    if source.suffix not in _READERS:
        raise ValueError(f"{source}: expected a file of features, {', '.join(_READERS)}, got another")
    return _checked(_READERS[source.suffix](source, key))


def _checked(rows: Rows) -> Rows:
    """Require floating rows; an array stored by columns is copied into rows if memory allows."""
    values = rows.array
    if values.dtype.kind != "f" and not rows.bfloat16:
        raise ValueError(f"{rows.name}: expected floating numbers, got {values.dtype}")
    if 0 in values.shape:
        raise ValueError(f"{rows.name}: expected rows of features, got shape {values.shape}")
    if values.shape[0] > 1 and values.shape[1] > 1 and values.strides[0] < values.strides[1]:
        if values.nbytes <= SHARE_OF_MEMORY * free_memory():
            rows.stored = np.ascontiguousarray(values)
            rows.notes.append(f"{rows.name} is stored by columns, so its rows were put in order in memory")
        else:
            rows.notes.append(
                f"{rows.name} is stored by columns, and too large to put in order in memory: reading is slow; "
                "numpy.ascontiguousarray before numpy.save stores it by rows"
            )
    return rows


def _only(found: Sequence[str], known: Sequence[str], key: str | None, path: Path) -> str:
    """Return the key, or the one name that was found."""
    if key is not None:
        if key not in known:
            raise KeyError(f"{path}: expected one of {', '.join(known)} as key, got {key!r}")
        return key
    if len(found) != 1:
        got = ", ".join(found) if found else f"none among {', '.join(known) or 'nothing'}"
        raise ValueError(f"{path}: expected one array (N, D) of floating numbers, or its key, got {got}")
    return found[0]


def _are_rows(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    return len(shape) == 2 and dtype.kind == "f"


def _check_memory(size: int, path: Path, cure: str) -> None:
    if size > SHARE_OF_MEMORY * free_memory():
        raise MemoryError(
            f"{path}: expected at most half of the {free_memory() / 1e9:.1f} GB of memory that are free, since such a "
            f"file cannot be mapped, got rows of {size / 1e9:.1f} GB; {cure}"
        )


def _two_dimensional(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (N, D), got {array.shape}")
    return array


def _map_npy(path: Path) -> NDArray[Any]:
    return _two_dimensional(map_array(path), path.name)


def _read_npy(path: Path, key: str | None) -> Rows:
    """Return the mapped rows of a .npy file, with the names in the .txt file that `embed` writes beside it."""
    rows = Rows(path.name, Mapped(path, _map_npy))
    beside = path.with_suffix(".txt")
    if beside.is_file():
        lines = beside.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if len(lines) == rows.count:
            rows.names = lines
        else:
            found = f"{counted(len(lines), 'line')} for {counted(rows.count, 'row')}"
            rows.notes.append(f"{beside.name} has {found}, so it is no list of names")
    return rows


def npz_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of every array in an .npz file, from the headers alone; ValueError if it is damaged."""
    found = {}
    try:
        with ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read: Any = np.lib.format.read_array_header_1_0
                    if version != (1, 0):
                        read = np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                found[info.filename.removesuffix(".npy")] = (shape, dtype)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: expected arrays of numbers in a whole .npz file: {error}") from error
    return found


def _read_npz(path: Path, key: str | None) -> Rows:
    """Return the rows of an .npz file, which numpy would read anew at each access: they are read once."""
    shapes = npz_shapes(path)
    name = _only([name for name, of in shapes.items() if _are_rows(*of)], list(shapes), key, path)
    shape, dtype = shapes[name]
    _check_memory(int(np.prod(shape)) * dtype.itemsize, path, "numpy.save as .npy, which can be mapped")
    whole = [
        other for other, (size, kind) in shapes.items() if kind.kind in "iu" and size in (shape[:1], (*shape[:1], 1))
    ]
    texts = [other for other, (size, kind) in shapes.items() if kind.kind == "U" and size == shape[:1]]
    with np.load(path, allow_pickle=False) as arrays:
        return Rows(
            f"{path.name}:{name}",
            _two_dimensional(arrays[name], f"{path.name}:{name}"),
            names=arrays[texts[0]].tolist() if len(texts) == 1 else None,
            labels=arrays[whole[0]].reshape(-1) if len(whole) == 1 else None,
        )


def _read_safetensors(path: Path, key: str | None) -> Rows:
    """Return the mapped rows of a file of safetensors, without its package, whose slices do not clip."""
    header, _ = read_header(path)
    floating = [name for name, of in header.items() if of["dtype"] in FLOATING and len(of["shape"]) == 2]
    name = _only(floating, list(header), key, path)
    open_file = partial(map_tensor, kinds=FLOATING, key=name)
    rows = Rows(f"{path.name}:{name}", Mapped(path, open_file), bfloat16=header[name]["dtype"] == "BF16")
    whole = [other for other, of in header.items() if of["dtype"] in INTEGERS and of["shape"] == [rows.count]]
    if len(whole) == 1:
        rows.labels = np.array(map_tensor(path, INTEGERS, whole[0]))
    return rows


def _read_parquet(path: Path, key: str | None) -> Rows:
    """Return the rows of a Parquet file: its one column of lists, or else all its floating columns side by side."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet needs pyarrow, and there is none; pip install 'deepclust_ext[parquet]'"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        schema = file.schema_arrow
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path}: expected a whole Parquet file: {error}") from error
    types = pyarrow.types

    def are_vectors(kind: Any) -> bool:
        nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return bool(nested and types.is_floating(kind.value_type))

    vectors = [entry.name for entry in schema if are_vectors(entry.type)]
    numbers = [entry.name for entry in schema if types.is_floating(entry.type)]
    columns = numbers if key is None and not vectors else [_only(vectors, schema.names, key, path)]
    texts = [entry.name for entry in schema if types.is_string(entry.type) and entry.name in ("name", "names", "path")]
    whole = [entry.name for entry in schema if types.is_integer(entry.type)]
    if not columns or not (columns == numbers or are_vectors(schema.field(columns[0]).type)):
        raise ValueError(
            f"{path}: expected a column of lists of floating numbers, or columns of them, got {schema.names}"
        )
    rows = _vectors(file, columns, columns != numbers, path)
    if len(texts) == 1:
        rows.names = [str(name) for name in file.read(columns=texts).column(0).to_pylist()]
    if len(whole) == 1:
        labels = file.read(columns=whole).column(0)
        rows.labels = None if labels.null_count else labels.to_numpy()
    return rows


def _vectors(file: Any, columns: list[str], nested: bool, path: Path) -> Rows:
    """Return the rows of a Parquet file's columns; a row that is null, or has a null in it, counts as missing."""
    count, width, start = file.metadata.num_rows, 0 if nested else len(columns), 0
    values: NDArray[Any] = np.empty((0, 0), np.float32)
    missing: dict[int, str] = {}
    for batch in file.iter_batches(_BLOCK_ROWS, columns=columns):
        # Of lists, flatten leaves null rows out: what follows them would move up.
        there = ~_nulls(batch.column(0)) if nested else np.ones(len(batch), bool)
        flat = [batch.column(0).flatten()] if nested else batch.columns
        numbers = np.stack([_numbers(column) for column in flat], axis=1)
        if nested and len(numbers):
            width = width or len(numbers) // int(there.sum())
            if len(numbers) != width * int(there.sum()) or not _all_of(batch.column(0), width):
                raise ValueError(f"{path}: expected lists of one length in column {columns[0]}, got several")
        if not values.size and width:
            _check_memory(count * width * numbers.itemsize, path, "write it as .npy, which can be mapped")
            values = np.zeros((count, width), numbers.dtype)
        holes = np.stack([_nulls(column) for column in flat], axis=1)
        if width:
            values[start : start + len(batch)][there] = numbers.reshape(-1, width)
            there[there] = ~holes.reshape(-1, width).any(axis=1)
        missing |= dict.fromkeys((start + np.flatnonzero(~there)).tolist(), "a null")
        start += len(batch)
    return Rows(path.name if len(columns) > 1 else f"{path.name}:{columns[0]}", values, missing=missing)


def _nulls(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), bool)


def _all_of(column: Any, width: int) -> bool:
    """Return whether all lists of a column that are there have one length."""
    lengths = column.value_lengths().drop_null() if hasattr(column, "value_lengths") else []
    return all(np.asarray(lengths) == width)


def _numbers(column: Any) -> NDArray[Any]:
    """Return the numbers of a column in their type; what is null may be anything."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    values = np.frombuffer(column.buffers()[1] or b"", dtype)
    return values[column.offset : column.offset + len(column)]


def _is_table(header: Sequence[str]) -> bool:
    """Return whether this is the first line of what `embed` writes as CSV."""
    return len(header) > 1 and header[0] == "path" and header[1:] == [str(place) for place in range(len(header) - 1)]


def _read_csv(path: Path, key: str | None) -> Rows:
    """Return the rows of a table that `embed` has written, in memory."""
    try:
        return _read_table(path)
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table as embed writes it: {error}") from error


def _read_table(path: Path) -> Rows:
    names, values = [], []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if not _is_table(header):
            raise ValueError(
                f"{path}: expected the columns path, 0, 1 and so on, as embed writes them, got {header[:4]}"
            )
        for number, line in enumerate(lines, start=2):
            try:
                if len(line) != len(header):
                    raise ValueError(counted(len(line), "column"))
                values.append(np.array(line[1:], np.float32))
            except ValueError as error:
                expected = counted(len(header) - 1, "number")
                raise ValueError(f"{path}, line {number}: expected {expected}, got {error}") from error
            names.append(line[0])
    return Rows(path.name, np.stack(values) if values else np.empty((0, len(header) - 1), np.float32), names=names)


_READERS: dict[str, Any] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
