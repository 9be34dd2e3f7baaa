"""What a recipe may hold, one dataclass per section."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.training import KMeansSettings, LearningRate, Phase
from deepclust_ext.training.phases import scaled


@dataclass(frozen=True)
class Data:
    """The images.

    Attributes:
        dataset: Name of the data set.
        protocol: Which part of it is clustered.
        images: How many these are.
        num_clusters: K.
        size: Side in pixels of what the network sees.
        channels: Of the images.
        unlabelled: How many images without labels a phase can pass through, by the name "unlabelled".
    """

    dataset: str
    protocol: str
    images: int
    num_clusters: int
    size: int
    channels: int = 3
    unlabelled: int = 0


@dataclass(frozen=True)
class Backbone:
    """The network; see :func:`deepclust_ext.backbones.load_backbone`.

    Attributes:
        name: Such as resnet18, or "module:function".
        stem: Of a ResNet, "cifar" or "imagenet"; None for the one of the image size.
    """

    name: str
    stem: str | None = None


@dataclass(frozen=True)
class Published:
    """Figures of a paper in percent, where there are any, and which."""

    nmi: float | None = None
    acc: float | None = None
    ari: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Recipe:
    """All that decides a run but its seed.

    Attributes:
        method: Name of the method's class.
        data: The images.
        backbone: The network.
        views: One for each view of the method: a name and settings for :func:`deepclust_ext.data.make_view`.
        batch_size: Images of a step.
        phases: What happens, in order.
        model: Arguments of the method's constructor but for the backbone, its width and K.
        test_view: For pseudo-labels, clusters and scores, as a view; None for the images as they are.
        optimizer: None for the method's default.
        learning_rate: Its course.
        kmeans: Of pseudo-labels and final clusters.
        sync_batch_norm: Whether batch normalization goes by the images of all ranks; see
            :class:`deepclust_ext.training.TrainConfig`.
        published: Figures to compare with.
        name: That of the file.
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
        """What messages call it; that of a run's folder, recipe.yaml, has no name of its own."""
        return "the recipe" if self.name in ("", "recipe") else f"the recipe {self.name}"

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def with_epochs(self, epochs: int) -> "Recipe":
        """Return the recipe of a run of so many epochs, which the phases share as before."""
        return replace(self, phases=scaled(self.phases, epochs))
