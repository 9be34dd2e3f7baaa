"""Which images a report keeps with picture, name and neighbors if there are more than it can hold."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext.data import Features
from deepclust_ext.data.words import item_of
from deepclust_ext.evaluation.galleries import Galleries, Indices
from deepclust_ext.evaluation.text import as_text
from deepclust_ext.evaluation.thumbnails import Thumbnails
from deepclust_ext.ops.nearest_neighbors import nearest_neighbors

#: Characters that pictures, names and neighbors take at most; with the points of the map the page stays below 20 MB.
CHARACTERS = 13_000_000
#: Neighbors of an image.
NEIGHBORS = 12
#: Sides of pictures, of which the largest is taken that all images fit with, or else the last.
_SIDES, _PIXELS = (160, 128, 96, 64), 16_000_000
_CHARACTERS_OF_A_NEIGHBOR = 12  # its place and cosine


@dataclass(frozen=True)
class KeptImages:
    """The images of a report, M of N, in its order.

    Attributes:
        places: (M,) indices in the data set.
        names: Names in a form that can be shown.
        pictures: Data URIs; "" for features without images.
        neighbors: For each image the nearest other ones, by their index in this order.
        cosines: Cosines of the neighbors, in thousandths.
        exact: 1 if the neighbors are the nearest of all N images, 0 if of these M.
        notes: What was left out, for the user.
    """

    places: Indices
    names: list[str]
    pictures: list[str]
    neighbors: list[list[int]]
    cosines: list[list[int]]
    exact: list[int]
    notes: list[str]


def keep_images(
    images: Dataset[Any],
    names: Sequence[str],
    rows: Tensor,  # (N, D)
    galleries: Galleries,
) -> KeptImages:
    """Return as many images as 13 million characters hold: those shown, their neighbors, then the most typical ones.

    Raises:
        TypeError: If an item is no image.
        ValueError: If an image cannot be read.
    """
    everything, shown = np.arange(len(rows)), np.array(galleries.shown())
    nearest, cosines = _neighbors(rows, shown, everything)
    wanted = np.concatenate([shown, nearest.reshape(-1), galleries.most_typical_first()])
    order = list(dict.fromkeys(wanted[wanted >= 0].tolist()))
    drawn, note = _drawn(images, order, len(rows))
    pictures: list[str] = []
    left = CHARACTERS
    for place, picture in zip(order, drawn, strict=True):
        left -= len(picture) + len(json.dumps(as_text(names[place]))) + _CHARACTERS_OF_A_NEIGHBOR * NEIGHBORS
        if left < 0:
            break
        pictures.append(picture)
    kept = np.array(order[: len(pictures)], np.int64)
    number = positions(kept, len(rows))
    # Where all neighbors of an image in a gallery are kept, the nearest of the kept images are the nearest of all.
    complete = (number[nearest] >= 0) | (nearest < 0)
    exact = np.isin(kept, shown[complete.all(axis=1)]) | (len(kept) == len(rows))
    nearest, cosines = _neighbors(rows, kept, kept)
    notes = [note] if note else []
    if len(kept) < len(rows):
        item, shown_by = item_of(images), "pictures and names" if any(pictures) else "names"
        notes.append(
            f"To keep the file small, {len(kept):,} of {len(rows):,} {item}s have {shown_by} here: those of the "
            "galleries, their neighbors, and of the others the most typical of each cluster. Neighbors are the nearest "
            f"among these; for {exact.sum():,} {item}s in galleries these are the nearest of all."
        )
    return KeptImages(
        places=kept,
        names=[as_text(names[place]) for place in kept],
        pictures=pictures,
        neighbors=[number[row[row >= 0]].tolist() for row in nearest],
        cosines=[np.rint(1000 * row[row > -np.inf]).astype(int).tolist() for row in cosines],
        exact=exact.astype(int).tolist(),
        notes=notes,
    )


def _drawn(images: Dataset[Any], order: Sequence[int], count: int) -> tuple[Iterable[str], str]:
    """Return pictures of images in an order, "" of features without, and what to say of them."""
    shown = images.pictures if isinstance(images, Features) else images
    if shown is None:
        return [""] * len(order), "The rows are features: there is nothing to look at but their names."
    side = next((side for side in _SIDES if count * side * side <= _PIXELS), _SIDES[-1])
    thumbnails = Thumbnails(shown, side, order)
    return thumbnails.pictures(order), thumbnails.note


def positions(
    places: Indices,  # (M,)
    count: int,
) -> Indices:
    """Return (N,) the position of each image among these places; -1 for the others."""
    number = np.full(count, -1)
    number[places] = np.arange(len(places))
    return number


def _neighbors(
    rows: Tensor,  # (N, D)
    queries: Indices,  # (B,) among the rows
    bank: Indices,  # (M,) among the rows
) -> tuple[Indices, NDArray[np.float32]]:
    """Return (B, k) indices of the nearest rows of the bank except the query, -1 for none, and their cosines."""
    own = torch.from_numpy(positions(bank, len(rows))[queries])
    cosines, indices = nearest_neighbors(rows[queries], rows[bank], k=NEIGHBORS, exclude=own)
    return np.append(bank, -1)[indices.numpy()], cosines.numpy()
