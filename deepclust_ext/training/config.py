"""The settings of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepclust_ext.cluster import KMeans
from deepclust_ext.methods.base import OptimizerSettings
from deepclust_ext.ops._checks import check_integer, check_non_negative, check_seed, check_type
from deepclust_ext.training.phases import Phase
from deepclust_ext.training.schedule import LearningRate

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class KMeansSettings:
    """Settings of the spherical k-means that gives pseudo-labels and, without a cluster head, the final clusters.

    Attributes:
        n_init: Number of starts for pseudo-labels; the best is kept. The authors of HaDis take 10.
        final_n_init: Number of starts for the final clusters.
        max_iter: Largest number of iterations of a start.
        tol: When a start ends, see :class:`deepclust_ext.cluster.KMeans`.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value is out of range.
    """

    n_init: int = 10
    final_n_init: int = 20
    max_iter: int = 300
    tol: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("n_init", "final_n_init", "max_iter"):
            object.__setattr__(self, name, check_integer(getattr(self, name), f"kmeans.{name}", 1))
        object.__setattr__(self, "tol", check_non_negative(self.tol, "kmeans.tol"))

    def spherical(
        self, num_clusters: int, seed: int, *, n_init: int | None = None, process_group: "Group" = None
    ) -> KMeans:
        """Return spherical k-means of these settings, with the starts for final clusters unless told otherwise."""
        return KMeans(
            num_clusters,
            metric="cosine",
            n_init=self.final_n_init if n_init is None else n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=seed,
            process_group=process_group,
        )


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; its checkpoints hold them, and a resumed run must have the same.

    Attributes:
        phases: What happens, in order.
        batch_size: Images of a step. Images that do not fill a last batch are left out of the epoch, so that batch
            normalization never sees a batch of one image. The order is new in every epoch, so no image is always out.
        learning_rate: The course of the learning rate over the run.
        optimizer: The optimizer; None for the method's default.
        kmeans: Settings of k-means for pseudo-labels and final clusters.
        seed: Seed of torch, numpy, python, the order of the images and k-means; below 2^32, as numpy requires.
        num_workers: Processes that load images, each two batches ahead. This setting alone does not change the result,
            unless the data set draws random numbers itself.
        precision: "fp32", or "bf16" for training steps under torch's autocast to bfloat16; weights stay in float32.
        compile: Whether torch.compile compiles the training step.
        sync_batch_norm: Whether batch normalization uses the images of all ranks. Otherwise each rank uses its own, and
            the result depends on the number of ranks.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a number is out of range. What the data and the method decide, the trainer checks.
    """

    phases: Sequence[Phase]
    batch_size: int = 256
    learning_rate: LearningRate = field(default_factory=LearningRate)
    optimizer: OptimizerSettings | None = None
    kmeans: KMeansSettings = field(default_factory=KMeansSettings)
    seed: int = 0
    num_workers: int = 0
    precision: str = "fp32"
    compile: bool = False
    sync_batch_norm: bool = True

    def __post_init__(self) -> None:
        for place, phase in enumerate(check_type(self.phases, "phases", Sequence, "a sequence of Phase")):
            check_type(phase, f"phases.{place}", Phase, "a Phase")
        check_type(self.learning_rate, "learning_rate", LearningRate, "a LearningRate")
        if self.optimizer is not None:
            check_type(self.optimizer, "optimizer", OptimizerSettings, "OptimizerSettings or None")
        check_type(self.kmeans, "kmeans", KMeansSettings, "KMeansSettings")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("compile", "sync_batch_norm"):
            check_type(getattr(self, name), name, bool, "True or False")
        for name, low in (("batch_size", 2), ("num_workers", 0)):
            object.__setattr__(self, name, check_integer(getattr(self, name), name, low))
        object.__setattr__(self, "seed", check_seed(self.seed))

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)
