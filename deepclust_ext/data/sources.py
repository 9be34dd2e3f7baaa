"""Images of any kind as one data set: folders, lists, arrays, several of them, each image read once before a run."""

import csv
import hashlib
import inspect
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.data.labels import array_classes, folder_classes, number_classes, read_classes
from deepclust_ext.data.pixels import ImageError, Pixels
from deepclust_ext.data.stores import Array, Files, Joined, Store, find_images, map_array, read_list, read_npz
from deepclust_ext.ops._checks import check_integer

Source = str | os.PathLike[str] | NDArray[Any]
PERCENTILES = (0.1, 99.9)
_SAMPLES = 4096  # values of an image that take part in the percentiles
_BLOCK = 1024  # images that wait to be looked at
_SHARE_OF_MEMORY = 0.25  # of what is free, that images may take


@dataclass(frozen=True)
class _Seen:
    """What the first reading of an image leaves: its kind, a checksum, a sample of its values, and itself if kept."""

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    missing: int
    reach: tuple[float, float] | None  # least and largest value, of floats
    notes: tuple[str, ...]
    checksum: int
    sample: NDArray[Any] | None
    pixels: Pixels | None


class Images(Dataset[Any]):
    """Images with names, of one number of channels, float32 between 0 and 1 by the range that their files can hold.

    An item is an image (C, H, W), or where there are labels an image and its class. Every image is read once when this
    is made, so that what cannot be read is known before training.

    Args:
        store: Where the images lie.
        classes: Each image's class, for scores alone.
        size: Side of the square that images are resized to, with antialias and without keeping the aspect; None for the
            images as they are.
        scale: ``"type"``: what is black and white by the stored type becomes 0 and 1. ``"percentile"``: the values at
            0.1 and 99.9 percent of the data set do, and what lies beyond is not clipped.
        cache: ``"ram"`` keeps the images, resized, in memory, in the type of their file; ``"none"`` reads them again
            each time. By default they are kept if they take a quarter of the free memory or less.
        on_error: ``"skip"`` leaves out images that cannot be read and lists them in ``skipped``; ``"raise"`` stops.
        skipped: Files left out before, each with its reason.

    Attributes:
        names: Of the images, N strings.
        labels: (N,) int64, or None.
        classes: The names of the classes, or None.
        channels: C.
        image_size: (H, W) of every image, or None where they differ.
        skipped: Name and reason of all files that are not among the images.
        notes: What was chosen or found on the way, for people.
        fingerprint: A hash of names, pixels and range: another one means other images.

    Raises:
        ImageError: If no image is left, numbers of channels cannot be matched, or, with ``on_error="raise"``, an image
            cannot be read; the message names the file.
        ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        store: Store,
        *,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        scale: str = "type",
        cache: str = "auto",
        on_error: str = "skip",
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        _check_choice("scale", scale, ("type", "percentile"))
        _check_choice("cache", cache, ("auto", "ram", "none"))
        _check_choice("on_error", on_error, ("skip", "raise"))
        if size is not None:
            check_integer(size, "size", 1)
        self.store, self.size, self.scale = store, size, scale
        self.skipped, self.notes = list(skipped), []
        in_memory = isinstance(store, Array) and size is None
        kept = cache == "ram" or (cache == "auto" and not in_memory and self._fits())
        seen = self._read_all(keep=kept, sampled=scale == "percentile", on_error=on_error)
        self.indices = [index for index, image in enumerate(seen) if image is not None]
        images = [image for image in seen if image is not None]
        self.names = [store.names[index] for index in self.indices]
        self.channels = self._match_channels(images)
        self.range = _percentiles(images, self.names) if scale == "percentile" else None
        sizes = {image.shape[:2] for image in images}
        self.image_size = (size, size) if size else (next(iter(sizes)) if len(sizes) == 1 else None)
        self.labels, self.classes = None, None
        if classes is not None:
            self.labels, self.classes = number_classes([classes[index] for index in self.indices])
        self._kept = [image.pixels for image in images] if kept else None
        where = "kept in memory" if kept else "in an array" if in_memory else "read from their files each time"
        self.notes.append(f"{len(images)} images, {where}")
        self._note(images)
        digest = hashlib.sha256(repr((size, scale, self.range, self.channels)).encode())
        for name, image in zip(self.names, images, strict=True):
            digest.update(repr((name, image.shape, image.dtype, image.checksum)).encode())
        self.fingerprint = digest.hexdigest()

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
        pixels = self._resized(self.store.read(self.indices[index])) if self._kept is None else self._kept[index]
        assert pixels is not None
        if pixels.values.shape[2] not in (1, self.channels):
            raise ImageError(f"{self.names[index]}: expected {self.channels} channels, got {pixels.values.shape[2]}")
        image = torch.from_numpy(pixels.scaled(*(self.range or ()))).permute(2, 0, 1)
        image = image.expand(self.channels, -1, -1).contiguous()
        return image if self.labels is None else (image, int(self.labels[index]))

    def write_skipped(self, path: str | os.PathLike[str]) -> None:
        """Write the files that are not among the images as CSV: path, reason."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "reason"), *self.skipped])

    def _fits(self) -> bool:
        """Return whether all images take a quarter of the free memory or less, by the first few that can be read."""
        bytes_of, count = [], len(self.store.names)
        for index in np.linspace(0, count - 1, min(count, 8)).astype(int).tolist():
            try:
                bytes_of.append(self._resized(self.store.read(index)).values.nbytes)
            except ImageError:
                continue
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        return bool(bytes_of) and float(np.mean(bytes_of)) * count <= _SHARE_OF_MEMORY * free

    def _read_all(self, *, keep: bool, sampled: bool, on_error: str) -> list[_Seen | None]:
        """Read every image once, side by side, and list what cannot be read."""

        def look(index: int) -> _Seen | ImageError:
            try:
                pixels = self.store.read(index)
                values, checksum = pixels.values, crc32(np.ascontiguousarray(pixels.values).tobytes())
                sample = _sampled(pixels) if sampled else None
                missing = 0 if pixels.missing is None else int(pixels.missing.sum())
                kept = self._resized(pixels) if keep else None
                kind, reach = values.dtype.name, _reach(pixels)
                return _Seen(
                    values.shape, kind, pixels.low, pixels.high, missing, reach, pixels.notes, checksum, sample, kept
                )
            except ImageError as error:
                return error

        count = len(self.store.names)
        seen: list[_Seen | None] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # By blocks: a million results would wait otherwise.
            blocks = (pool.map(look, range(start, min(start + _BLOCK, count))) for start in range(0, count, _BLOCK))
            looked = tqdm(chain.from_iterable(blocks), "reading images", count, leave=False, disable=None)
            for index, result in enumerate(looked):
                if isinstance(result, ImageError):
                    if on_error == "raise":
                        pool.shutdown(cancel_futures=True)
                        raise result
                    self.skipped.append((self.store.names[index], str(result)))
                seen.append(None if isinstance(result, ImageError) else result)
        if not any(seen):
            first = f", first {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise ImageError(f"expected images, got none; {len(self.skipped)} files were skipped{first}")
        return seen

    def _match_channels(self, images: Sequence[_Seen]) -> int:
        """Return the number of channels: that of all, or 3 where gray images lie among colored ones."""
        counts = Counter(image.shape[2] for image in images)
        if len(counts) > 1 and set(counts) != {1, 3}:
            usual = counts.most_common(1)[0][0]
            odd = next(place for place, image in enumerate(images) if image.shape[2] != usual)
            raise ImageError(f"{self.names[odd]}: expected {usual} bands as in most files, got {images[odd].shape[2]}")
        if len(counts) > 1:
            self.notes.append(f"{counts[1]} gray images among colored ones: their values stand for all three colors")
        return max(counts)

    def _note(self, images: Sequence[_Seen]) -> None:
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

    def _resized(self, pixels: Pixels) -> Pixels:
        """Return an image on the canvas, in its own type and range."""
        if self.size is None or pixels.values.shape[:2] == (self.size, self.size):
            return pixels
        scaled, missing = pixels.scaled(), pixels.missing
        if missing is not None and not missing.all():
            scaled[missing] = scaled[~missing].min()  # darker than dark would bleed into its neighbors
        square = _interpolated(scaled, self.size).astype(np.float64)
        values = square * (pixels.high - pixels.low) + pixels.low
        if pixels.values.dtype.kind in "iu":
            values = np.rint(values).clip(pixels.low, pixels.high)
        left = None if missing is None else _interpolated(missing.astype(np.float32), self.size) > 0.5
        return replace(pixels, values=values.astype(pixels.values.dtype), missing=left)


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
            whole numbers (N,), or the key of such numbers in an .npz file; for scores alone.
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
    known = list(inspect.signature(Images).parameters)[2:]
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
    store = stores[0] if len(stores) == 1 else Joined(stores, [_title(source) for source in sources])
    if not store.names:
        first = f", first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ImageError(f"{sources[0]}: expected images, got none; {len(skipped)} files were skipped{first}")
    if len(set(store.names)) < len(store.names):
        twice = next(name for name, count in Counter(store.names).items() if count > 1)
        raise ValueError(f"sources: expected every image once, got {twice} again")
    if isinstance(labels, str) and labels == "folders":
        classes: Sequence[str] | None = [name for part in stores for name in folder_classes(part.names)]
    else:
        classes = _classes(labels, store, sources)
    return Images(store, classes=classes, skipped=skipped, **settings)


def _title(source: Source) -> str:
    """Return what goes before the names of the images in one of several sources."""
    return f"{Path(source).name}/" if isinstance(source, (str, os.PathLike)) and Path(source).is_dir() else ""


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
        return Array(partial(map_array, path), path.name), []
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
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".npz":
        return array_classes(dict(read_npz(Path(source), [str(labels)]))[str(labels)], len(store.names))
    if Path(labels).suffix != ".csv" or not Path(labels).is_file():
        raise ValueError(f"labels: expected 'folders', whole numbers or a CSV file, got {str(labels)!r}")
    return read_classes(Path(labels), store)


def _interpolated(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return an image (H, W, C) as (size, size, C), with antialias."""
    image = torch.from_numpy(values).permute(2, 0, 1)[None]
    square = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return square[0].permute(1, 2, 0).numpy()


def _sampled(pixels: Pixels) -> NDArray[Any]:
    """Return some values of an image, none of them missing, evenly over the image."""
    values = pixels.values.reshape(-1) if pixels.missing is None else pixels.values[~pixels.missing]
    return np.array(values[:: max(1, len(values) // _SAMPLES)])


def _reach(pixels: Pixels) -> tuple[float, float] | None:
    """Return the least and the largest value of an image of floats that has any."""
    if pixels.values.dtype.kind != "f":
        return None
    values = pixels.values if pixels.missing is None else pixels.values[~pixels.missing]
    return (float(values.min()), float(values.max())) if values.size else None


def _percentiles(images: Sequence[_Seen], names: Sequence[str]) -> tuple[float, float]:
    """Return the values at 0.1 and 99.9 percent of all images."""
    for name, image in zip(names, images, strict=True):
        if (image.dtype, image.high) != (images[0].dtype, images[0].high):
            kinds = (
                f"{images[0].dtype} up to {images[0].high:g} as in {names[0]}, got {image.dtype} up to {image.high:g}"
            )
            raise ImageError(f"{name}: scale='percentile' expected {kinds}")
    values = np.concatenate([image.sample for image in images if image.sample is not None])
    if not len(values):
        raise ImageError(f"{names[0]}: scale='percentile' expected values, got none that is not missing")
    low, high = (float(end) for end in np.percentile(values.astype(np.float64), PERCENTILES))
    return low, high if high > low else low + 1.0


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
