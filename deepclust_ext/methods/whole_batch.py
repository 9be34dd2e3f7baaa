"""The batch that several ranks have together, as a step of a method sees it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepclust_ext.distributed import gather_rows, num_ranks, shards_of, sum_over_ranks

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


class WholeBatch:
    """The batch of a step over all ranks; this rank has a part of it, or all of it.

    Gradients and losses of a step are averaged over the ranks. So multiply a mean over this rank's images by
    ``weight``: the average over the ranks is then the mean over all images, however unequal the parts are.

    Args:
        images: This rank's images, one row for each; at least one on every rank.
        gather_distributed: Whether there are other ranks.
        process_group: The ranks; None for all.

    Attributes:
        weight: Number of ranks times this rank's share of the images; 1 on one rank.
        start: Place of this rank's first image in the batch.
        total: Number of all images.
    """

    def __init__(self, images: Tensor, gather_distributed: bool, process_group: "Group") -> None:
        self._group = process_group
        self._shards = None
        self.weight, self.start, self.total = 1.0, 0, len(images)
        if gather_distributed and num_ranks(process_group) > 1:
            self._shards = shards = shards_of(images, process_group)
            self.start, self.total = shards.start, shards.total
            self.weight = shards.weight
            self._own = len(images)

    def count(
        self,
        rows: Tensor,  # (V b, ...) as many rows for each image on every rank
    ) -> int:
        """Return the number of the rows of all ranks."""
        return len(rows) if self._shards is None else len(rows) // self._own * self.total

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all ranks, without gradient."""
        return tensor if self._shards is None else sum_over_ranks(tensor.detach(), self._group)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of the tensors of all ranks, without gradient."""
        return tensor if self._shards is None else self.sum(tensor) / len(self._shards.sizes)

    def rows(
        self,
        rows: Tensor,  # (V b, ...) of V views, one below the other
    ) -> Tensor:
        """Return the rows of all images, (V B, ...), each view in the order of one rank, without gradient."""
        if self._shards is None:
            return rows
        views = rows.split(self._own)
        return torch.cat([gather_rows(view, self._group, with_gradient=False, shards=self._shards) for view in views])

    def part(
        self,
        rows: Tensor,  # (N, ...) the same on all ranks
    ) -> Tensor:
        """Return this rank's part of some rows; the parts of all ranks, in their order, are all rows."""
        if self._shards is None:
            return rows
        ranks, rank = len(self._shards.sizes), self._shards.rank
        return rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks]

    def all_parts(
        self,
        rows: Tensor,  # (n, ...)
    ) -> Tensor:
        """Return all rows (N, ...) from the parts of all ranks, see :meth:`part`, without gradient."""
        return rows if self._shards is None else gather_rows(rows, self._group, with_gradient=False)

    def placed(
        self,
        rows: Tensor,  # (b, ...)
    ) -> Tensor:
        """Return the rows after a zero row for each image before them, so that an op draws for each by its place."""
        return rows if not self.start else pad(rows, (0, 0) * (rows.dim() - 1) + (self.start, 0))

    def own(
        self,
        rows: Tensor,  # (V B, ...) or of :meth:`placed`
        views: int = 1,
    ) -> Tensor:
        """Return the rows of this rank's images, (V b, ...), one view after the other."""
        if self._shards is None:
            return rows
        return torch.cat([view[self.start : self.start + self._own] for view in rows.chunk(views)])
