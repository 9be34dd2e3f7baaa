"""One trainer for every method: phases, schedule, pseudo-labels, history, checkpoints that resume exactly."""

import functools
import os
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import Dataset

from deepclust_ext.cluster import match_labels
from deepclust_ext.inference import IndexedImages, Loader, assign, embed, moved, reused_memory, takes_any_size
from deepclust_ext.inference.loop import View, device_of
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod
from deepclust_ext.training import checks
from deepclust_ext.training.batch_norm import synchronize_batch_norm
from deepclust_ext.training.checkpoint import (
    NEVER_THE_SAME,
    Setting,
    check_resumed,
    fingerprint,
    not_finite,
    plain_numbers,
    random_state,
    restore_random_state,
    run_settings,
    seed_everything,
    versions,
    why_epochs_are_fixed,
)
from deepclust_ext.training.config import TrainConfig
from deepclust_ext.training.files import FORMAT, RunFolder
from deepclust_ext.training.loading import Batch, epoch_batches, views_of
from deepclust_ext.training.phases import MAIN, Phase, locate
from deepclust_ext.training.progress import Progress
from deepclust_ext.training.ranks import Ranks, tensors_of
from deepclust_ext.training.stop import Stopped
from deepclust_ext.training.tally import Step, Tally

#: Names under which torch's profiler shows the stages of an epoch.
STAGES = ("data", "augment", "forward", "loss", "backward", "optimizer", "k-means")


class Trainer:
    """Train a method on the images of a data set; labels that the data set also returns are dropped unseen.

    A method with ``gather_distributed`` is trained by all ranks of its process group. Each has a trainer with the same
    arguments, and takes its part of every batch. The order of the images, their views and all noise are the same for
    any number of ranks. Only rank 0 writes and prints.

    Args:
        method: What to train. It stays on its device, and batches are moved there.
        data: Map-style, of images (C, H, W) or of tuples that begin with one; or several of these by name, where
            "images" is the one to cluster and the phases say how the others are used.
        views: One per view of the method, each from a batch (B, C, H, W) to a batch. Images may differ in size where
            all have an attribute ``any_size``.
        config: Settings.
        out: Folder for checkpoint and history, as a path or text; made if missing.
        test_view: From a batch to a batch, for pseudo-labels and clusters; None for unchanged images.
        recipe: Where the settings come from; stored in the checkpoints and compared like the settings.

    Attributes:
        folder: The folder ``out``, which ``fit`` locks.
        ranks: The ranks that train.
        optimizer: The method's; its learning rates are the peak of the schedule until the first step.
        history: One record of mean terms per epoch. A term has its mean over the steps that log it.
        stop: Set it to True, as in a signal handler, to stop: the step ends, the state is saved, and ``fit`` raises.
        kept: What ``after_epoch`` keeps from one epoch to the next, by name; checkpoints hold it.

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
        checks.check_types(method, views, config, out, test_view, recipe)
        self.method = method
        self.data = dict(data) if isinstance(data, Mapping) else {MAIN: data}
        self.views = views
        self.config = config
        self.out = Path(out)
        self.folder = RunFolder(self.out)
        self.ranks = Ranks(method.gather_distributed, method.process_group)
        self.test_view = test_view
        self.recipe = recipe or {}
        self.history: list[dict[str, float]] = []
        self.stop = False
        self.kept: dict[str, Tensor] = {}
        checks.check_generators(views)
        self._images = {name: IndexedImages(each, any_size=takes_any_size(*views)) for name, each in self.data.items()}
        for name, images in self._images.items():
            if len(images) < 2:
                raise ValueError(f"data {name}: expected at least 2 images, got {len(images)}")
            checks.check_sizes(name, images)
        self._fingerprints = {name: fingerprint(each) for name, each in self.data.items()}
        # The images that are the same at every reading: an epoch of others cannot be taken up in its middle.
        self._repeatable = [name for name, found in self._fingerprints.items() if found["content"] != NEVER_THE_SAME]
        self._loaders: dict[str, Loader] = {}
        self._pseudo_labels: Tensor | None = None  # (N,) int64, on the CPU
        self._tally = Tally()  # of the epoch under way
        self._compiled_step = torch.compile(method.training_step) if config.compile else None
        self._warned = False
        checks.check_fit(method, self._images, len(views), config, as_they_are=test_view is None)
        checks.check_ranks(config, self.ranks.count)
        if self.ranks.count > 1 and config.sync_batch_norm:
            synchronize_batch_norm(method, method.process_group)
        self.optimizer = method.make_optimizer(config.batch_size, config.optimizer)
        for group in self.optimizer.param_groups:  # a checkpoint holds them, and can be read with plain numbers alone
            group |= {name: plain_numbers(value) for name, value in group.items() if name != "params"}
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._total_steps = self._steps_before(config.epochs)

    def fit(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        other_versions: bool = False,
        after_epoch: Callable[[dict[str, float]], Mapping[str, float]] | None = None,
    ) -> list[dict[str, float]]:
        """Train to the last epoch and return the history.

        A resumed run continues from the checkpoint exactly as if it had never stopped. Its last phase may have more
        epochs than before if neither learning rate nor method depends on their number. Checkpoints are written before
        the first step, after every epoch and at a stop; the one before the last is kept too.

        Args:
            resume: Continue from the checkpoint in ``out``.
            overwrite: Remove the run that ``out`` holds before the first step.
            other_versions: Continue even if the checkpoint is of another version of this package, torch or numpy; the
                result may then differ from that of a run that never stopped.
            after_epoch: Called with each epoch's record, before the checkpoint; its result is added to the record. It
                must not change the global random state.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from.
            FileExistsError: If ``out`` holds a run that is neither to be resumed nor to be overwritten.
            RuntimeError: If another run uses ``out``; names its process. Or if gradients are not recorded, or another
                rank has failed.
            ValueError: If the checkpoint cannot be read, or was written with other settings, data or versions.
            FloatingPointError: If a loss or a weight is not finite; the checkpoint is that of the epoch before.
            OSError: If a file cannot be written; names it.
            KeyboardInterrupt: If the user interrupts; the message says how to resume. After ``stop`` it is a
                ``Stopped``.
        """
        checks.check_trainable(self.method)
        with reused_memory(), self.ranks.held_by_first(self.folder) as folder:
            self.ranks.on_first(lambda: folder.check(resume=resume, overwrite=overwrite))
            if resume:
                self._load(other_versions)
            else:
                self.history = []
                self._pseudo_labels = None
                self._tally, self.kept = Tally(), {}
                seed_everything(self.config.seed)
                self.ranks.share(tensors_of(self.method))
                self.ranks.on_first(self._begin)
            self.ranks.on_first(lambda: folder.write_history(self.history))
            try:
                self._train(after_epoch)
            except Stopped:
                raise
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted in epoch {len(self.history) + 1}; {folder.checkpoint} holds the run after epoch "
                    f"{len(self.history)}, and resume continues it"
                ) from None
            finally:
                self._loaders.clear()  # no worker outlives the run
        return self.history

    def _begin(self) -> None:
        """Write the first checkpoint over what the folder holds; a state that cannot be read again is refused here."""
        self.folder.clear()
        self.folder.save(self._state())
        self.folder.load()

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
        seed = self.config.seed if seed is None else seed
        ranks, num_clusters = self.ranks, self.method.num_clusters
        kmeans = self.config.kmeans.spherical(num_clusters, seed, n_init=n_init, process_group=ranks.group)
        rows = self.embed()
        return ranks.gather(kmeans.fit_predict(rows[ranks.part(len(rows))])).cpu()

    def steps_per_epoch(self, phase: Phase) -> int:
        """Return the steps that an epoch of a phase has, over all its data sets."""
        return sum(len(self._images[name]) // self.config.batch_size for name in phase.passes)

    def settings(self) -> dict[str, Setting]:
        """Return all that decides the run, except the versions, by dotted names."""
        views, data = {"views": list(self.views), "test_view": self.test_view}, {"data": self._fingerprints}
        return run_settings(self.config, self.method, {**views, **data, "recipe": self.recipe})

    def _inference(self) -> dict[str, Any]:
        config = self.config
        loop = {"test_view": self.test_view, "batch_size": config.batch_size, "num_workers": config.num_workers}
        return loop | self.ranks.inference()

    def _train(self, after_epoch: Callable[[dict[str, float]], Mapping[str, float]] | None) -> None:
        done = self._steps_before(len(self.history)) + self._tally.steps
        with Progress(self.config.epochs, self._total_steps, done, self.data[MAIN], shown=self.ranks.first) as progress:
            for epoch in range(len(self.history), self.config.epochs):
                record = self._train_epoch(epoch, progress)
                if after_epoch is not None:
                    record |= after_epoch(record)
                self._tally = Tally()
                self._warn_of_collapse(record)
                self.ranks.on_first(functools.partial(self._write, record))
                self.history.append(record)
                progress.end_epoch(record)
                if self.ranks.any(self.stop) and len(self.history) < self.config.epochs:
                    raise Stopped(f"after epoch {epoch + 1}", self.folder.checkpoint)

    def _write(self, record: dict[str, float]) -> None:
        """Write the checkpoint after an epoch, and the history with its record."""
        self.folder.save(self._state(record))
        self.folder.write_history([*self.history, record])

    def _steps_before(self, epoch: int) -> int:
        """Return the steps of the run before an epoch."""
        return sum(self.steps_per_epoch(self.config.phases[locate(self.config.phases, i)[0]]) for i in range(epoch))

    def _train_epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        """Train for an epoch, or for the rest of one, and return its mean terms."""
        start = time.perf_counter()
        index, epoch_in_phase = locate(self.config.phases, epoch)
        phase = self.config.phases[index]
        steps, first_step = self.steps_per_epoch(phase), self._steps_before(epoch)
        tally, all_repeatable = self._tally, len(self._repeatable) == len(self.data)
        if not tally.steps:
            with record_function("k-means"):
                self._label(phase, epoch_in_phase, epoch)
        self.method.train()
        with closing(self._batches(phase, epoch, tally.steps)) as batches:
            for step in range(tally.steps, steps):
                # Where images are others at each reading, each rank draws for its own.
                with record_function("data"), nullcontext() if all_repeatable else self.ranks.apart():
                    batch = next(batches)
                loss_terms = self._step(batch, epoch + step / steps, (first_step + step) / self._total_steps)
                tally.add(Step(first_step + step, epoch + 1, phase.name, batch.data, loss_terms, batch.all_places))
                progress.end_step(len(batch.all_places))
                if self.ranks.any(self.stop) and step + 1 < steps and all_repeatable:
                    self._check_finite()
                    self.ranks.on_first(lambda: self.folder.save(self._state()))
                    where = f"in epoch {epoch + 1} after step {step + 1} of {steps}"
                    raise Stopped(where, self.folder.checkpoint)
        means = self._check_finite()
        rates = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        return rates | means | {"seconds": time.perf_counter() - start}

    def _check_finite(self) -> dict[str, float]:
        """Return the mean terms of the epoch so far; losses and weights must be finite. Waits for the device."""
        means = self._tally.means()  # the only wait in an epoch of fewer steps than between two looks
        if not self.config.sync_batch_norm:  # statistics of one rank are from here on those of all
            self.ranks.share(self.method.buffers())
        bad = not_finite(self.method.state_dict())
        if bad:
            last = self._tally.last
            raise FloatingPointError(f"after {last}: every loss was finite, and not finite is {', '.join(bad)}")
        return means

    def _step(self, batch: Batch, epoch: float, progress: float) -> dict[str, Tensor]:
        """Make one step and return its loss and terms, detached."""
        device = device_of(self.method)
        with record_function("data"):
            images = moved(batch.images, device)
            all_labels = self._pseudo_labels if batch.data == MAIN else None
            labels = None if all_labels is None else all_labels[batch.places].to(device, non_blocking=True)
        with record_function("augment"):
            views = views_of(batch, images, self.views, self.ranks)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            step = self._compiled_step or self.method.training_step
            loss, terms = step(views, labels, batch.places, terms=batch.terms, epoch=epoch)
        with record_function("backward"):
            self.optimizer.zero_grad()
            loss.backward()
            logged = self.ranks.average(self.optimizer, {"loss": loss.detach()} | terms)
        with record_function("optimizer"):
            self._set_rates(epoch)
            self.optimizer.step()
            self.method.after_step(progress)
        return logged

    def _label(self, phase: Phase, epoch_in_phase: int, epoch: int) -> None:
        if phase.pseudo_labels == "never":
            self._pseudo_labels = None
        elif phase.labels_before(epoch_in_phase):
            # Fresh starts every time: starting from the last centers is quicker but keeps their early mistakes.
            labels = self.kmeans(self.config.kmeans.n_init, self._epoch_seed(epoch))
            if self.method.matches_labels:
                labels = match_labels(labels, self.cluster(), self.method.num_clusters)
            self._pseudo_labels = labels

    def _epoch_seed(self, epoch: int) -> int:
        return self.config.seed * 1000 + epoch

    def _batches(self, phase: Phase, epoch: int, skip: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch but for the first, one data set after the other."""
        device = device_of(self.method)
        for name, images in self._images.items():
            if name not in self._loaders:
                # Random numbers of workers that stay would be others in a resumed run.
                stay = name in self._repeatable
                self._loaders[name] = Loader(images, num_workers=self.config.num_workers, device=device, stay=stay)
        size, seed = self.config.batch_size, self._epoch_seed(epoch)
        part = self.ranks.part(size)
        return epoch_batches(self._loaders, self._images, phase, size, seed, self._pseudo_labels, skip, part)

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
            "epoch_so_far": self._tally.state(),
            "kept": self.kept,
            "history": history,
            "random": random_state(device_of(self.method)),
        }

    def check_resume(self, *, other_versions: bool = False) -> dict[str, Any]:
        """Return the state that ``fit(resume=True)`` goes on from.

        Raises:
            FileNotFoundError: As :meth:`fit`.
            ValueError: As :meth:`fit`.
        """
        state = self.folder.load()
        check_resumed(
            state,
            self.settings(),
            self.folder.checkpoint,
            last_phase=len(self.config.phases) - 1,
            fixed_epochs=why_epochs_are_fixed(self.config.learning_rate, self.method),
            other_versions=other_versions,
        )
        return state

    def _load(self, other_versions: bool) -> None:
        state = self.check_resume(other_versions=other_versions)
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._pseudo_labels = state["pseudo_labels"]
        self._tally = Tally(state["epoch_so_far"], device_of(self.method))
        self.history, self.kept = state["history"], state["kept"]
        restore_random_state(state["random"], device_of(self.method))
