"""One trainer for every method: seeds, schedule, pseudo-labels, history, checkpoints that resume exactly."""

import json
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import record_function
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from deepclust_ext.cluster import KMeans
from deepclust_ext.methods.base import ClusterHeadMethod, ClusteringMethod

CHECKPOINT_NAME = "checkpoint.pt"
HISTORY_NAME = "history.jsonl"
#: Names under which torch's profiler shows the stages of an epoch.
STAGES = ("data", "augment", "forward", "loss", "backward", "optimizer", "k-means")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; stored in its checkpoints, and a resumed run must have the same.

    Attributes:
        epochs: Passes over the data set. The defaults are those of HaDis, arXiv 2401.14038.
        warmup_epochs: First epochs, without pseudo-labels.
        lr_warmup_epochs: First epochs over which the learning rate rises linearly; then a cosine takes it to 0.
        batch_size: Images of a step. What does not fill a batch is left out of the epoch, so that batch normalisation
            never sees a batch of one image; the order is new in every epoch, so no image stays out.
        seed: Of torch, numpy, python, the order of the images and k-means.
        num_workers: Processes that load images.
    """

    epochs: int = 1000
    warmup_epochs: int = 50
    lr_warmup_epochs: int = 10
    batch_size: int = 256
    seed: int = 0
    num_workers: int = 0


class Trainer:
    """Train a method on the images of a data set; labels that the data set also returns are dropped unseen.

    Args:
        method: What to train. It stays on its device, and batches are moved there.
        optimizer: Over the method's parameters; its learning rates are the peak of the schedule.
        dataset: Map-style, of images (C, H, W) or of tuples that begin with one.
        augmentations: One per view, each from a batch (B, C, H, W) to a batch.
        config: Settings.
        out: Folder for checkpoint and history; made if missing.

    Raises:
        ValueError: If the batch size is below 2 or above the size of the data set, or an epoch count is out of range.
    """

    def __init__(
        self,
        method: ClusteringMethod,
        optimizer: Optimizer,
        dataset: Dataset[Any],
        augmentations: Sequence[Callable[[Tensor], Tensor]],
        config: TrainConfig,
        out: Path,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.images = _Images(dataset)
        self.augmentations = augmentations
        self.config = config
        self.out = out
        self.history: list[dict[str, float]] = []
        self._warned = False
        if not 2 <= config.batch_size <= len(self.images):
            raise ValueError(
                f"batch_size: expected 2 to {len(self.images)}, the size of the data set, got {config.batch_size}"
            )
        for name in ("warmup_epochs", "lr_warmup_epochs"):
            if not 0 <= getattr(config, name) <= config.epochs:
                raise ValueError(f"{name}: expected 0 to epochs ({config.epochs}), got {getattr(config, name)}")
        self._steps_per_epoch = len(self.images) // config.batch_size
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]

    def fit(self, *, resume: bool = False) -> list[dict[str, float]]:
        """Train to the last epoch and return one record of mean loss terms per epoch.

        A resumed run continues after the last whole epoch exactly as if it had never stopped.

        Args:
            resume: Continue from the checkpoint in ``out``.

        Raises:
            FileNotFoundError: If there is no checkpoint to resume from.
            ValueError: If the checkpoint was written with other settings.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._load()
        else:
            self.history = []
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
                self._save()
                with (self.out / HISTORY_NAME).open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
                bar.set_postfix({name: f"{record[name]:.3g}" for name in record if name not in ("epoch", "lr")})
        return self.history

    def embed(self) -> Tensor:
        """Return the method's rows for the whole data set in its order, (N, D), on the method's device."""
        return self._for_all_images(self.method.embed)

    def cluster(self, n_init: int = 20) -> Tensor:
        """Return final labels (N,) int64 on the CPU: the cluster head's, or without one those of :meth:`kmeans`."""
        if isinstance(self.method, ClusterHeadMethod):
            return self._for_all_images(self.method.assign).argmax(dim=1).cpu()
        return self.kmeans(n_init)

    def kmeans(self, n_init: int = 20) -> Tensor:
        """Return labels (N,) of spherical k-means on the method's rows, the best of ``n_init`` starts by inertia."""
        return self._kmeans(self.config.seed, n_init)

    def _kmeans(self, seed: int, n_init: int) -> Tensor:
        kmeans = KMeans(self.method.num_clusters, metric="cosine", n_init=n_init, random_state=seed)
        return kmeans.fit_predict(self.embed()).cpu()

    def _for_all_images(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        device = _device(self.method)
        size = max(self.config.batch_size, 512)
        order = list(range(len(self.images)))
        loader = self._loader([order[start : start + size] for start in range(0, len(order), size)])
        return torch.cat([function(images.to(device)) for images, _ in loader])

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        start = time.perf_counter()
        with record_function("k-means"):
            pseudo_labels = self._pseudo_labels(epoch)
        self.method.train()
        device = _device(self.method)
        totals: dict[str, Tensor] = {}
        batches = self._shuffled(epoch)
        for step in range(epoch * self._steps_per_epoch, (epoch + 1) * self._steps_per_epoch):
            with record_function("data"):
                images, index = next(batches)
                images = images.to(device, non_blocking=True)
                labels = None if pseudo_labels is None else pseudo_labels[index].to(device, non_blocking=True)
            with record_function("augment"):
                views = [augment(images) for augment in self.augmentations]
            wanted = "warmup" if labels is None and "warmup" in self.method.terms else None
            loss, terms = self.method.training_step(views, labels, index, terms=wanted)
            with record_function("backward"):
                self.optimizer.zero_grad()
                loss.backward()
            with record_function("optimizer"):
                self._set_rates(step)
                self.optimizer.step()
                self.method.after_step(step / (self.config.epochs * self._steps_per_epoch))
            for name, term in terms.items():
                totals[name] = totals[name] + term if name in totals else term
        # The only wait for the device in the epoch.
        means = {name: float(total) / self._steps_per_epoch for name, total in totals.items()}
        rates = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        return rates | means | {"seconds": time.perf_counter() - start}

    def _pseudo_labels(self, epoch: int) -> Tensor | None:
        if epoch < self.config.warmup_epochs or not self.method.labelled_terms:
            return None
        # Fresh starts in every epoch: starting from the last centres is quicker but keeps their early mistakes.
        return self._kmeans(self._epoch_seed(epoch), n_init=3)

    def _epoch_seed(self, epoch: int) -> int:
        return self.config.seed * 1000 + epoch

    def _shuffled(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
        order = torch.randperm(len(self.images), generator=generator).tolist()
        size = self.config.batch_size
        return iter(self._loader([order[step * size : (step + 1) * size] for step in range(self._steps_per_epoch)]))

    def _loader(self, batches: Iterable[list[int]]) -> DataLoader[Any]:
        return DataLoader(
            self.images,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self.config.num_workers,
        )

    def _set_rates(self, step: int) -> None:
        factor = warmup_cosine(
            step, self.config.lr_warmup_epochs * self._steps_per_epoch, self.config.epochs * self._steps_per_epoch
        )
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor

    def _warn_of_collapse(self, record: dict[str, float]) -> None:
        message = None if self._warned else self.method.collapse_warning(record)
        if message is not None:
            self._warned = True
            warnings.warn(f"epoch {record['epoch']}: {message}", RuntimeWarning, stacklevel=3)

    def _settings(self) -> dict[str, int]:
        return {"num_clusters": self.method.num_clusters} | asdict(self.config)

    def _save(self) -> None:
        state = {
            "settings": self._settings(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "peak_rates": self._peak_rates,
            "history": self.history,
            "random": _random_state(),
        }
        save_atomically(state, self.out / CHECKPOINT_NAME)

    def _load(self) -> None:
        path = self.out / CHECKPOINT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"resume: expected a checkpoint at {path}, got none")
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self._settings().items():
            if state["settings"][name] != value:
                raise ValueError(f"{name}: expected {state['settings'][name]} as in {path}, got {value}")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._peak_rates = state["peak_rates"]
        self.history = state["history"]
        _restore_random_state(state["random"])


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the share of the peak learning rate: a linear rise to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1)))


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy's global generator and python's ``random``."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds either the old file or the whole new one, whatever interrupts."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


def _random_state() -> dict[str, Any]:
    """Every generator's state in types that ``torch.load(weights_only=True)`` accepts."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


class _Images(Dataset[tuple[Tensor, int]]):
    """The images of a data set with their indices; whatever else an item holds never leaves this class."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.dataset[index]
        return (item[0] if isinstance(item, (tuple, list)) else item), index


def _collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, index = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(index)


def _device(method: ClusteringMethod) -> torch.device:
    return next(method.parameters()).device
