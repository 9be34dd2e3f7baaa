"""Images of any kind as one data set: folders, lists, arrays, several of them, each image read once before a run."""

import csv
import hashlib
import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, get_worker_info

from deepclust_ext.data.kept import Kept, free_memory, keep_in_file, keep_in_memory
from deepclust_ext.data.labels import array_classes, folder_classes, number_classes, read_classes
from deepclust_ext.data.pixels import MISSING, WHITE, ImageError, Pixels
from deepclust_ext.data.seen import Seen, checksum, look_at, percentiles
from deepclust_ext.data.side_by_side import side_by_side
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
from deepclust_ext.ops._checks import check_integer

Source = str | os.PathLike[str] | NDArray[Any]
_SHARE_OF_MEMORY = 0.25  # of what is free, that images may take


class Images(Dataset[Any]):
    """Images with names, of one number of channels and one type, scaled by the range that their files can hold.

    An item is an image (C, H, W), or where there are labels an image and its class. The type is uint8 or uint16 where
    all files hold such values, as photographs do, or fewer bits that are exact in it; 0 is black, and white is 255 or
    65535. Otherwise, and with ``scale="percentile"``, it is float32, of which 1 is white. All views here take each.

    Every image is read once when this is made, so that what cannot be read is known before training.

    Args:
        store: Where the images lie.
        classes: Each image's class, for scores alone.
        size: Side of the square that images are resized to, with antialias and without keeping the aspect; None for the
            images as they are.
        channels: 3 makes gray images stand for all three colors, even where there is none in color.
        scale: ``"type"``: what is black and white by the stored type becomes so. ``"percentile"``: the values at 0.1
            and 99.9 percent of the data set become 0 and 1, and what lies beyond is not clipped.
        cache: ``"ram"`` keeps the images, resized, in memory; ``"disk"`` in a file that is used again by the next run
            on the same images; ``"none"`` reads them again each time. By default they are kept in memory if they take a
            quarter of what is free or less, else on disk if there is a ``cache_folder``; what was chosen is printed.
        cache_folder: Where that file is written, about as large as the images in memory.
        on_error: ``"skip"`` leaves out images that cannot be read and lists them in ``skipped``; ``"raise"`` stops.
        skipped: Files left out before, each with its reason.

    Attributes:
        names: Of the images, N strings.
        labels: (N,) int64, or None.
        classes: The names of the classes, or None.
        channels: C.
        dtype: Of the images, of torch.
        image_size: (H, W) of every image, or None where they differ.
        kinds: How many images have been stored with each height, width, number of bands and type.
        skipped: Name and reason of all files that are not among the images.
        notes: What was chosen or found on the way, for people; the first says how many images there are, and where.
        fingerprint: A hash of names, pixels and range: another one means other images.

    Raises:
        ImageError: If no image is left, numbers of channels cannot be matched, or, with ``on_error="raise"``, an image
            cannot be read; the message names the file.
        OSError: If the file of kept images cannot be written; names it.
        ValueError: If an argument is wrong, or the file of kept images is damaged.
    """

    def __init__(
        self,
        store: Store,
        *,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        channels: int | None = None,
        scale: str = "type",
        cache: str = "auto",
        cache_folder: str | os.PathLike[str] | None = None,
        on_error: str = "skip",
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        _check_choice("scale", scale, ("type", "percentile"))
        _check_choice("cache", cache, ("auto", "ram", "disk", "none"))
        _check_choice("on_error", on_error, ("skip", "raise"))
        if size is not None:
            check_integer(size, "size", 1)
        if cache == "disk" and cache_folder is None:
            raise ValueError("cache_folder: expected a folder with cache='disk', got None")
        self.store, self.size, self.scale = store, size, scale
        self.skipped = list(skipped)
        self.notes: list[str] = []
        seen = self._read_all(sampled=scale == "percentile", on_error=on_error)
        self.indices = [index for index, image in enumerate(seen) if image is not None]
        images = [image for image in seen if image is not None]
        self.names = [store.names[index] for index in self.indices]
        self.channels = self._match_channels(images)
        if channels == 3 and self.channels == 1:
            self.channels = 3
        self.range = percentiles(images, self.names) if scale == "percentile" else None
        largest = max((image.exact_type for image in images), key=lambda dtype: dtype.itemsize)
        self._type = np.dtype(np.float32) if self.range else largest
        self.dtype = torch.from_numpy(np.empty(0, self._type)).dtype
        sides = np.array([(size, size) if size else image.shape[:2] for image in images], np.int64)
        self.image_size = tuple(sides[0].tolist()) if (sides == sides[0]).all() else None
        self.kinds = Counter((*image.shape, str(image.dtype)) for image in images)
        self.labels, self.classes = None, None
        if classes is not None:
            self.labels, self.classes = number_classes([classes[index] for index in self.indices])
        self._checksums = [image.checksum for image in images]
        digest = hashlib.sha256(repr((size, scale, self.range, self.channels)).encode())
        for name, image in zip(self.names, images, strict=True):
            digest.update(repr((name, image.shape, image.dtype, image.checksum)).encode())
        self.fingerprint = digest.hexdigest()
        # Such an array can be indexed by a batch, and needs no more than another type.
        self._array = store if isinstance(store, Array) and self.image_size == images[0].shape[:2] else None
        self._kept, where = self._keep(cache, cache_folder, sides)
        self.notes.insert(0, f"{len(images)} images, {where}")
        if cache == "auto":
            print(f"deepclust-ext: {self.notes[0]}", file=sys.stderr)
        self._note(images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        """Yield all items in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        """Return an image (C, H, W), and its class where there are labels.

        Raises:
            ImageError: If the image cannot be read any more, or has become another.
        """
        image = self.images_at([index])[0]
        return image if self.labels is None else (image, int(self.labels[index]))

    def images_at(self, indices: Sequence[int]) -> Tensor | list[Tensor]:
        """Return a batch of images without classes, (B, C, H, W), or a list of (C, H, W) where all are read one by one.

        Files are decoded side by side, except in a worker process: there are others beside it.

        Raises:
            ImageError: If an image cannot be read any more, or has become another.
        """
        if self._kept is not None:
            return self._kept.images_at(indices)
        if self._array is not None:
            return torch.from_numpy(self._converted(self._array.read_several(indices)))
        if len(indices) == 1 or get_worker_info() is not None:
            return [torch.from_numpy(self._decoded(index)) for index in indices]
        return [
            torch.from_numpy(image) for image in side_by_side(lambda place: self._decoded(indices[place]), len(indices))
        ]

    def path(self, index: int) -> Path | None:
        """Return the file of an image, or None where it lies in an array."""
        return self.store.path(self.indices[index])

    def write_skipped(self, path: str | os.PathLike[str]) -> None:
        """Write the files that are not among the images as CSV: path, reason."""
        with Path(path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "reason"), *self.skipped])

    def _read_all(self, *, sampled: bool, on_error: str) -> list[Seen | None]:
        """Read every image once, side by side, and list what cannot be read."""

        def look(index: int) -> Seen | ImageError:
            try:
                return look_at(self.store.read(index), sampled=sampled)
            except ImageError as error:
                return error

        seen: list[Seen | None] = []
        for index, result in enumerate(side_by_side(look, len(self.store.names), "reading images")):
            if isinstance(result, ImageError):
                if on_error == "raise":
                    raise result
                self.skipped.append((self.store.names[index], str(result)))
            seen.append(None if isinstance(result, ImageError) else result)
        if not any(seen):
            first = f", first {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise ImageError(f"expected images, got none; {len(self.skipped)} files were skipped{first}")
        return seen

    def _keep(
        self, cache: str, folder: str | os.PathLike[str] | None, sides: NDArray[np.int64]
    ) -> tuple[Kept | None, str]:
        """Return the kept images, if any, and where they are now, for people."""
        if cache == "auto":
            fits = (
                self.channels * int(sides.prod(axis=1).sum()) * self._type.itemsize <= _SHARE_OF_MEMORY * free_memory()
            )
            cache = "none" if self._array else "ram" if fits else "none" if folder is None else "disk"
        if cache == "none":
            return None, "in an array" if self._array else "read from their files each time"
        with closing(side_by_side(self._decoded, len(self), "keeping images")) as decoded:
            if cache == "ram":
                return keep_in_memory(decoded, self._type, self.channels, sides), "kept in memory"
            assert folder is not None
            path = Path(folder) / f"images-{self.fingerprint[:16]}.npy"
            kept, found = keep_in_file(path, self.fingerprint, decoded, self._type, self.channels, sides)
            return kept, f"{'found' if found else 'kept'} in {path}"

    def _decoded(self, index: int) -> NDArray[Any]:
        """Return an image (C, H, W) from its file."""
        pixels = self.store.read(self.indices[index])
        if checksum(pixels) != self._checksums[index]:
            raise ImageError(f"{self.names[index]}: expected the image that was read first, got another one since")
        return self._converted(pixels)

    def _converted(self, pixels: Pixels) -> NDArray[Any]:
        """Return an image or several, (..., H, W, C), as (..., C, H, W) of this type, channels and size."""
        if self.size is not None and pixels.values.shape[-3:-1] != (self.size, self.size):
            values = self._resized(pixels)
        else:
            values = pixels.scaled(*self.range) if self.range else pixels.as_type(self._type)
        values = np.moveaxis(values, -1, -3)
        return np.array(np.broadcast_to(values, (*values.shape[:-3], self.channels, *values.shape[-2:])), order="C")

    def _match_channels(self, images: Sequence[Seen]) -> int:
        """Return the number of channels: that of all, or 3 where gray images lie among colored ones."""
        counts = Counter(image.shape[2] for image in images)
        if len(counts) > 1 and set(counts) != {1, 3}:
            usual = counts.most_common(1)[0][0]
            odd = next(place for place, image in enumerate(images) if image.shape[2] != usual)
            raise ImageError(f"{self.names[odd]}: expected {usual} bands as in most files, got {images[odd].shape[2]}")
        if len(counts) > 1:
            self.notes.append(f"{counts[1]} gray images among colored ones: their values stand for all three colors")
        return max(counts)

    def _note(self, images: Sequence[Seen]) -> None:
        """Say what files left open, how much was missing, and what was left out."""
        for note, count in Counter(note for image in images for note in image.notes).items():
            self.notes.append(f"{count} images: {note}")
        if missing := sum(image.missing for image in images):
            affected = sum(image.missing > 0 for image in images)
            self.notes.append(f"{affected} images lack {missing} values, which became 0")
        beyond = [image.reach for image in images if image.reach and not 0 <= image.reach[0] <= image.reach[1] <= 1]
        if beyond and self.range is None:
            low, high = min(low for low, _ in beyond), max(high for _, high in beyond)
            self.notes.append(
                f"{len(beyond)} images of floats, of which 0 is black and 1 is white, go from {low:g} to {high:g}: "
                "divide them, or use scale='percentile'"
            )
        if self.skipped:
            self.notes.append(f"{len(self.skipped)} files skipped, first {self.skipped[0][0]}: {self.skipped[0][1]}")

    def _resized(self, pixels: Pixels) -> NDArray[Any]:
        """Return an image on the canvas, (size, size, C) of this type."""
        assert self.size is not None
        scaled, missing = pixels.scaled(*(self.range or ())), pixels.missing
        if missing is not None and not missing.all():
            scaled[missing] = scaled[~missing].min()  # darker than dark would bleed into its neighbors
        square = _interpolated(scaled, self.size)
        if missing is not None:
            square[_interpolated(missing.astype(np.float32), self.size) > 0.5] = MISSING
        if self._type in WHITE:
            square = np.rint(square * WHITE[self._type]).clip(0, WHITE[self._type]).astype(self._type)
        return square


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
            whole numbers (N,); of an .npz file ``"own"`` for the array of such numbers that it holds beside the images,
            or its key where there are several. For scores alone.
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
        first = f", first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ImageError(f"{sources[0]}: expected images, got none; {len(skipped)} files were skipped{first}")
    if len(set(store.names)) < len(store.names):
        twice = next(name for name, count in Counter(store.names).items() if count > 1)
        raise ValueError(f"sources: expected every image once, got {twice} again")
    if isinstance(labels, str) and labels == "folders":
        classes: Sequence[str] | None = [name for part in stores for name in folder_classes(part)]
    else:
        classes = _classes(labels, store, sources)
    return Images(store, classes=classes, skipped=skipped, **settings)


def _titles(sources: Sequence[Source]) -> list[str]:
    """Return what goes before the names of images, by source: of a folder its name, or if two have it its path."""
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
        raise ValueError(f"labels: expected 'folders', whole numbers or a CSV file, got {str(labels)!r}")
    return read_classes(Path(labels), store)


def _called(source: Source) -> str:
    return "an array" if isinstance(source, np.ndarray) else os.fspath(source)


def _interpolated(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return an image (H, W, C) as (size, size, C), with antialias."""
    image = torch.from_numpy(values).permute(2, 0, 1)[None]
    square = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return square[0].permute(1, 2, 0).numpy()


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
