"""What the trainer asks of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class ClusteringMethod(nn.Module, ABC):
    """A module that :class:`deepclust_ext.training.Trainer` can train; clusters are k-means on the rows of ``embed``.

    Attributes:
        num_clusters: K, of pseudo-labels and final clusters.
        needs_pseudo_labels: Whether ``training_step`` wants k-means labels once the warm-up is over.
    """

    num_clusters: int
    needs_pseudo_labels: bool = False

    @abstractmethod
    def training_step(
        self,
        views: Sequence[Tensor],  # each (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) int64
        index: Tensor | None = None,  # (B,) int64, which images of the data set these are
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, (), and detached 0-dimensional terms to log."""

    def after_step(self) -> None:
        """Run after every optimiser step."""

    @abstractmethod
    def embed(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return a unit row (B, D) for every image, without gradient, in evaluation mode."""

    @abstractmethod
    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return what is wrong with an epoch's mean terms, or None."""


class ClusterHeadMethod(ClusteringMethod):
    """A method that learns the clusters themselves: they are the largest entries of ``assign``."""

    @abstractmethod
    def assign(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the share (B, K) of every cluster in every image, without gradient, in evaluation mode."""
