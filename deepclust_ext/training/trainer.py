"""One trainer for every method: phases, schedule, pseudo-labels, history, checkpoints that resume exactly."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import Dataset
from tqdm import tqdm

from deepclust_ext.cluster import KMeans
from deepclust_ext.inference import IndexedImages, Loader, assign, device_of, embed, moved, takes_any_size
from deepclust_ext.inference.loop import View
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.ops._checks import check_type
from deepclust_ext.training.checkpoint import (
    NEVER_THE_SAME,
    Setting,
    check_settings,
    fingerprint,
    flatten,
    not_finite,
    random_state,
    restore_random_state,
    seed_everything,
    versions,
    with_epochs_of,
)
from deepclust_ext.training.checks import check_as_they_are, check_generators, check_sizes, check_trainable
from deepclust_ext.training.config import TrainConfig
from deepclust_ext.training.files import FORMAT, RunFolder
from deepclust_ext.training.loading import Batch, epoch_batches
from deepclust_ext.training.phases import MAIN, Phase, locate
from deepclust_ext.training.tally import Step, Tally

#: Names under which torch's profiler shows the stages of an epoch.
STAGES = ("data", "augment", "forward", "loss", "backward", "optimizer", "k-means")


class Trainer:
    """Train a method on the images of a data set; labels that the data set also returns are dropped unseen.

    Args:
        method: What to train. It stays on its device, and batches are moved there.
        data: Map-style, of images (C, H, W) or of tuples that begin with one; or several of these by name, where
            "images" is the one to cluster and the phases say how the others are used.
        views: One per view of the method, each from a batch (B, C, H, W) to a batch. Images may differ in size where
            all have an attribute ``any_size``.
        config: Settings.
        out: Folder for checkpoint and history, as a path or text; made if missing.
        test_view: From a batch to a batch, for pseudo-labels and clusters; None for the images as they are.
        recipe: Where the settings come from, to be kept in the checkpoints and compared like them.

    Attributes:
        folder: The folder ``out``, which ``fit`` locks.
        optimizer: The method's; its learning rates are the peak of the schedule until the first step.
        history: One record of mean terms per epoch. A term has its mean over the steps that log it.

    Raises:
        TypeError: If an argument is of another type, a data set is not map-style, or its first item is no image.
        ValueError: If phases, batch size, views, clusters or a bank do not fit the method or the data.
        NotADirectoryError: If ``out`` is a file.
    """

    def __init__(
        self,
        method: ClusteringMethod,
        data: Dataset[Any] | Mapping[str, Dataset[Any]],
        views: Sequence[View],
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        test_view: View | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        check_type(method, "method", ClusteringMethod, "a ClusteringMethod")
        check_type(config, "config", TrainConfig, "a TrainConfig")
        check_type(out, "out", str | os.PathLike, "a path")
        for place, view in enumerate(check_type(views, "views", Sequence, f"a list of {method.num_views} functions")):
            check_type(view, f"views.{place}", Callable, "a function of a batch")
        if test_view is not None:
            check_type(test_view, "test_view", Callable, "a function of a batch or None")
        if recipe is not None:
            check_type(recipe, "recipe", Mapping, "a mapping or None")
        self.method = method
        self.data = dict(data) if isinstance(data, Mapping) else {MAIN: data}
        self.views = views
        self.config = config
        self.out = Path(out)
        self.folder = RunFolder(self.out)
        self.test_view = test_view
        self.recipe = recipe or {}
        self.history: list[dict[str, float]] = []
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"out: expected a folder, got the file {self.out}")
        check_generators(views)
        self._images = {name: IndexedImages(each, any_size=takes_any_size(*views)) for name, each in self.data.items()}
        for name, images in self._images.items():
            if len(images) < 2:
                raise ValueError(f"data {name}: expected at least 2 images, got {len(images)}")
            check_sizes(name, images)
        self._fingerprints = {name: fingerprint(source) for name, source in self.data.items()}
        self._loaders: dict[str, Loader] = {}
        self._pseudo_labels: Tensor | None = None  # (N,) int64, on the CPU
        self._warned = False
        if MAIN not in self.data:
            raise ValueError(f"data: expected a data set named {MAIN!r}, got {', '.join(self.data) or 'none'}")
        if test_view is None:
            check_as_they_are(self._images[MAIN])
        if len(views) != method.num_views:
            raise ValueError(f"views: expected {method.num_views} for {type(method).__name__}, got {len(views)}")
        if config.epochs < 1:
            raise ValueError(f"phases: expected at least one epoch, got {config.epochs}")
        sizes = {name: len(images) for name, images in self._images.items()}
        used = {MAIN, *(name for phase in config.phases if phase.epochs for name in phase.passes)}
        method.check_data({name: size for name, size in sizes.items() if name in used})
        for phase in config.phases:
            phase.check(method, sizes, config.batch_size)
        self.optimizer = method.make_optimizer(config.batch_size, config.optimizer)
        for group in self.optimizer.param_groups:  # a checkpoint holds them, and can be read with plain numbers alone
            group |= {name: value.item() for name, value in group.items() if isinstance(value, np.generic | Tensor)}
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._total_steps = sum(phase.epochs * self.steps_per_epoch(phase) for phase in config.phases)

    def fit(
        self, *, resume: bool = False, overwrite: bool = False, other_versions: bool = False
    ) -> list[dict[str, float]]:
        """Train to the last epoch and return the history.

        A resumed run continues after the last whole epoch exactly as if it had never stopped. It may have more epochs
        in its last phase than before where neither learning rate nor method depends on their number. There is a
        checkpoint before the first step and after every epoch; the one before the last is kept beside it.

        Args:
            resume: Continue from the checkpoint in ``out``.
            overwrite: Remove the run that ``out`` holds before the first step.
            other_versions: Continue even where the checkpoint is of another version of this package, torch or numpy;
                the result may then differ from that of a run that never stopped.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from.
            FileExistsError: If ``out`` holds a run that is neither to be resumed nor to be overwritten.
            RuntimeError: If another run uses ``out``; names its process. Or if gradients are not recorded.
            ValueError: If the checkpoint cannot be read, or was written with other settings, data or versions.
            FloatingPointError: If a loss or a weight is not finite; the checkpoint is that of the epoch before.
            OSError: If a file cannot be written; names it.
            KeyboardInterrupt: If the user interrupts; says where the run can be resumed.
        """
        check_trainable(self.method)
        with self.folder as folder:
            folder.check(resume=resume, overwrite=overwrite)
            if resume:
                self._load(other_versions)
            else:
                self.history = []
                self._pseudo_labels = None
                seed_everything(self.config.seed)
                folder.clear()
                folder.save(self._state())
                folder.load()  # what cannot be read again is refused before the first step
            folder.write_history(self.history)
            try:
                self._train()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted in epoch {len(self.history) + 1}; {folder.checkpoint} holds the run after epoch "
                    f"{len(self.history)}, and resume continues it"
                ) from None
            finally:
                self._loaders.clear()  # no worker outlives the run
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
        config = self.config
        return {"test_view": self.test_view, "batch_size": config.batch_size, "num_workers": config.num_workers}

    def _train(self) -> None:
        epochs = range(len(self.history), self.config.epochs)
        # disable=None: a bar on a terminal, and a line for each epoch elsewhere.
        with tqdm(epochs, initial=epochs.start, total=self.config.epochs, unit="epoch", disable=None) as bar:
            for epoch in bar:
                record = self._train_epoch(epoch)
                self._warn_of_collapse(record)
                self.folder.save(self._state(record))
                self.history.append(record)
                self.folder.write_history(self.history)
                shown = {name: f"{record[name]:.3g}" for name in record if name not in ("epoch", "lr")}
                bar.set_postfix(shown)
                if bar.disable:
                    terms = ", ".join(f"{name} {value}" for name, value in shown.items())
                    print(f"epoch {epoch + 1} of {self.config.epochs}: {terms}", file=sys.stderr, flush=True)

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
        with closing(self._batches(phase, epoch)) as batches:
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

    def _step(self, batch: Batch, epoch: float, progress: float) -> dict[str, Tensor]:
        """Make one step and return its loss and terms, detached."""
        device = device_of(self.method)
        with record_function("data"):
            images = moved(batch.images, device)
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

    def _batches(self, phase: Phase, epoch: int) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, one data set after the other."""
        for name, images in self._images.items():
            if name not in self._loaders:
                self._loaders[name] = Loader(
                    images,
                    num_workers=self.config.num_workers,
                    device=device_of(self.method),
                    # Random numbers of workers that stay would be others in a resumed run.
                    stay=self._fingerprints[name]["content"] != NEVER_THE_SAME,
                )
        size, seed = self.config.batch_size, self._epoch_seed(epoch)
        return epoch_batches(self._loaders, self._images, phase, size, seed, self._pseudo_labels)

    def _set_rates(self, epoch: float) -> None:
        factor = self.config.learning_rate.factor(epoch, self.config.epochs)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor

    def _warn_of_collapse(self, record: dict[str, float]) -> None:
        message = None if self._warned else self.method.collapse_warning(record)
        if message is not None:
            self._warned = True
            warnings.warn(f"epoch {record['epoch']}: {message}", RuntimeWarning, stacklevel=3)

    def _state(self, *records: dict[str, float]) -> dict[str, Any]:
        """Return what a checkpoint holds of the run so far and of these more records."""
        history = [*self.history, *records]
        index, epoch_in_phase = locate(self.config.phases, max(len(history) - 1, 0))
        return {
            "format": FORMAT,
            "settings": self.settings(),
            "versions": versions(),
            "phase": {
                "name": self.config.phases[index].name,
                "index": index,
                "epochs": epoch_in_phase + len(history[:1]),
            },
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pseudo_labels": self._pseudo_labels,
            "history": history,
            "random": random_state(),
        }

    def _load(self, other_versions: bool) -> None:
        path, config = self.folder.checkpoint, self.config
        state = self.folder.load()
        stored, own = state["settings"], self.settings()
        open_ended = config.learning_rate.open_ended and not self.method.uses_progress
        if open_ended:
            stored = with_epochs_of(stored, own, len(config.phases))
        try:
            check_settings(stored, own, path)
        except ValueError as error:
            if open_ended or own["epochs"] == stored["epochs"]:
                raise
            raise ValueError(
                f"{error}\nmore epochs in the last phase are possible where the learning rate is constant or has a "
                f"horizon, and the method does not go by the share of the run"
            ) from error
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
