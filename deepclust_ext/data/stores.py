"""Stores of images: files in folders and lists, and arrays in memory, in .npy and .npz files."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepclust_ext.data.decode import read_image
from deepclust_ext.data.pixels import ImageError, Pixels, by_type

_HEADER_BYTES = 1 << 16  # of an array in an .npz file, at most
#: Why a file is left out that nobody takes for an image, and a folder below those of the images that training has made.
NO_IMAGE, A_RUN = "no image by its name", "the folder of a run"
#: The files by which such a folder is known: its recipe and its record.
OF_A_RUN = ("recipe.yaml", "run.json")


class Store(Protocol):
    """Images that can be read one by one."""

    names: list[str]
    """What each image is called, for people and for lists of labels."""

    def read(self, index: int) -> Pixels:
        """Return an image with its stored values.

        Raises:
            ImageError: If it cannot be read; the message names it.
        """

    def path(self, index: int) -> Path | None:
        """Return the file that holds an image and nothing else, or None."""


class Files:
    """Image files.

    Args:
        paths: Paths of the files.
        names: Names of the images; by default the paths.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        self.paths = list(paths)
        self.names = [path.as_posix() for path in paths] if names is None else list(names)

    def read(self, index: int) -> Pixels:
        """Return what the file holds, see :func:`deepclust_ext.data.read_image`."""
        return read_image(self.paths[index])

    def path(self, index: int) -> Path | None:
        """Return the file."""
        return self.paths[index]


class Mapped:
    """An array in a file: each process that uses it maps it, and all share the file's pages.

    Args:
        path: Path of the file.
        open_file: Function that maps the file.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], NDArray[Any]] | None = None) -> None:
        self._path, self._open = path, open_file or map_array
        self._array: NDArray[Any] | None = None
        self._stamp = self._status()

    @property
    def array(self) -> NDArray[Any]:
        """The whole array.

        Raises:
            ImageError: If the file has vanished or changed since it was first opened.
        """
        if self._status() != self._stamp:
            raise ImageError(f"{self._path}: expected the file that was opened first, got one that has changed since")
        if self._array is None:
            self._array = self._open(self._path)
        return self._array

    def _status(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise ImageError(f"{self._path}: {error.strerror}") from error
        return status.st_ino, status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to map the file too."""
        return self.__dict__ | {"_array": None}


class Array:
    """Images in one array.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), where C is the smaller of the second and the last side.
        name: Name of the array; image 3 is then called ``name[3]``.

    Raises:
        TypeError: If the values are no real numbers.
        ValueError: If the shape is another one, these two sides are equal, or the array looks like one image in color.
    """

    def __init__(self, array: NDArray[Any] | Mapped, name: str) -> None:
        self._array = array
        values = self.array
        if values.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
        if values.ndim not in (3, 4) or 0 in values.shape[1:]:
            raise ValueError(f"{name}: expected shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {values.shape}")
        if values.ndim == 3 and values.shape[2] in (3, 4) and min(values.shape[:2]) > 4:
            raise ValueError(
                f"{name}: expected shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {values.shape}, which looks like "
                "one image (H, W, C): array[None] is one image, array[..., None] are gray ones"
            )
        if values.ndim == 4 and values.shape[1] == values.shape[3]:
            raise ValueError(f"{name}: expected the second or the last side to be smaller, as C, got {values.shape}")
        self.channels_first = values.ndim == 4 and values.shape[1] < values.shape[3]
        self.names = [f"{name}[{index}]" for index in range(len(values))]

    @property
    def array(self) -> NDArray[Any]:
        """All images."""
        return self._array.array if isinstance(self._array, Mapped) else self._array

    def read(self, index: int) -> Pixels:
        """Return one image, whose range is that of the array's type."""
        values = np.asarray(self.array[index])
        return by_type(np.moveaxis(values, 0, 2) if self.channels_first else values)

    def read_several(self, indices: Sequence[int]) -> Pixels:
        """Return several images as one, (B, H, W, C)."""
        values = self.array[np.asarray(indices, np.int64)]
        if values.ndim == 3:
            values = values[:, :, :, None]
        return by_type(np.moveaxis(values, 1, 3) if self.channels_first else values)

    def path(self, index: int) -> Path | None:
        """Return None: an image of an array is no file."""
        return None


class Joined:
    """Several stores, one after the other.

    Args:
        stores: In this order.
        titles: Prefix of each store's names, so that names stay different; by default none.
    """

    def __init__(self, stores: Sequence[Store], titles: Sequence[str] | None = None) -> None:
        self.stores = list(stores)
        titles = [""] * len(self.stores) if titles is None else titles
        self.names = [title + name for store, title in zip(stores, titles, strict=True) for name in store.names]
        self._ends = np.cumsum([len(store.names) for store in stores])

    def read(self, index: int) -> Pixels:
        """Return one image from the store that holds it."""
        store, inside = self._locate(index)
        return store.read(inside)

    def path(self, index: int) -> Path | None:
        """Return the file of one image, or None."""
        store, inside = self._locate(index)
        return store.path(inside)

    def _locate(self, index: int) -> tuple[Store, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self.stores[place], index - int(self._ends[place - 1] if place else 0)


def find_images(root: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the image files below a folder in the order of their names, and name and reason of all other files.

    Hidden files and folders are left out, and below the folder those of runs, whose pictures are none of the images.
    Links are followed; a folder that is reached twice is read once.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not root.is_dir():
        kind = "a file" if root.exists() else "nothing"
        raise FileNotFoundError(f"{root}: expected a folder of images, found {kind}")
    found: list[Path] = []
    others: list[tuple[str, str]] = []
    for path, fault in _walk(root, set()):
        name = path.relative_to(root).as_posix()
        if fault:
            others.append((name, fault))
        elif path.suffix.lower() not in _suffixes():
            others.append((name, NO_IMAGE))
        elif not path.is_file():
            others.append((name, "no regular file" if path.exists() else "a link to nothing"))
        else:
            found.append(path)
    return found, others


def is_read(root: Path, place: Path) -> bool:
    """Return whether :func:`find_images` finds what will be at a place, which may be missing yet."""
    folders: set[tuple[int, int]] = set()
    deque(_walk(root, folders), maxlen=0)
    place = place.resolve()
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    hidden = any(part.startswith(".") for part in place.relative_to(there).parts)
    return _identity(there) in folders and not hidden


@cache
def _suffixes() -> frozenset[str]:
    """Return the suffixes of image files: all that Pillow reads, except documents and films."""
    return frozenset(Image.registered_extensions()) - {".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".hdf", ".h5"}


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder, and with a reason the folders that are left out; ``seen`` are those read."""
    is_root, identity = not seen, _identity(folder)
    if identity in seen:
        return
    try:
        with os.scandir(folder) as entries:
            shown = {entry.name: entry for entry in entries if not entry.name.startswith(".")}
    except PermissionError:
        yield folder, "a folder that cannot be read"
        return
    if not is_root and set(OF_A_RUN) <= shown.keys():
        yield folder, A_RUN
        return
    seen.add(identity)
    for _, entry in sorted(shown.items()):
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        else:
            yield Path(entry.path), ""


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def read_list(path: Path) -> list[Path]:
    """Return the paths that a text file lists, one on each line; relative paths start from the file's folder.

    Raises:
        ValueError: If it lists none.
    """
    lines = [line.strip() for line in read_text(path).split("\n")]
    paths = [path.parent / line for line in lines if line]
    if not paths:
        raise ValueError(f"{path}: expected a path on each line, got an empty list")
    return paths


def read_text(path: Path) -> str:
    """Return a text file; ValueError if it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error


def read_npz(path: Path, keys: Sequence[str] | None) -> list[tuple[str, NDArray[Any]]]:
    """Return the arrays of images in an .npz file by their names, in memory, because such files cannot be mapped.

    Args:
        path: Path of the file.
        keys: The arrays to take, in this order; by default the only one that can hold images.

    Raises:
        KeyError: If an array is missing.
        TypeError: If the keys are no list.
        ValueError: If several could be meant, or the file is damaged.
    """
    if isinstance(keys, str):
        raise TypeError(f"keys: expected a list of names, got {keys!r}")
    names, arrays = _load_npz(path, keys)
    if keys is None:
        keys = [key for key, array in arrays.items() if array.ndim in (3, 4)]
        if len(keys) != 1:
            got = ", ".join(keys) if keys else f"none among {', '.join(names)}"
            raise ValueError(
                f"{path}: expected one array of images, got {got}; write one to a file of its own, or in Python name "
                "those to take by keys"
            )
    for key in keys:
        if key not in arrays:
            raise KeyError(f"{path}: expected one of {names} as key, got {key!r}")
    return [(key, arrays[key]) for key in keys]


def read_npz_labels(path: Path, count: int) -> NDArray[Any]:
    """Return the one array of an .npz file that has a whole number for each of its images, (N,) or (N, 1).

    Raises:
        ValueError: If there is none or several, or the file is damaged.
    """
    largest = count * np.dtype(np.int64).itemsize + _HEADER_BYTES  # so that images stay unread
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in arrays.zip.infolist()}
            read = {key: arrays[key] for key in arrays.files if sizes[key] <= largest}
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise _damaged(path, error) from error
    found = {
        key: array for key, array in read.items() if array.dtype.kind in "iu" and array.shape in ((count,), (count, 1))
    }
    if len(found) != 1:
        got = f"{', '.join(found)}; name one of them" if found else f"none among {', '.join(arrays.files)}"
        raise ValueError(f"labels: expected one array of {path} with a whole number for each image, got {got}")
    return next(iter(found.values()))


def map_array(path: Path) -> NDArray[Any]:
    """Return the array in a .npy file, mapped.

    Raises:
        ValueError: If the file is damaged, or holds objects, which are never read.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        # Not numpy's own message, which proposes to execute what the file holds.
        reason = "it is another kind of file, or holds objects" if "pickle" in str(error) else error
        raise ValueError(f"{path}: expected an array of numbers in a whole .npy file: {reason}") from error
    return array


def _load_npz(path: Path, keys: Sequence[str] | None) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Return the names of all arrays, and those with these keys, by default all."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays.files, {key: arrays[key] for key in arrays.files if keys is None or key in keys}
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: expected arrays of numbers in a whole .npz file: {error}")
