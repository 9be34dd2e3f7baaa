"""The phases of a run: for how long, on which data, with which terms and which pseudo-labels to train."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from deepclust_ext.methods.base import ClusteringMethod
from deepclust_ext.ops._checks import check_integer, check_type

#: The data set that is clustered: pseudo-labels and final clusters are of its images.
MAIN = "images"


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: Name for messages and checkpoints.
        epochs: Number of epochs; 0 leaves the phase out.
        passes: What an epoch goes through, in this order: for the name of each data set the method's terms on it, None
            for the method's first. The data set that is clustered is called "images".
        pseudo_labels: When k-means labels the images: "never", "once" (before the first epoch of the phase), or a
            number n for before the first epoch and every n epochs.
        resample: Whether an epoch draws its images with replacement, each with the weight 1 / (size of its cluster), so
            that all clusters are seen equally often. The number of images stays the same.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range.
    """

    name: str
    epochs: int
    passes: Mapping[str, str | None] = field(default_factory=lambda: {MAIN: None})
    pseudo_labels: str | int = "never"
    resample: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(check_type(self.name, "phase, name", str, "text")))
        where = f"phase {self.name}"
        object.__setattr__(self, "epochs", check_integer(self.epochs, f"{where}, epochs", 0))
        check_type(self.resample, f"{where}, resample", bool, "True or False")
        expected = "a mapping from data sets to terms"
        for data, terms in check_type(self.passes, f"{where}, passes", Mapping, expected).items():
            check_type(data, f"{where}, passes", str, "names of data sets")
            if terms is not None:
                check_type(terms, f"{where}, passes.{data}", str, "the name of terms or None")
        if not self.passes:
            raise ValueError(f"{where}, passes: expected at least one data set, got none")
        labels = self.pseudo_labels
        if isinstance(labels, int | np.integer) and not isinstance(labels, bool) and labels >= 1:
            object.__setattr__(self, "pseudo_labels", int(labels))
        elif not (isinstance(labels, str) and labels in ("never", "once")):
            raise ValueError(f"{where}, pseudo_labels: expected 'never', 'once' or a number of epochs, got {labels!r}")
        if self.resample and labels == "never":
            raise ValueError(f"{where}, resample: expected pseudo-labels to draw by, got pseudo_labels 'never'")

    def labels_before(self, epoch: int) -> bool:
        """Return whether to make pseudo-labels before an epoch of the phase, counted from 0."""
        if isinstance(self.pseudo_labels, int):
            return epoch % self.pseudo_labels == 0
        return self.pseudo_labels == "once" and epoch == 0

    def check(self, method: ClusteringMethod, sizes: Mapping[str, int], batch_size: int, where: str) -> None:
        """Require that a method and data sets of these sizes can go through the phase; ValueError otherwise.

        Args:
            method: The method.
            sizes: The number of images of each data set.
            batch_size: Images of a step.
            where: What messages call the phase.
        """
        for data, terms in self.passes.items():
            if data not in sizes:
                raise ValueError(f"{where}.passes: expected data sets among {', '.join(sizes)}, got {data!r}")
            if terms is not None and terms not in method.terms:
                raise ValueError(
                    f"{where}.passes: expected terms among {', '.join(method.terms)} of {data}, got {terms!r}"
                )
            labeled = (terms or method.terms[0]) in method.labelled_terms
            if labeled and data != MAIN:
                raise ValueError(
                    f"{where}.passes: expected terms without pseudo-labels, which only {MAIN!r} has, of {data}"
                )
            if labeled and self.pseudo_labels == "never":
                raise ValueError(
                    f"{where}.pseudo_labels: expected 'once' or a number of epochs for terms "
                    f"{terms or method.terms[0]!r}, got 'never'"
                )
            if not 2 <= batch_size <= sizes[data]:
                raise ValueError(
                    f"batch_size: expected 2 to {sizes[data]}, the size of the data set {data}, got {batch_size}"
                )


def describe_phase(phase: Phase, method: ClusteringMethod) -> dict[str, Any]:
    """Return what a checkpoint holds of a phase."""
    # Passes in their order, which a mapping would lose.
    passes = [f"{data}: {terms or method.terms[0]}" for data, terms in phase.passes.items()]
    return {**asdict(phase), "passes": passes}


def locate(phases: Sequence[Phase], epoch: int) -> tuple[int, int]:
    """Return the phase, and the epoch within it, of an epoch of the run; all counted from 0."""
    for index, phase in enumerate(phases):
        if epoch < phase.epochs:
            return index, epoch
        epoch -= phase.epochs
    raise IndexError(f"epoch: expected one of the phases', got {epoch} beyond")


def scaled(phases: Sequence[Phase], epochs: int) -> tuple[Phase, ...]:
    """Return the phases of a run of ``epochs`` epochs in the same proportions; the last takes the rounding.

    Raises:
        ValueError: If the phases have no epoch to share by.
    """
    total = sum(phase.epochs for phase in phases)
    if not total:
        raise ValueError("phases: expected at least one epoch, got 0")
    ends = [epochs * sum(phase.epochs for phase in phases[: i + 1]) // total for i in range(len(phases))]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return tuple(replace(phase, epochs=length) for phase, length in zip(phases, lengths, strict=True))
