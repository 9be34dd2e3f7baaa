"""Images of any kind as one data set, each image read once before a run."""

import copy
import csv
import hashlib
import operator
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, get_worker_info

from deepclust_ext.data.kept import Kept, free_memory, keep_in_file, keep_in_memory
from deepclust_ext.data.labels import number_classes
from deepclust_ext.data.pixels import MISSING, WHITE, ImageError, Pixels
from deepclust_ext.data.seen import PixelRange, Seen, check_types, checksum, look_at, percentiles
from deepclust_ext.data.side_by_side import side_by_side
from deepclust_ext.data.stores import A_RUN, NO_IMAGE, Array, Store
from deepclust_ext.ops._checks import check_size, counted

_SHARE_OF_MEMORY = 0.25  # of what is free, that images may take


class Images(Dataset[Any]):
    """Images with names, all with one number of channels and one type, scaled by the range that their files can hold.

    An item is an image (C, H, W), or with labels the pair of image and class. The type is uint8 (white is 255) or
    uint16 (white is 65535) if the values of all files are exact in it, as those of photographs are. Otherwise, and with
    ``scale="percentile"``, it is float32, and white is 1. Black is 0. All views of this package take each of these
    types.

    Every image is read once at the start, so unreadable files are known before training. A slice is a data set of these
    images; channels, type, range, classes and ``skipped`` are those of the whole one.

    Args:
        store: Store of the images.
        classes: Each image's class, for scores alone.
        size: Side of the square that images are resized to, with antialias and without keeping the aspect ratio; None
            for no resizing.
        channels: 3 repeats gray images for all three colors, even if no image is in color.
        scale: ``"type"`` takes black and white from the stored type. With ``"percentile"`` the values at 0.1 and 99.9
            percent of the data set become 0 and 1, and values beyond are not clipped. Or give the ``range`` of other
            images, on which a network was trained, to scale these in the same way.
        cache: ``"ram"`` keeps the images, resized, in memory; ``"disk"`` in a file that the next run on the same images
            uses again; ``"none"`` reads them again each time. By default they are kept in memory if they take no more
            than a quarter of the free memory, else on disk if there is a ``cache_folder``. The choice is printed.
        cache_folder: Where that file is written; it is about as large as the images in memory.
        on_error: ``"skip"`` leaves out images that cannot be read and lists them in ``skipped``; ``"raise"`` raises.
        skipped: Files left out before, each with its reason.

    Attributes:
        names: Names of the images, N strings.
        labels: (N,) int64, or None.
        classes: The names of the classes, or None.
        channels: C.
        dtype: Torch's dtype of the images.
        image_size: (H, W) of every image, or None if they differ.
        range: The values that become 0 and 1 if these do not follow from the stored type, else None.
        kinds: Number of images for each stored height, width, number of bands and type.
        skipped: Name and reason of all files that are not among the images.
        notes: What was chosen or found while reading, for the user; the first says how many images there are, and
            where.
        fingerprint: A hash of names, pixels and range; images that differ have another one.

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
        scale: str | PixelRange = "type",
        cache: str = "auto",
        cache_folder: str | os.PathLike[str] | None = None,
        on_error: str = "skip",
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not isinstance(scale, PixelRange):
            _check_choice("scale", scale, ("type", "percentile"))
        _check_choice("cache", cache, ("auto", "ram", "disk", "none"))
        _check_choice("on_error", on_error, ("skip", "raise"))
        if size is not None:
            check_size(size, "size")
        if cache == "disk" and cache_folder is None:
            raise ValueError("cache_folder: expected a folder with cache='disk', got None")
        self.store, self.size = store, size
        self.scale = "percentile" if isinstance(scale, PixelRange) else scale
        self.skipped = list(skipped)
        unread = [fault for fault in skipped if fault[1] not in (NO_IMAGE, A_RUN)]
        if on_error == "raise" and unread:
            raise ImageError(f"{unread[0][0]}: expected an image that can be read, got {unread[0][1]}")
        self.notes: list[str] = []
        seen = self._read_all(sampled=scale == "percentile", on_error=on_error)
        self.indices = [index for index, image in enumerate(seen) if image is not None]
        images = [image for image in seen if image is not None]
        self.names = [store.names[index] for index in self.indices]
        self.channels = self._match_channels(images)
        if channels == 3 and self.channels == 1:
            self.channels = 3
        self.range = percentiles(images, self.names) if scale == "percentile" else None
        if isinstance(scale, PixelRange):
            check_types(images, self.names, scale.dtype, scale.white, "the images whose range it is")
            self.range = scale
        self._ends = (self.range.low, self.range.high) if self.range else None
        largest = max((image.exact_type for image in images), key=lambda dtype: dtype.itemsize)
        self._type = np.dtype(np.float32) if self.range else largest
        self.dtype = torch.from_numpy(np.empty(0, self._type)).dtype
        sides = np.array([(size, size) if size else image.shape[:2] for image in images], np.int64)
        self.labels, self.classes = None, None
        if classes is not None:
            self.labels, self.classes = number_classes([classes[index] for index in self.indices])
        self._stored = [(image.shape, image.dtype, image.checksum) for image in images]
        self._places = range(len(images))  # among those that are kept
        self._sum_up()
        # Such an array can be indexed by a batch, and needs no more than another type.
        self._array = store if isinstance(store, Array) and self.image_size == images[0].shape[:2] else None
        self._kept, where = self._keep(cache, cache_folder, sides)
        self.notes.insert(0, f"{counted(len(images), 'image')}, {where}")
        if cache == "auto":
            print(f"deepclust-ext: {self.notes[0]}", file=sys.stderr)
        self._note(images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        """Yield all items in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Return an image (C, H, W), with labels the pair of image and class; for a slice a data set of these images.

        Raises:
            ImageError: If the image cannot be read any more, or has changed.
            IndexError: If there is no such image.
            TypeError: If the index is neither an integer nor a slice.
            ValueError: If no image is in the slice.
        """
        if isinstance(index, slice):
            return self._part(index)
        try:
            place = operator.index(index)
        except TypeError as error:
            raise TypeError(f"index: expected an integer or a slice, got {index!r:.80}") from error
        if not -len(self) <= place < len(self):
            raise IndexError(f"index: expected {-len(self)} to {len(self) - 1}, got {place}")
        image = self.images_at([place])[0]
        return image if self.labels is None else (image, int(self.labels[place]))

    def images_at(self, indices: Sequence[int]) -> Tensor | list[Tensor]:
        """Return a batch of images without classes, (B, C, H, W) or a list of (C, H, W).

        It is a list if images differ in size, or are read from their files one by one. Files are decoded in parallel,
        except in a worker process, because there are other workers.

        Raises:
            ImageError: If an image cannot be read any more, or has changed.
        """
        if self._kept is not None:
            return self._kept.images_at([self._places[index] for index in indices])
        if self._array is not None:
            stored = [self.indices[index] for index in indices]
            return torch.from_numpy(self._converted(self._array.read_several(stored)))
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

    def _part(self, key: slice) -> "Images":
        """Return a data set of some of these images."""
        inside = range(len(self))[key]
        if not inside:
            raise ValueError(f"index: expected a slice with at least one of {counted(len(self), 'image')}, got {key}")
        part = copy.copy(self)
        for name in ("indices", "names", "_stored"):
            setattr(part, name, getattr(self, name)[key])
        part._places = self._places[key]
        if self.labels is not None:
            part.labels = self.labels[list(inside)]
        part.notes = [f"{len(inside)} of {self.notes[0]}", *self.notes[1:]]
        part._sum_up()
        return part

    def _sum_up(self) -> None:
        """Set the attributes that depend on all images together."""
        sides = {(self.size, self.size) if self.size else shape[:2] for shape, _, _ in self._stored}
        self.image_size = sides.pop() if len(sides) == 1 else None
        self.kinds = Counter((*shape, str(dtype)) for shape, dtype, _ in self._stored)
        digest = hashlib.sha256(repr((self.size, self.scale, self._ends, self.channels)).encode())
        for name, stored in zip(self.names, self._stored, strict=True):
            digest.update(repr((name, *stored)).encode())
        self.fingerprint = digest.hexdigest()

    def _read_all(self, *, sampled: bool, on_error: str) -> list[Seen | None]:
        """Read every image once, in parallel, and list those that cannot be read."""

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
                reason = str(result).removeprefix(f"{self.store.path(index)}: ")  # the name says it
                self.skipped.append((self.store.names[index], reason))
            seen.append(None if isinstance(result, ImageError) else result)
        if not any(seen):
            first = f", first {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise ImageError(f"expected images, got none; skipped {counted(len(self.skipped), 'file')}{first}")
        return seen

    def _keep(
        self, cache: str, folder: str | os.PathLike[str] | None, sides: NDArray[np.int64]
    ) -> tuple[Kept | None, str]:
        """Return the cached images, if any, and a text that says where they are."""
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
        if checksum(pixels) != self._stored[index][2]:
            raise ImageError(f"{self.names[index]}: expected the image that was read first, got another one since")
        return self._converted(pixels)

    def _converted(self, pixels: Pixels) -> NDArray[Any]:
        """Return an image or several, (..., H, W, C), as (..., C, H, W) of this type, channels and size."""
        if self.size is not None and pixels.values.shape[-3:-1] != (self.size, self.size):
            values = self._resized(pixels)
        else:
            values = pixels.scaled(*self._ends) if self._ends else pixels.as_type(self._type)
        values = np.moveaxis(values, -1, -3)
        return np.array(np.broadcast_to(values, (*values.shape[:-3], self.channels, *values.shape[-2:])), order="C")

    def _match_channels(self, images: Sequence[Seen]) -> int:
        """Return the number of channels: that of all images, or 3 if there are gray images among colored ones."""
        counts = Counter(image.shape[2] for image in images)
        if len(counts) > 1 and set(counts) != {1, 3}:
            usual = counts.most_common(1)[0][0]
            fitting = {1, 3} if usual in (1, 3) else {usual}
            odd = next(place for place, image in enumerate(images) if image.shape[2] not in fitting)
            expected = f"{counted(usual, 'band')} as in most files"
            raise ImageError(f"{self.names[odd]}: expected {expected}, got {images[odd].shape[2]}")
        if len(counts) > 1:
            self.notes.append(f"{counted(counts[1], 'gray image')} among colored ones: gray stands for all colors")
        return max(counts)

    def _note(self, images: Sequence[Seen]) -> None:
        """Note what was chosen for files, how many values were missing, and what was left out."""
        for note, count in Counter(note for image in images for note in image.notes).items():
            self.notes.append(f"{counted(count, 'image')}: {note}")
        if self.channels not in (1, 3):
            bands = f"{self.channels} bands, not three colors"
            self.notes.append(f"{counted(len(images), 'image')} of {bands}: views leave out saturation, hue and gray")
        if missing := sum(image.missing for image in images):
            affected = sum(image.missing > 0 for image in images)
            self.notes.append(f"{counted(missing, 'value')} missing in {counted(affected, 'image')}, taken for 0")
        if self.range is None:
            self._note_reach([image for image in images if image.reach is not None])
        if self.skipped:
            self.notes.append(
                f"{counted(len(self.skipped), 'file')} skipped, first {self.skipped[0][0]}: {self.skipped[0][1]}"
            )

    def _note_reach(self, images: Sequence[Seen]) -> None:
        """Note floats beyond black and white, and wide integers that use hardly any of their range."""
        floats = [image for image in images if image.dtype.startswith("float")]
        beyond = [image.reach for image in floats if image.reach and not 0 <= image.reach[0] <= image.reach[1] <= 1]
        others = [image for image in images if "int" in image.dtype]
        close = [image.reach for image in others if image.reach and _is_close(image.reach, image)]
        for reaches, kind, cure in (
            (beyond, "floats, 0 being black and 1 white, from", "divide them"),
            (close, "integers of 32 bits or more, of which they use", "store them as uint8 or uint16"),
        ):
            if reaches:
                low, high = min(low for low, _ in reaches), max(high for _, high in reaches)
                self.notes.append(
                    f"{counted(len(reaches), 'image')} of {kind} {low:g} to {high:g}: {cure}, or use scale='percentile'"
                )

    def _resized(self, pixels: Pixels) -> NDArray[Any]:
        """Return an image resized to the square, (size, size, C) of this type."""
        assert self.size is not None
        scaled, missing = pixels.scaled(*(self._ends or ())), pixels.missing
        if missing is not None and not missing.all():
            scaled[missing] = scaled[~missing].min()  # darker than dark would bleed into its neighbors
        square = _interpolated(scaled, self.size)
        if missing is not None:
            square[_interpolated(missing.astype(np.float32), self.size) > 0.5] = MISSING
        if self._type in WHITE:
            square = np.rint(square * WHITE[self._type]).clip(0, WHITE[self._type]).astype(self._type)
        return square


def _interpolated(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return an image (H, W, C) as (size, size, C), with antialias."""
    image = torch.from_numpy(values).permute(2, 0, 1)[None]
    square = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return square[0].permute(1, 2, 0).numpy()


def _is_close(reach: tuple[float, float], image: Seen) -> bool:
    """Return whether an image uses so little of its type's range that 16 bits of it would not tell its values apart."""
    return reach[1] - reach[0] < (image.high - image.low) / WHITE[np.dtype(np.uint16)]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
