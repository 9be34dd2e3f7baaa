"""Names of a data set's items in messages."""

from typing import Any

from torch.utils.data import Dataset


def item_of(data: Dataset[Any]) -> str:
    """Return "row" for rows of features without images, else "image"."""
    item: str = getattr(data, "item", "image")
    return item
