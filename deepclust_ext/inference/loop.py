"""The one loop over all images of a data set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod

View = Callable[[Tensor], Tensor]  # from a batch of images (B, C, H, W) to another (B, C, H', W')


class Images(Dataset[tuple[Tensor, int]]):
    """The images of a data set with their indices; whatever else an item holds never leaves this class.

    Args:
        data: Map-style, of images (C, H, W) or of tuples that begin with one.

    Raises:
        TypeError: If the data are not map-style.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise TypeError(f"data: expected a map-style data set, with items and a length, got {type(data).__name__}")
        self.data = data

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image (C, H, W) and its place in the data set.

        Raises:
            TypeError: If the item is no tensor and does not begin with one.
            ValueError: If the image is not three-dimensional.
        """
        item = self.data[index]
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(image, Tensor):
            raise TypeError(f"data, image {index}: expected a tensor (C, H, W), got {type(image).__name__}")
        if image.dim() != 3:
            raise ValueError(f"data, image {index}: expected shape (C, H, W), got {tuple(image.shape)}")
        return image, index


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return the images (B, C, H, W) and the integers (B,) of the items of a batch.

    Raises:
        ValueError: If the images differ in shape, or in dtype, whose values may then mean different things.
    """
    images, numbers = zip(*((item[0], item[1]) for item in items), strict=True)
    kinds = sorted({f"{tuple(image.shape)} of {image.dtype}" for image in images})
    if len(kinds) > 1:
        raise ValueError(f"data: expected images of one shape and dtype in a batch, got {' and '.join(kinds)}")
    return torch.stack(images), torch.tensor(numbers)


def map_images(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    with_labels: bool = False,
) -> tuple[Tensor, ...]:
    """Return what a function gives for all images of a data set, in its order.

    Args:
        function: From a batch of images (B, C, H, W) to a tuple of tensors (B, ...).
        data: Map-style, of images (C, H, W) or of tuples that begin with one.
        test_view: Of every batch, on the device; None for the images as they are.
        batch_size: Images at a time.
        num_workers: Processes that load images.
        device: Where the function computes.
        with_labels: Whether to return the second entry of each item too, as the last tensor (N,), on the CPU.

    Returns:
        One tensor (N, ...) for each of the function's.

    Raises:
        TypeError: If the data are not map-style, or an item has no image.
        ValueError: If images of a batch differ in shape or dtype, or a pixel is not finite.
    """
    source = data if with_labels else Images(data)
    loader: DataLoader[Any] = DataLoader(source, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    parts, done = [], 0
    for images, numbers in loader:
        if not images.isfinite().all():
            bad = int((~images.isfinite().flatten(1).all(dim=1)).int().argmax()) + done
            raise ValueError(f"data, image {bad}: expected finite pixels, got NaN or infinity")
        done += len(images)
        images = images.to(device)
        if test_view is not None:
            images = test_view(images)
        parts.append((*function(images), *((numbers,) if with_labels else ())))
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def embed(
    method: ClusteringMethod,
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
) -> Tensor:
    """Return a method's rows (N, D) for the images of a data set, on the method's device; see :func:`map_images`."""
    (rows,) = map_images(
        lambda images: (method.embed(images),),
        data,
        test_view=test_view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of(method),
    )
    return rows


def assign(
    method: ClusterHeadMethod,
    data: Dataset[Any],
    *,
    test_view: View | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
) -> Tensor:
    """Return the share (N, K) of every cluster in the images of a data set, on the method's device."""
    (shares,) = map_images(
        lambda images: (method.assign(images),),
        data,
        test_view=test_view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of(method),
    )
    return shares


def device_of(method: ClusteringMethod) -> torch.device:
    """Return where a method's weights are."""
    return next(method.parameters()).device
