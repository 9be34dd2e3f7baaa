"""Names of a data set's items in messages."""

from collections.abc import Collection
from typing import Any

from torch.utils.data import Dataset

from deepclust_ext.ops._checks import counted


def item_of(data: Dataset[Any]) -> str:
    """Return "row" for rows of features without images, else "image"."""
    item: str = getattr(data, "item", "image")
    return item


def sizes_in_words(sizes: Collection[int], item: str) -> str:
    """Return the smallest and the largest of some sizes, or what all of them are."""
    largest = counted(max(sizes), item)
    return f"{largest} each" if min(sizes) == max(sizes) else f"{min(sizes)} to {largest}"
