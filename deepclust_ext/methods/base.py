"""What the trainer asks of a method."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from deepclust_ext.backbones.modes import evaluation
from deepclust_ext.distributed import check_ranks
from deepclust_ext.methods.whole_batch import WholeBatch
from deepclust_ext.ops._checks import check_integer, check_labels, check_non_negative, check_share

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

#: Arguments of a method's constructor that say where it trains and not what: no recipe and no checkpoint has them.
SURROUNDINGS = ("gather_distributed", "process_group")


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its numbers, as a recipe has them.

    Attributes:
        name: "sgd" or "adam".
        lr: Peak learning rate, for batches of ``lr_batch_size`` images.
        lr_batch_size: The batch size that ``lr`` is for; the rate is proportional to the batch size. None for the same
            rate at every batch size.
        momentum: Momentum of SGD; 0 for Adam.
        weight_decay: Weight decay of every parameter, including biases and batch normalization.

    Raises:
        TypeError: If a value is no number.
        ValueError: If the name is unknown, a value is out of range, or "adam" is given a momentum.
    """

    name: str = "adam"
    lr: float = 1e-3
    lr_batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adam"):
            raise ValueError(f"optimizer.name: expected 'sgd' or 'adam', got {self.name!r}")
        for name, check in (
            ("lr", check_non_negative),
            ("momentum", check_share),
            ("weight_decay", check_non_negative),
        ):
            object.__setattr__(self, name, check(getattr(self, name), f"optimizer.{name}"))
        if self.lr_batch_size is not None:
            object.__setattr__(self, "lr_batch_size", check_integer(self.lr_batch_size, "optimizer.lr_batch_size", 1))
        if self.name == "adam" and self.momentum:
            raise ValueError(f"optimizer.momentum: expected none for 'adam', got {self.momentum}")

    def rate(self, batch_size: int) -> float:
        """Return the peak learning rate for batches of ``batch_size`` images."""
        return self.lr if self.lr_batch_size is None else self.lr * batch_size / self.lr_batch_size


class ClusteringMethod(nn.Module, ABC):
    """A module that :class:`deepclust_ext.training.Trainer` can train; k-means on the rows of ``embed`` gives clusters.

    A method stores every argument of its constructor except ``backbone`` as an attribute of the same name. Checkpoints
    record these, except ``gather_distributed`` and ``process_group``, which :meth:`set_ranks` stores.

    Attributes:
        num_views: How many views of an image ``training_step`` takes.
        terms: Names of the losses that a phase of a run may ask for; the first is the whole loss.
        labelled_terms: Those of ``terms`` that need pseudo-labels.
        matches_labels: Whether pseudo-labels are renumbered to match the clusters of the method's own head, over all
            images at once.
        default_optimizer: The paper's optimizer, or this package's if that is not known.
        uses_progress: Whether ``after_step`` depends on the progress of the run. If not, a run can be resumed for more
            epochs.
        axes: Which statistics of ``training_step`` share an axis in a figure, by what the axis shows. Every statistic
            belongs to one axis.
        num_clusters: K, the number of pseudo-labels and of final clusters.
        gather_distributed: Whether a batch is that of all ranks together.
        process_group: The ranks; None for all.
    """

    num_views: ClassVar[int]
    terms: ClassVar[tuple[str, ...]] = ("all",)
    labelled_terms: ClassVar[frozenset[str]] = frozenset()
    matches_labels: ClassVar[bool] = False
    default_optimizer: ClassVar[OptimizerSettings]
    uses_progress: bool = True
    axes: ClassVar[Mapping[str, tuple[str, ...]]]
    num_clusters: int
    gather_distributed: bool = False
    process_group: "Group" = None

    def set_ranks(self, gather_distributed: bool, process_group: "Group") -> dict[str, Any]:
        """Store which ranks share a batch, and return it as arguments for losses."""
        self.gather_distributed = check_ranks(gather_distributed, process_group)
        self.process_group = process_group
        return {"gather_distributed": gather_distributed, "process_group": process_group}

    def whole_batch(
        self,
        images: Tensor,  # (b, ...) at hand
    ) -> WholeBatch:
        """Return the batch of a step over all ranks."""
        return WholeBatch(images, self.gather_distributed, self.process_group)

    @abstractmethod
    def training_step(
        self,
        views: Sequence[Tensor],  # each (B, C, H, W)
        pseudo_labels: Tensor | None = None,  # (B,) int64
        index: Tensor | None = None,  # (B,) int64, which images of the data set these are
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimize, (), and detached 0-dimensional terms to log.

        Args:
            views: Views of the same images.
            pseudo_labels: Clusters of the images, for the terms that need them.
            index: Which images of the data set these are.
            terms: One of the class's ``terms``; None for the first.
            epoch: Passes over the data before this step, fractional.
        """

    def chosen_terms(self, terms: str | None, pseudo_labels: Tensor | None, views: Sequence[Tensor]) -> str:
        """Return the terms of a step, the first where None is given.

        Raises:
            TypeError: If they need pseudo-labels and those are no integers.
            ValueError: If the terms are unknown, or need pseudo-labels and there is not one for each image.
        """
        terms = self.terms[0] if terms is None else terms
        if terms not in self.terms:
            raise ValueError(f"terms: expected one of {', '.join(self.terms)}, got {terms!r}")
        if terms not in self.labelled_terms:
            return terms
        if pseudo_labels is None:
            raise ValueError(f"pseudo_labels: expected a label for each image, which terms {terms!r} need, got None")
        check_labels(pseudo_labels, "pseudo_labels")
        if pseudo_labels.shape != views[0].shape[:1]:
            got = tuple(pseudo_labels.shape)
            raise ValueError(f"pseudo_labels: expected shape ({len(views[0])},), one for each image, got {got}")
        return terms

    def check_data(self, sizes: Mapping[str, int]) -> None:
        """Require that the method can learn from data sets of these sizes, by name; "images" is the one to cluster.

        Raises:
            ValueError: If it cannot.
        """
        if not 1 <= self.num_clusters <= sizes["images"]:
            raise ValueError(
                f"num_clusters: expected 1 to {sizes['images']}, the number of images, got {self.num_clusters}"
            )

    def after_step(self, progress: float = 0.0) -> None:
        """Run after every step of the optimizer; ``progress`` is the share of the run's steps before this one."""

    @abstractmethod
    def inference_network(self) -> nn.Module:
        """Return the parts of this method that make rows and clusters, as one module that shares their weights.

        It maps images (B, C, H, W) to a tuple of unit rows (B, D) and, if the method has a cluster head, the shares (B,
        K) of the clusters. Because it is exported, it may call only torch's own operators.
        """

    def outputs(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> tuple[Tensor, ...]:
        """Return the inference network's outputs, without gradient, in evaluation mode."""
        network = self.inference_network()
        with evaluation(network):
            results: tuple[Tensor, ...] = network(images)
            return results

    def embed(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return a unit row (B, D) for every image, without gradient, in evaluation mode."""
        return self.outputs(images)[0]

    @abstractmethod
    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Return what is wrong with an epoch's mean terms, or None."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameters to train, in groups with their learning rates; that of most parameters is ``lr``."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad], "lr": lr}]

    def make_optimizer(self, batch_size: int, settings: OptimizerSettings | None = None) -> Optimizer:
        """Return an optimizer of the parameters to train.

        Args:
            batch_size: Images of a step.
            settings: None for ``default_optimizer``.
        """
        settings = self.default_optimizer if settings is None else settings
        groups = self.parameter_groups(settings.rate(batch_size))
        if settings.name == "sgd":
            return SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
        return Adam(groups, weight_decay=settings.weight_decay)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the method's constructor, except for the backbone and the ranks."""
        others = ("self", "backbone", *SURROUNDINGS)
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in others]
        return {name: getattr(self, name) for name in names}


class ClusterHeadMethod(ClusteringMethod):
    """A method that learns the clusters themselves: an image's cluster is its largest share in ``assign``."""

    def assign(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the share (B, K) of every cluster in every image, without gradient, in evaluation mode."""
        return self.outputs(images)[1]
