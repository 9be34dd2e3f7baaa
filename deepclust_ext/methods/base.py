"""What the trainer asks of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class ClusteringMethod(nn.Module, ABC):
    """A module that :class:`deepclust_ext.train.Trainer` can train.

    Attributes:
        needs_pseudo_labels: Whether ``training_step`` wants k-means labels once the warm-up is over.
    """

    needs_pseudo_labels: bool = False

    @abstractmethod
    def training_step(
        self,
        views: Sequence[Tensor],  # each (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) int64
        num_clusters: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, (), and detached 0-dimensional terms to log."""

    @abstractmethod
    def after_step(self) -> None:
        """Run after every optimiser step."""

    @abstractmethod
    def embed(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the rows (B, D) that are clustered, without gradient, in evaluation mode."""

    @abstractmethod
    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return what is wrong with an epoch's mean terms, or None."""
