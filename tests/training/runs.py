"""Small runs for the trainer's tests: data, phases of each method, an interruption, and what equal runs are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from deepclust_ext.data import RandomAffine
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.training import LearningRate, Phase, TrainConfig, Trainer, seed_everything
from tests.methods.methodsamples import METHODS

BATCH = 16
STEPS = 3  # of the 50 scans

#: Phases of runs that are not plain: HaDis with every kind of pseudo-labels, PICI with its three stages, SACC with two
#: data sets within an epoch.
PHASES = {
    "hadis": (
        Phase("warmup", 2, {"images": "warmup"}),
        Phase("main", 3, pseudo_labels=2, resample=True),
        Phase("last", 2, pseudo_labels="once"),
    ),
    "pici": (
        Phase("pisd", 2, {"images": "reconstruction"}),
        Phase("picd", 2),
        Phase("cli", 2, {"images": "labels"}, pseudo_labels="once"),
    ),
    "sacc": (
        Phase("instance", 2, {"images": "instance"}),
        Phase("both", 3, {"unlabelled": "instance", "images": "all"}),
    ),
}


class Scans(Dataset[Any]):
    """Noisy images; items are images, or (image, label) when labels are given."""

    def __init__(self, labels: Tensor | None = None, *, count: int = 50, seed: int = 3) -> None:
        self.images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        return image if self.labels is None else (image, self.labels[index])


def phases_of(method: str) -> Sequence[Phase]:
    """Return the phases of a small run of a method: its own above, or else one by its whole loss."""
    labels: str | int = 1 if METHODS[method].method().labelled_terms else "never"
    return PHASES.get(method, (Phase("main", 3, pseudo_labels=labels),))


def config_of(method: str = "hadis", **changes: Any) -> TrainConfig:
    """Return settings of a small run of a method."""
    config = TrainConfig(phases_of(method), batch_size=BATCH, learning_rate=LearningRate("warmup_cosine", 1.0))
    return replace(config, **changes)


def make_trainer(
    out: Path,
    data: Dataset[Any] | Mapping[str, Dataset[Any]] | None = None,
    config: TrainConfig | None = None,
    method: str = "hadis",
    model: ClusteringMethod | None = None,
    **extra: Any,
) -> Trainer:
    """Return a trainer of a method's sample, in the same state at every call."""
    seed_everything(5)
    model = METHODS[method].method() if model is None else model
    if data is None:
        data = {"images": Scans(), "unlabelled": Scans(count=35, seed=4)} if method == "sacc" else Scans()
    views = extra.pop("views", [RandomAffine()] * METHODS[method].num_views)
    return Trainer(model, data, views, config or config_of(method), out, **extra)


class Stop(nn.Module):
    """The view of a batch, but for one that stops the run."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls
        self.view = RandomAffine()

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.view(images)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return repr(self.view)  # the run's settings are the same


def stop(out: Path, epoch: int, step: int, method: str, *, overwrite: bool = False, **options: Any) -> Trainer:
    """Return the trainer of a run that an interruption ended after so many whole epochs and steps of the next."""
    trainer = make_trainer(out, method=method, **options)
    lengths = [trainer.steps_per_epoch(phase) for phase in trainer.config.phases for _ in range(phase.epochs)]
    trainer.views = [*trainer.views[1:], Stop(sum(lengths[:epoch]) + step)]
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(overwrite=overwrite)
    assert len(trainer.history) == epoch
    assert str(caught.value) == (
        f"interrupted in epoch {epoch + 1}; {out / 'checkpoint.pt'} holds the run after epoch {epoch}, and resume "
        f"continues it"
    )
    return trainer


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the records but for the time they took."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def assert_same_run(first: Trainer, second: Trainer) -> None:
    """Require equal histories, and weights equal to the bit."""
    assert without_seconds(first.history) == without_seconds(second.history)
    weights = second.method.state_dict()
    for name, weight in first.method.state_dict().items():
        assert torch.equal(weight, weights[name]), name
