"""What the items of a data set are called."""

from typing import Any

from torch.utils.data import Dataset


def item_of(data: Dataset[Any]) -> str:
    """Return "row" of rows of features that stand for no image, else "image"."""
    item: str = getattr(data, "item", "image")
    return item
