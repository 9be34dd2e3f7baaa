"""One trainer for every method: phases, schedule, pseudo-labels, history, checkpoints that resume exactly."""

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.cluster import KMeans
from deepclust_ext.inference import Images, assign, batches, device_of, embed
from deepclust_ext.inference.loop import View
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod, OptimizerSettings
from deepclust_ext.training.checkpoint import (
    FORMAT,
    Setting,
    check_settings,
    fingerprint,
    flatten,
    load_checkpoint,
    not_finite,
    random_state,
    restore_random_state,
    save_atomically,
    seed_everything,
    versions,
)
from deepclust_ext.training.phases import MAIN, Phase, locate
from deepclust_ext.training.schedule import LearningRate
from deepclust_ext.training.tally import Step, Tally

CHECKPOINT_NAME = "checkpoint.pt"
HISTORY_NAME = "history.jsonl"
#: Names under which torch's profiler shows the stages of an epoch.
STAGES = ("data", "augment", "forward", "loss", "backward", "optimizer", "k-means")


@dataclass(frozen=True)
class KMeansSettings:
    """Of the spherical k-means that gives pseudo-labels and, without a cluster head, the final clusters.

    Attributes:
        n_init: Starts for pseudo-labels, of which the best counts. The authors of HaDis have 10.
        final_n_init: Starts for the final clusters.
        max_iter: Iterations of a start at most.
        tol: When a start ends, see :class:`deepclust_ext.cluster.KMeans`.

    Raises:
        ValueError: If a value is out of range.
    """

    n_init: int = 10
    final_n_init: int = 20
    max_iter: int = 300
    tol: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("n_init", "final_n_init", "max_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"kmeans.{name}: expected at least 1, got {getattr(self, name)}")
        if not self.tol >= 0:
            raise ValueError(f"kmeans.tol: expected a number of at least 0, got {self.tol}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; its checkpoints hold them, and a resumed run must have the same.

    Attributes:
        phases: What happens, in order.
        batch_size: Images of a step. What does not fill a batch is left out of the epoch, so that batch normalisation
            never sees a batch of one image; the order is new in every epoch, so no image stays out.
        learning_rate: Its course over the run.
        optimizer: None for the method's default.
        kmeans: Of pseudo-labels and final clusters.
        seed: Of torch, numpy, python, the order of the images and k-means.
        num_workers: Processes that load images; the one setting that changes nothing in the result.
    """

    phases: Sequence[Phase]
    batch_size: int = 256
    learning_rate: LearningRate = field(default_factory=LearningRate)
    optimizer: OptimizerSettings | None = None
    kmeans: KMeansSettings = field(default_factory=KMeansSettings)
    seed: int = 0
    num_workers: int = 0

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)


class _Batch(NamedTuple):
    data: str
    terms: str | None
    images: Tensor  # (B, C, H, W), on the CPU
    places: Tensor  # (B,), of the images in the data set, on the CPU


class Trainer:
    """Train a method on the images of a data set; labels that the data set also returns are dropped unseen.

    Args:
        method: What to train. It stays on its device, and batches are moved there.
        data: Map-style, of images (C, H, W) or of tuples that begin with one; or several of these by name, where
            "images" is the one to cluster and the phases say how the others are used.
        views: One per view of the method, each from a batch (B, C, H, W) to a batch.
        config: Settings.
        out: Folder for checkpoint and history; made if missing.
        test_view: From a batch to a batch, for pseudo-labels and clusters; None for the images as they are.
        recipe: Where the settings come from, to be kept in the checkpoints and compared like them.

    Attributes:
        optimizer: The method's; its learning rates are the peak of the schedule until the first step.
        history: One record of mean terms per epoch. A term has its mean over the steps that log it.

    Raises:
        TypeError: If a data set is not map-style, or its first item is no image.
        ValueError: If phases, batch size, views or clusters do not fit the method or the data.
    """

    def __init__(
        self,
        method: ClusteringMethod,
        data: Dataset[Any] | Mapping[str, Dataset[Any]],
        views: Sequence[View],
        config: TrainConfig,
        out: Path,
        *,
        test_view: View | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.data = dict(data) if isinstance(data, Mapping) else {MAIN: data}
        self.views = views
        self.config = config
        self.out = Path(out)
        self.test_view = test_view
        self.recipe = recipe or {}
        self.history: list[dict[str, float]] = []
        self._images = {name: Images(source) for name, source in self.data.items()}
        for name, images in self._images.items():
            if len(images) < 2:
                raise ValueError(f"data {name}: expected at least 2 images, got {len(images)}")
        self._fingerprints = {name: fingerprint(source) for name, source in self.data.items()}
        self._pseudo_labels: Tensor | None = None  # (N,) int64, on the CPU
        self._warned = False
        if MAIN not in self.data:
            raise ValueError(f"data: expected a data set named {MAIN!r}, got {', '.join(self.data) or 'none'}")
        if len(views) != method.num_views:
            raise ValueError(f"views: expected {method.num_views} for {type(method).__name__}, got {len(views)}")
        if config.epochs < 1:
            raise ValueError(f"phases: expected at least one epoch, got {config.epochs}")
        sizes = {name: len(images) for name, images in self._images.items()}
        # Before the first epoch, for the final clusters come after the last.
        if not 1 <= method.num_clusters <= sizes[MAIN]:
            raise ValueError(
                f"num_clusters: expected 1 to {sizes[MAIN]}, the number of images, got {method.num_clusters}"
            )
        for phase in config.phases:
            phase.check(method, sizes, config.batch_size)
        self.optimizer = method.make_optimizer(config.batch_size, config.optimizer)
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._total_steps = sum(phase.epochs * self.steps_per_epoch(phase) for phase in config.phases)

    def fit(self, *, resume: bool = False, other_versions: bool = False) -> list[dict[str, float]]:
        """Train to the last epoch and return the history.

        A resumed run continues after the last whole epoch exactly as if it had never stopped.

        Args:
            resume: Continue from the checkpoint in ``out``.
            other_versions: Continue even where the checkpoint is of another version of this package, torch or numpy;
                the result may then differ from that of a run that never stopped.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from.
            ValueError: If the checkpoint cannot be read, or was written with other settings, data or versions.
            FloatingPointError: If a loss or a weight is not finite; the checkpoint is that of the epoch before.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._load(other_versions)
        else:
            self.history = []
            self._pseudo_labels = None
            seed_everything(self.config.seed)
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        (self.out / HISTORY_NAME).write_text(lines, encoding="utf-8")
        epochs = range(len(self.history), self.config.epochs)
        # disable=None: a bar on a terminal, nothing in a log file.
        with tqdm(epochs, initial=epochs.start, total=self.config.epochs, unit="epoch", disable=None) as bar:
            for epoch in bar:
                record = self._train_epoch(epoch)
                self.history.append(record)
                self._warn_of_collapse(record)
                self._save(epoch)
                with (self.out / HISTORY_NAME).open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
                bar.set_postfix({name: f"{record[name]:.3g}" for name in record if name not in ("epoch", "lr")})
        return self.history

    def embed(self) -> Tensor:
        """Return the method's rows for all images in their order, (N, D), on the method's device."""
        return embed(self.method, self.data[MAIN], **self._inference())

    def cluster(self) -> Tensor:
        """Return final labels (N,) int64 on the CPU: the cluster head's, or without one those of :meth:`kmeans`."""
        if isinstance(self.method, ClusterHeadMethod):
            return assign(self.method, self.data[MAIN], **self._inference()).argmax(dim=1).cpu()
        return self.kmeans()

    def kmeans(self, n_init: int | None = None, seed: int | None = None) -> Tensor:
        """Return labels (N,) int64 on the CPU of spherical k-means on the method's rows.

        Args:
            n_init: Starts, of which the best counts; None for the settings' number for final clusters.
            seed: None for the run's.
        """
        settings = self.config.kmeans
        kmeans = KMeans(
            self.method.num_clusters,
            metric="cosine",
            n_init=settings.final_n_init if n_init is None else n_init,
            max_iter=settings.max_iter,
            tol=settings.tol,
            random_state=self.config.seed if seed is None else seed,
        )
        return kmeans.fit_predict(self.embed()).cpu()

    def steps_per_epoch(self, phase: Phase) -> int:
        """Return the steps that an epoch of a phase has, over all its data sets."""
        return sum(len(self._images[name]) // self.config.batch_size for name in phase.passes)

    def settings(self) -> dict[str, Setting]:
        """Return all that decides the run but the versions, by dotted names."""
        config, method = self.config, self.method
        phases = [
            {
                "name": phase.name,
                "epochs": phase.epochs,
                # In their order, which a mapping would lose.
                "passes": [f"{data}: {terms or method.terms[0]}" for data, terms in phase.passes.items()],
                "pseudo_labels": phase.pseudo_labels,
                "resample": phase.resample,
            }
            for phase in config.phases
        ]
        weights = list(method.parameters())
        return {
            "method": type(method).__name__,
            **flatten(method.arguments(), "method"),
            "weights": f"{sum(weight.numel() for weight in weights)} numbers in {len(weights)} tensors",
            "epochs": config.epochs,
            **flatten(phases, "phases"),
            "batch_size": config.batch_size,
            **flatten(config.learning_rate, "learning_rate"),
            **flatten(config.optimizer or method.default_optimizer, "optimizer"),
            **flatten(config.kmeans, "kmeans"),
            "seed": config.seed,
            **flatten(list(self.views), "views"),
            **flatten(self.test_view, "test_view"),
            **flatten(self._fingerprints, "data"),
            **flatten(self.recipe, "recipe"),
        }

    def _inference(self) -> dict[str, Any]:
        return {"test_view": self.test_view, "num_workers": self.config.num_workers}

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        start = time.perf_counter()
        index, epoch_in_phase = locate(self.config.phases, epoch)
        phase = self.config.phases[index]
        before = sum(other.epochs * self.steps_per_epoch(other) for other in self.config.phases[:index])
        steps = self.steps_per_epoch(phase)
        first_step = before + epoch_in_phase * steps
        with record_function("k-means"):
            self._label(phase, epoch_in_phase, epoch)
        self.method.train()
        tally = Tally()
        batches = self._batches(phase, epoch)
        for step in range(steps):
            with record_function("data"):
                batch = next(batches)
            loss_terms = self._step(batch, epoch + step / steps, (first_step + step) / self._total_steps)
            tally.add(Step(first_step + step, epoch + 1, phase.name, batch.data, loss_terms, batch.places))
        means = tally.means()  # the only wait for the device in an epoch of fewer steps than between two looks
        bad = not_finite(self.method.state_dict())
        if bad:
            raise FloatingPointError(f"after {tally.last}: every loss was finite, and not finite is {', '.join(bad)}")
        rates = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        return rates | means | {"seconds": time.perf_counter() - start}

    def _step(self, batch: _Batch, epoch: float, progress: float) -> dict[str, Tensor]:
        """Make one step and return its loss and terms, detached."""
        device = device_of(self.method)
        with record_function("data"):
            images = batch.images.to(device, non_blocking=True)
            all_labels = self._pseudo_labels if batch.data == MAIN else None
            labels = None if all_labels is None else all_labels[batch.places].to(device, non_blocking=True)
        with record_function("augment"):
            views = [view(images) for view in self.views]
        loss, terms = self.method.training_step(views, labels, batch.places, terms=batch.terms, epoch=epoch)
        with record_function("backward"):
            self.optimizer.zero_grad()
            loss.backward()
        with record_function("optimizer"):
            self._set_rates(epoch)
            self.optimizer.step()
            self.method.after_step(progress)
        return {"loss": loss.detach()} | terms

    def _label(self, phase: Phase, epoch_in_phase: int, epoch: int) -> None:
        if phase.pseudo_labels == "never":
            self._pseudo_labels = None
        elif phase.labels_before(epoch_in_phase):
            # Fresh starts every time: starting from the last centers is quicker but keeps their early mistakes.
            self._pseudo_labels = self.kmeans(self.config.kmeans.n_init, self._epoch_seed(epoch))

    def _epoch_seed(self, epoch: int) -> int:
        return self.config.seed * 1000 + epoch

    def _batches(self, phase: Phase, epoch: int) -> Iterator[_Batch]:
        """Yield the batches of an epoch, one data set after the other."""
        generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
        size = self.config.batch_size
        for name, terms in phase.passes.items():
            images = self._images[name]
            steps = len(images) // size
            if phase.resample and name == MAIN and self._pseudo_labels is not None:
                order = balanced(self._pseudo_labels, steps * size, generator)
            else:
                order = torch.randperm(len(images), generator=generator)
            places = order[: steps * size].view(steps, size).tolist()
            for stacked, index in batches(images, batch_sampler=places, num_workers=self.config.num_workers):
                yield _Batch(name, terms, stacked, index)

    def _set_rates(self, epoch: float) -> None:
        factor = self.config.learning_rate.factor(epoch, self.config.epochs)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor

    def _warn_of_collapse(self, record: dict[str, float]) -> None:
        message = None if self._warned else self.method.collapse_warning(record)
        if message is not None:
            self._warned = True
            warnings.warn(f"epoch {record['epoch']}: {message}", RuntimeWarning, stacklevel=3)

    def _save(self, epoch: int) -> None:
        index, epoch_in_phase = locate(self.config.phases, epoch)
        state = {
            "format": FORMAT,
            "settings": self.settings(),
            "versions": versions(),
            "phase": {"name": self.config.phases[index].name, "index": index, "epochs": epoch_in_phase + 1},
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pseudo_labels": self._pseudo_labels,
            "history": self.history,
            "random": random_state(),
        }
        save_atomically(state, self.out / CHECKPOINT_NAME)

    def _load(self, other_versions: bool) -> None:
        path = self.out / CHECKPOINT_NAME
        state = load_checkpoint(path)
        check_settings(state["settings"], self.settings(), path)
        if not other_versions:
            try:
                check_settings(flatten(state["versions"], "versions"), flatten(versions(), "versions"), path)
            except ValueError as error:
                raise ValueError(f"{error}\nfit(resume=True, other_versions=True) goes on all the same") from error
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._pseudo_labels = state["pseudo_labels"]
        self.history = state["history"]
        restore_random_state(state["random"])


def balanced(
    labels: Tensor,  # (N,) int64
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Return ``count`` indices drawn with replacement, each with the weight 1 / (size of its cluster)."""
    weights = 1.0 / labels.bincount()[labels].double()
    return torch.multinomial(weights, count, replacement=True, generator=generator)
