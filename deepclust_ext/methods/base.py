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
from deepclust_ext.ops._checks import check_integer, check_non_negative, check_share

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

#: Arguments of a method's constructor that say where it trains and not what: no recipe and no checkpoint has them.
SURROUNDINGS = ("gather_distributed", "process_group")


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its numbers, as a recipe has them.

    Attributes:
        name: "sgd" or "adam".
        lr: Learning rate at its peak, for batches of ``lr_batch_size`` images.
        lr_batch_size: The rate is proportional to the batch size, and ``lr`` belongs to this one; None for a rate that
            is the same for every batch size.
        momentum: Of SGD.
        weight_decay: Of every parameter, biases and batch normalization included.

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
            raise ValueError(f"optimizer: expected 'sgd' or 'adam', got {self.name!r}")
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
    """A module that :class:`deepclust_ext.training.Trainer` can train; clusters are k-means on the rows of ``embed``.

    A method keeps every argument of its constructor but ``backbone`` as an attribute of the same name: checkpoints
    record them, but for ``gather_distributed`` and ``process_group``, which :meth:`set_ranks` keeps.

    Attributes:
        num_views: How many views of an image ``training_step`` takes.
        terms: The losses that a phase of a run may ask for, by name; the first is the whole loss.
        labelled_terms: Those of ``terms`` that need pseudo-labels.
        matches_labels: Whether pseudo-labels get the numbers of those clusters of the head that they fit best, over all
            images at once.
        default_optimizer: The paper's, or where that is not known, this package's.
        uses_progress: Whether ``after_step`` goes by the share of the run; a run of a method that does not can be
            resumed for more epochs.
        axes: The statistics of ``training_step`` that may share an axis in a figure, by what the axis shows. Every
            statistic has its place in one of them.
        num_clusters: K, of pseudo-labels and final clusters.
        gather_distributed: Whether a batch is that of all ranks together.
        process_group: Which ranks; None for all.
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
        """Keep which ranks have a batch together, and return it as arguments of losses."""
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
            epoch: Passes over the data behind this step, fractional.
        """

    def chosen_terms(self, terms: str | None, pseudo_labels: Tensor | None) -> str:
        """Return the terms of a step, the first where None is given.

        Raises:
            ValueError: If they are unknown, or need pseudo-labels and there are none.
        """
        terms = self.terms[0] if terms is None else terms
        if terms not in self.terms:
            raise ValueError(f"terms: expected one of {', '.join(self.terms)}, got {terms!r}")
        if terms in self.labelled_terms and pseudo_labels is None:
            raise ValueError(f"pseudo_labels: expected a label for each image, which terms {terms!r} need, got None")
        return terms

    def check_data(self, sizes: Mapping[str, int]) -> None:
        """Require that the method can learn from data sets of so many images, by name; "images" is to be clustered.

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
        """Return the parts of this method that rows and clusters come from, as one module that shares their weights.

        It maps images (B, C, H, W) to a tuple of unit rows (B, D) and, where the method has a cluster head, the shares
        (B, K) of every cluster. It is what is exported, so torch's own operators are all that it calls.
        """

    def outputs(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> tuple[Tensor, ...]:
        """Return what the inference network gives, without gradient, in evaluation mode."""
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
        """Return what learns, with the learning rate of each group where the rate of most is ``lr``."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad], "lr": lr}]

    def make_optimizer(self, batch_size: int, settings: OptimizerSettings | None = None) -> Optimizer:
        """Return an optimizer of what learns.

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
        """Return what the method was built with: every argument of its constructor but the backbone and the ranks."""
        others = ("self", "backbone", *SURROUNDINGS)
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in others]
        return {name: getattr(self, name) for name in names}


class ClusterHeadMethod(ClusteringMethod):
    """A method that learns the clusters themselves: they are the largest entries of ``assign``."""

    def assign(
        self,
        images: Tensor,  # (B, C, H, W)
    ) -> Tensor:
        """Return the share (B, K) of every cluster in every image, without gradient, in evaluation mode."""
        return self.outputs(images)[1]
