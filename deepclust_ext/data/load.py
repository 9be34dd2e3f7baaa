"""Folders, lists, arrays and several of them as one data set."""

import inspect
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepclust_ext.data.labels import array_classes, folder_classes, in_words, read_classes
from deepclust_ext.data.pixels import ImageError
from deepclust_ext.data.sources import Images
from deepclust_ext.data.stores import (
    Array,
    Files,
    Joined,
    Mapped,
    Store,
    find_images,
    read_list,
    read_npz,
    read_npz_labels,
)
from deepclust_ext.ops._checks import counted

Source = str | os.PathLike[str] | NDArray[Any]


def load_images(
    *sources: Source,
    labels: str | os.PathLike[str] | Sequence[int] | NDArray[Any] | Tensor | None = None,
    keys: Sequence[str] | None = None,
    **settings: Any,
) -> Images:
    """Return the images of folders, lists and arrays as one data set.

    Args:
        *sources: Each a folder, flat or nested; an image file; a .txt file of paths; a .npy file, which is mapped; an
            .npz file; or an array. See :class:`Array` for shapes.
        labels: ``"folders"`` for the first folder in an image's name, a CSV file with the columns path and label, or
            whole numbers (N,). For an .npz file also ``"own"`` for its array of such numbers, or a key if there are
            several. For scores alone.
        keys: The arrays to take from an .npz file, such as MedMNIST's ``train_images``.
        **settings: See :class:`Images`.

    Raises:
        FileNotFoundError: If a source is missing.
        ImageError: See :class:`Images`.
        KeyError: If an .npz file lacks a key.
        TypeError: If a source is of none of these kinds.
        ValueError: If a setting or the labels are wrong.
    """
    if not sources:
        raise ValueError("sources: expected folders, files or arrays, got none")
    known = [name for name in inspect.signature(Images).parameters if name not in ("store", "classes", "skipped")]
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"settings: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if keys is not None and not any(str(source).endswith(".npz") for source in sources if not hasattr(source, "shape")):
        raise ValueError(f"keys: expected an .npz file among the sources, got none for {list(keys)}")
    stores: list[Store] = []
    skipped: list[tuple[str, str]] = []
    for source in sources:
        store, others = _open(source, keys)
        stores.append(store)
        skipped += others
    store = stores[0] if len(stores) == 1 else Joined(stores, _titles(sources))
    if not store.names:
        left_out = (
            f"; skipped {counted(len(skipped), 'file')}, first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        )
        raise ImageError(f"{sources[0]}: expected images, got none{left_out}")
    paths = map(store.path, range(len(store.names)))
    places = [os.path.normpath(path.absolute()) for path in paths if path]
    for called in (store.names, places):
        if twice := next((place for place, count in Counter(called).items() if count > 1), None):
            raise ValueError(f"sources: expected every image once, got {twice} again")
    if isinstance(labels, str) and labels == "folders":
        classes: Sequence[str] | None = [name for part in stores for name in folder_classes(part)]
    else:
        classes = _classes(labels, store, sources)
    return Images(store, classes=classes, skipped=skipped, **settings)


def _titles(sources: Sequence[Source]) -> list[str]:
    """Return a prefix for the names of each source's images: a folder's name, or its path if two have that name."""
    folders = [
        Path(source) if isinstance(source, (str, os.PathLike)) and Path(source).is_dir() else None for source in sources
    ]
    names = Counter(folder.name for folder in folders if folder)
    return [
        "" if not folder else f"{folder.name if names[folder.name] == 1 else folder.as_posix()}/" for folder in folders
    ]


def _open(source: Source, keys: Sequence[str] | None) -> tuple[Store, list[tuple[str, str]]]:
    if isinstance(source, np.ndarray):
        return Array(source, "images"), []
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"sources: expected folders, files or arrays, got {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        found, others = find_images(path)
        return Files(found, [file.relative_to(path).as_posix() for file in found]), others
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a folder or a file of images, found nothing")
    if path.suffix == ".npy":
        return Array(Mapped(path), path.name), []
    if path.suffix == ".npz":
        arrays = [Array(array, f"{path.name}:{key}") for key, array in read_npz(path, keys)]
        return arrays[0] if len(arrays) == 1 else Joined(arrays), []
    return Files(read_list(path) if path.suffix == ".txt" else [path]), []


def _classes(labels: Any, store: Store, sources: Sequence[Source]) -> Sequence[str] | None:
    if labels is None:
        return None
    if not isinstance(labels, (str, os.PathLike)):
        return array_classes(labels, len(store.names))
    (source,) = sources if len(sources) == 1 else (None,)
    path = Path(source) if isinstance(source, (str, os.PathLike)) else Path()
    if labels == "own":
        if path.suffix != ".npz":
            kinds = "'folders' or a CSV file, since only one .npz file alone has labels of its own"
            raise ValueError(f"labels: expected {kinds}, got 'own' of {', '.join(map(_called, sources))}")
        return array_classes(read_npz_labels(path, len(store.names)), len(store.names))
    if path.suffix == ".npz":
        return array_classes(dict(read_npz(path, [str(labels)]))[str(labels)], len(store.names))
    if Path(labels).suffix != ".csv" or not Path(labels).is_file():
        kinds = "'folders', 'own' of an .npz file, or a CSV file of path and label"
        raise ValueError(f"labels: expected {kinds}, got {in_words(labels)}")
    return read_classes(Path(labels), store, path.parent if path.suffix == ".txt" else None)


def _called(source: Source) -> str:
    return "an array" if isinstance(source, np.ndarray) else os.fspath(source)
