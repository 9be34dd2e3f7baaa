"""What a recipe may hold, one dataclass per section."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.ops._checks import check_integer
from deepclust_ext.training import KMeansSettings, LearningRate, Phase
from deepclust_ext.training.phases import scaled


@dataclass(frozen=True)
class Data:
    """The images.

    Attributes:
        dataset: Name of the data set.
        protocol: Which part of it is clustered.
        images: Number of images in that part.
        num_clusters: K.
        size: Side in pixels of the images that the network sees.
        channels: Number of channels of the images.
        unlabelled: Number of images without labels that a phase can train on, by the name "unlabelled".

    Raises:
        ValueError: If a number is out of range.
    """

    dataset: str
    protocol: str
    images: int
    num_clusters: int
    size: int
    channels: int = 3
    unlabelled: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "num_clusters", "size", "channels"):
            check_integer(getattr(self, name), f"data.{name}", 1)
        check_integer(self.unlabelled, "data.unlabelled", 0)


@dataclass(frozen=True)
class Backbone:
    """The network; see :func:`deepclust_ext.backbones.load_backbone`.

    Attributes:
        name: Name of a network, such as resnet18, or "module:function".
        stem: Stem of a ResNet, "cifar" or "imagenet"; None to choose it by the image size.
    """

    name: str
    stem: str | None = None


@dataclass(frozen=True)
class Published:
    """Published figures in percent, if there are any."""

    nmi: float | None = None
    acc: float | None = None
    ari: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Recipe:
    """All settings of a run except its seed.

    Attributes:
        method: Name of the method's class.
        data: The images.
        backbone: The network.
        views: One for each view of the method: a name and settings for :func:`deepclust_ext.data.make_view`.
        batch_size: Number of images of a step.
        phases: The phases of the run, in order.
        model: Arguments of the method's constructor, except for the backbone, its width and K.
        test_view: The view for pseudo-labels, clusters and scores; None for unchanged images.
        optimizer: The optimizer; None for the method's default.
        learning_rate: The course of the learning rate.
        kmeans: Settings of k-means for pseudo-labels and final clusters.
        sync_batch_norm: Whether batch normalization uses the images of all ranks; see
            :class:`deepclust_ext.training.TrainConfig`.
        published: Published figures to compare with.
        name: Name of the recipe's file.
    """

    method: str
    data: Data
    backbone: Backbone
    views: tuple[dict[str, Any], ...]
    batch_size: int
    phases: tuple[Phase, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    test_view: dict[str, Any] | None = None
    optimizer: OptimizerSettings | None = None
    learning_rate: LearningRate = field(default_factory=LearningRate)
    kmeans: KMeansSettings = field(default_factory=KMeansSettings)
    sync_batch_norm: bool = True
    published: Published = field(default_factory=Published)
    name: str = ""

    @property
    def title(self) -> str:
        """Name in messages; recipe.yaml in a run's folder has no name of its own."""
        return "the recipe" if self.name in ("", "recipe") else f"the recipe {self.name}"

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def with_epochs(self, epochs: int) -> "Recipe":
        """Return the recipe with another number of epochs, in the same proportions of the phases."""
        return replace(self, phases=scaled(self.phases, epochs))
