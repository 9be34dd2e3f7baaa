"""A view of an image that is another image: one of its nearest neighbors in the data set."""

from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.data._checks import in_float32
from deepclust_ext.data.draws import drawn
from deepclust_ext.data.features import Features
from deepclust_ext.ops import kmeans_assign, kmeans_update, nearest_neighbors
from deepclust_ext.ops._checks import check_integer
from deepclust_ext.ops.nearest_neighbors import MAX_NEIGHBORS
from deepclust_ext.reference.normalize import l2_normalize

_BLOCK = 4096  # queries, or rows to assign, at a time
#: Cells whose rows are searched for the neighbors of the rows of one.
PROBED = 8
_ROUNDS, _ROWS_PER_CELL = 5, 64  # of the k-means on a sample that makes cells


class NeighborView(nn.Module):
    """A view that replaces each image by one of its nearest neighbors in the data set, by cosine, at random.

    :meth:`fit` finds the neighbors once, because frozen features have the same neighbors in every epoch. A call draws
    among them and reads them. Rows of zeros have no direction: no row has them as neighbors, and their own view is the
    row itself. Random numbers come from torch's global generator on the CPU.

    Args:
        num_neighbors: Number of neighbors to draw from, 1 to 256; all are equally likely.
        cells: With 0 the search compares all pairs, N^2 D products. Otherwise spherical k-means on a sample makes this
            many cells, and each row is compared with the rows of the eight nearest cells. For a million rows and a
            thousand cells that takes a hundredth of the products, but misses some neighbors at the edges.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If it is out of range.
    """

    draws_by_image = True
    takes_places = True  # a call needs to know which images of the data set these are

    def __init__(self, num_neighbors: int = 50, *, cells: int = 0) -> None:
        super().__init__()
        self.num_neighbors = check_integer(num_neighbors, "num_neighbors", 1, MAX_NEIGHBORS)
        self.cells = check_integer(cells, "cells", 0)
        self._data: Dataset[Any] | None = None
        self._table = torch.empty(0, dtype=torch.int32, device="cpu")

    def fit(self, data: Dataset[Any]) -> "NeighborView":
        """Find the neighbors of all images of a data set, with their values as rows, and return this view.

        Args:
            data: Map-style, of images of one size; features are searched in their stored type.

        Raises:
            ValueError: If images differ in size.
        """
        self._table = neighbor_table(_all_rows(data), self.num_neighbors, cells=self.cells)
        self._data = data
        return self

    def share(self, other: "NeighborView") -> "NeighborView":
        """Use the neighbors that another view with the same settings has found, and return this view."""
        self._data, self._table = other._data, other._table
        return self

    def forward(
        self,
        images: Tensor,  # (B, C, H, W)
        places: Tensor,  # (B,) int64, of the images in the data set
    ) -> Tensor:
        """Return a neighbor of each image, (B, C, H, W), in its dtype and on its device.

        Raises:
            RuntimeError: If :meth:`fit` has not been called.
        """
        if self._data is None:
            raise RuntimeError("NeighborView: expected fit to be called first, with the data set that images come from")
        own = places.cpu()
        near = self._table[own]
        counts = (near >= 0).sum(dim=1)
        shares = drawn(lambda n: torch.rand(n, dtype=torch.float64, device="cpu"), len(own))
        columns = (shares * counts).long()
        chosen = near.gather(1, columns.clamp(max=near.shape[1] - 1).unsqueeze(1)).squeeze(1).long()
        chosen = torch.where(counts > 0, chosen, own)
        return _images_at(self._data, chosen.tolist()).to(images.device, images.dtype)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return f"{self.num_neighbors}, cells={self.cells}"


def neighbor_table(
    rows: Tensor,  # (N, D)
    num_neighbors: int,
    *,
    cells: int = 0,
    seed: int = 0,
) -> Tensor:
    """Return the indices (N, k) int32 of the nearest other rows of each row by cosine, nearest first, -1 for none.

    Half precision is converted to float32 block by block. A row is never its own neighbor, even among equal rows.

    Args:
        rows: Floating, on the CPU, possibly mapped from a file.
        num_neighbors: k, 1 to 256.
        cells: See :class:`NeighborView`.
        seed: Seed of the sample that makes cells.
    """
    blocks = rows.split(_BLOCK)
    valid = torch.cat([block.bool().any(dim=1) for block in blocks])
    table = torch.full((len(rows), num_neighbors), -1, dtype=torch.int32, device="cpu")
    with tqdm(desc="finding neighbors", total=len(rows), unit="row", leave=False, disable=None) as bar:
        if cells:
            labels, near = _cells(rows, valid, min(cells, len(rows)), seed)
            order = labels.argsort(stable=True)
            members = order.split(labels.bincount(minlength=len(near)).tolist())
            for cell, own in enumerate(members):
                bank = torch.cat([members[other] for other in near[cell].tolist()])
                itself = torch.arange(len(own), device="cpu")
                _, found = nearest_neighbors(rows[own], rows[bank], k=num_neighbors, exclude=itself, valid=valid[bank])
                table[own] = torch.where(found >= 0, bank[found.clamp(min=0)], -1).int()
                bar.update(len(own))
        else:
            start = 0
            for block in blocks:
                own = torch.arange(start, start + len(block), device="cpu")
                _, found = nearest_neighbors(block, rows, k=num_neighbors, exclude=own, valid=valid)
                table[own] = found.int()
                start += len(block)
                bar.update(len(block))
    table[~valid] = -1
    return table


def _cells(
    rows: Tensor,  # (N, D)
    valid: Tensor,  # (N,) bool
    cells: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the cell (N,) of every row, and of every cell itself and those nearest to it, (cells, at most 8)."""
    generator = torch.Generator("cpu").manual_seed(seed)
    known = valid.nonzero().squeeze(1)
    drawn = known[torch.randperm(len(known), generator=generator, device="cpu")[: cells * _ROWS_PER_CELL]]
    sample = l2_normalize(rows[drawn].float(), dim=1)
    centers = sample[:cells]
    for _ in range(_ROUNDS):
        labels, _ = kmeans_assign(sample, centers, metric="cosine")
        sums, counts = kmeans_update(sample, labels, len(centers))
        centers = l2_normalize(torch.where((counts > 0).unsqueeze(1), sums.to(centers.dtype), centers), dim=1)
    found = [kmeans_assign(block.float(), centers, metric="cosine")[0] for block in rows.split(_BLOCK)]
    # The own cell stands first, so that the places of its rows in the bank are those of the queries.
    own = torch.arange(len(centers), device="cpu")
    count = min(PROBED, len(centers)) - 1
    if not count:
        return torch.cat(found), own.unsqueeze(1)
    _, others = nearest_neighbors(centers, centers, k=count, exclude=own)
    return torch.cat(found), torch.cat([own.unsqueeze(1), others], dim=1)


def _all_rows(data: Dataset[Any]) -> Tensor:
    """Return all images of a data set as rows (N, D)."""
    if isinstance(data, Features):
        return data.stored()
    places = list(range(len(cast(Sized, data))))
    blocks = [_images_at(data, places[start : start + _BLOCK]) for start in range(0, len(places), _BLOCK)]
    return torch.cat([in_float32(block).flatten(1).float() for block in blocks])


def _images_at(data: Any, places: Sequence[int]) -> Tensor:
    """Return images (B, C, H, W) of a data set, read at once if it can do that."""
    if hasattr(data, "images_at"):
        images = data.images_at(places)
    else:
        items = [data[place] for place in places]
        images = [item[0] if isinstance(item, tuple | list) else item for item in items]
    if isinstance(images, Tensor):
        return images
    if any(image.shape != images[0].shape for image in images):
        raise ValueError("neighbor view: expected images of one size, got several; load them with a size")
    return torch.stack(list(images))
