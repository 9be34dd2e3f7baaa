"""The items of a data set: images, and for evaluation alone classes; errors name the file of an item that is none."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

#: Modes of PIL's pictures, and what each is taken as; of the others it is not known what white is.
PICTURE_MODES = {"L": "L", "RGB": "RGB", "RGBA": "RGBA", "1": "L", "P": "RGB", "I;16": "I;16"}


class IndexedImages(Dataset[Any]):
    """The images of a data set with their indices; whatever else an item holds never leaves this class.

    An image is a tensor or array (C, H, W), which keeps its values and dtype, or a PIL image, which becomes uint8, or
    uint16 if it has 16 bits.

    Batches are read at once from torch's ``TensorDataset``, from classes with a method ``images_at``, and from subsets
    of them. ``images_at`` takes a list of indices and returns images alone, (B, C, H, W) or a list of (C, H, W).

    Args:
        data: Map-style, of images or of tuples that begin with one.
        any_size: Whether images of one batch may differ in height and width.

    Raises:
        TypeError: If the data are not map-style.
    """

    def __init__(self, data: Dataset[Any], *, any_size: bool = False) -> None:
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise TypeError(f"data: expected a map-style data set, with items and a length, got {type(data).__name__}")
        self.data = data
        self.any_size = any_size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return an image (C, H, W) and its place in the data set.

        Raises:
            TypeError: If the item is no image and does not begin with one.
            ValueError: If the image is not three-dimensional, or cannot be read.
        """
        return self._image(self._item(index), index), index

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the input of ``collate`` for the images at these indices; torch's loader calls this for a batch.

        Raises:
            TypeError: As for one of them.
            ValueError: As for one of them.
        """
        try:
            images = self._at_once(indices)
        except Exception:  # which image it was, the items say
            images = None
        if isinstance(images, Tensor) and images.dim() == 4:
            return images.contiguous(), torch.tensor(indices, device="cpu")
        if isinstance(images, list):
            return list(zip(images, indices, strict=True))
        return [self[index] for index in indices]

    def collate(self, items: Any) -> tuple[Tensor | list[Tensor], Any]:
        """Return the images of a batch, (B, C, H, W), or a list if sizes differ, and their indices (B,).

        Raises:
            ValueError: If the images differ in shape, or in dtype, whose values may then mean different things.
        """
        if isinstance(items, tuple):  # a batch already
            return items
        first, first_index = items[0][:2]
        alike = True
        for image, index, *_ in items:
            same = image.shape == first.shape
            if image.dtype != first.dtype or not (same or (self.any_size and len(image) == len(first))):
                raise ValueError(
                    f"{self.name(index)}: expected the shape and dtype of {self.name(first_index)} in the same batch, "
                    f"{tuple(first.shape)} of {first.dtype}, got {tuple(image.shape)} of {image.dtype}"
                )
            alike = alike and same
        images = [item[0] for item in items]
        places = torch.tensor([item[1] for item in items], device="cpu")
        return torch.stack(images) if alike else images, places

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its index and, if the data set knows it, its file.

        Names are those of the attribute ``names``, or the first of each of ``samples``, as torchvision's folders have.
        """
        data: Any = self.data
        inside = index
        while isinstance(data, Subset):
            data, inside = data.dataset, data.indices[inside]
        for attribute in ("names", "samples"):
            known = getattr(data, attribute, None)
            if isinstance(known, Sequence) and inside < len(known):
                file = known[inside][0] if isinstance(known[inside], tuple) else known[inside]
                if isinstance(file, (str, os.PathLike)):
                    return f"data, image {index} ({os.fspath(file)})"
        return f"data, image {index}"

    def _at_once(self, indices: Sequence[int]) -> Any:
        """Return the images at these indices without their items, or None if the data set cannot do that."""
        data: Any = self.data
        while type(data) is Subset:
            data, indices = data.dataset, [int(data.indices[index]) for index in indices]
        if type(data) is TensorDataset:
            return data.tensors[0][torch.tensor(indices, device="cpu")]
        return data.images_at(indices) if _gives_batches(type(data)) else None

    def _item(self, index: int) -> Any:
        try:
            return self.data[index]
        except Exception as error:  # of whatever kind the data set's own code and its decoders raise
            raise ValueError(self._unreadable(index, error)) from error

    def _image(self, item: Any, index: int) -> Tensor:
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        try:
            image = _as_tensor(image)
        except Exception as error:  # PIL reads a file as late as here
            raise ValueError(self._unreadable(index, error)) from error
        if not isinstance(image, Tensor):
            keys = f" with the keys {', '.join(map(str, image))}" if isinstance(image, Mapping) and image else ""
            raise TypeError(
                f"{self.name(index)}: expected a tensor or array (C, H, W), or a picture of PIL, alone or first in a "
                f"tuple, got {type(image).__name__}{keys}"
            )
        if image.dim() != 3:
            raise ValueError(f"{self.name(index)}: expected shape (C, H, W), got {tuple(image.shape)}")
        return image

    def _unreadable(self, index: int, error: Exception) -> str:
        return f"{self.name(index)}: expected an image that can be read, got {type(error).__name__}: {error}"


class LabelledImages(IndexedImages):
    """Images with their indices and classes, for evaluation alone."""

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return an image (C, H, W), its place, and its class as an integer or a name.

        Raises:
            TypeError: As :class:`IndexedImages`, or if the item has no class, or one of another type.
            ValueError: As :class:`IndexedImages`.
        """
        item = self._item(index)
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise TypeError(f"{self.name(index)}: expected an image and its class, got {type(item).__name__} without")
        label = item[1]
        if isinstance(label, (Tensor, np.ndarray, np.generic)) and math.prod(label.shape) == 1:
            label = label.item()
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, (int, str)):
            raise TypeError(
                f"{self.name(index)}: expected a class as one integer or a name, got {item[1]!s:.60} of type "
                f"{type(item[1]).__name__}"
            )
        return self._image(item, index), index, label

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the images at these places with their classes."""
        return [self[index] for index in indices]

    def collate(self, items: Any) -> tuple[Tensor | list[Tensor], Any]:
        """Return the images of the items of a batch, and the list of their classes."""
        return super().collate(items)[0], [item[2] for item in items]


def moved(images: Tensor | list[Tensor], device: torch.device | str) -> Tensor | list[Tensor]:
    """Return the images of a batch on a device, one tensor or a list of them."""
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]


def takes_any_size(*views: Any) -> bool:
    """Return whether all views take lists of images of different sizes, as their attribute ``any_size`` says."""
    return all(getattr(view, "any_size", False) for view in views)


def numbered(labels: Sequence[int | str]) -> Tensor:
    """Return classes as integers (N,): integers stay, and names become their place in alphabetical order."""
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels, dtype=torch.int64, device="cpu")
    places = {name: place for place, name in enumerate(sorted(set(map(str, labels))))}
    return torch.tensor([places[str(label)] for label in labels], device="cpu")


def _gives_batches(kind: type) -> bool:
    """Return whether a class has ``images_at``, and no subclass of it has changed what an item is."""
    ways = ({"images_at", "__getitem__"} & vars(base).keys() for base in kind.__mro__)
    return "images_at" in next(filter(None, ways), ())


def _as_tensor(image: Any) -> Any:
    """Return arrays and PIL images as tensors (C, H, W), and all else unchanged."""
    pil = sys.modules.get("PIL.Image")  # where nobody has loaded PIL, there are no pictures
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in PICTURE_MODES:
            known = ", ".join(PICTURE_MODES)
            raise ValueError(
                f"a picture of the mode {image.mode}, known are {known}; return an array (C, H, W) of uint8, uint16 or "
                "floats between 0 and 1 instead"
            )
        image = np.atleast_3d(np.array(image.convert(PICTURE_MODES[image.mode]))).transpose(2, 0, 1)
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image.copy())  # the data set may go on to write into its own
    return image
