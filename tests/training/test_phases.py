"""Phases: which data, terms and pseudo-labels an epoch has, and what does not fit."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.training import Phase, TrainConfig, Trainer
from deepclust_ext.training.loading import balanced
from deepclust_ext.training.phases import locate, scaled
from tests.training.runs import Scans, config_of, make_trainer


def spy(method: ClusteringMethod, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return a list that grows by (terms, pseudo-labels, index) at every step."""
    steps: list[tuple[Any, ...]] = []
    right = method.training_step

    def wrapped(views: Any, labels: Any, index: Any, *, terms: Any, epoch: float) -> Any:
        steps.append((terms, labels, index))
        return right(views, labels, index, terms=terms, epoch=epoch)

    monkeypatch.setattr(method, "training_step", wrapped)
    return steps


def test_an_epoch_goes_through_its_data_sets_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, method="sacc")
    steps = spy(trainer.method, monkeypatch)
    trainer.fit()
    assert [terms for terms, _, _ in steps] == ["instance"] * 6 + ["instance", "instance", "all", "all", "all"] * 3
    assert all(labels is None for _, labels, _ in steps)
    assert torch.cat([index for _, _, index in steps[6:8]]).max() < 35
    # "cluster" is logged by three steps of five, "loss" by all.
    assert set(trainer.history[0]) < set(trainer.history[2])
    assert "cluster" not in trainer.history[0]


def test_pseudo_labels_are_made_when_the_phase_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    steps = spy(trainer.method, monkeypatch)
    seeds: list[int | None] = []
    right = Trainer.kmeans

    def counted(self: Trainer, n_init: int | None = None, seed: int | None = None) -> Any:
        assert n_init == 10
        seeds.append(seed)
        return right(self, n_init, seed)

    monkeypatch.setattr(Trainer, "kmeans", counted)
    trainer.fit()
    # Epochs 2 and 4 of the phase with labels every second epoch, 5 of that with labels once.
    assert seeds == [2, 4, 5]
    assert [terms for terms, _, _ in steps] == ["warmup"] * 6 + [None] * 15
    assert all(labels is None for _, labels, _ in steps[:6])
    assert all(labels is not None for _, labels, _ in steps[6:])


def test_labels_belong_to_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, config=config_of(phases=(Phase("main", 1, pseudo_labels=1),)))
    expected = trainer.kmeans(10, 0)
    steps = spy(trainer.method, monkeypatch)
    trainer.fit()
    assert all(torch.equal(labels, expected[index]) for _, labels, index in steps)


@pytest.mark.parametrize("method", ["pici", "sacc", "clc"])
def test_labels_get_the_numbers_of_the_head_s_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = config_of(phases=(Phase("cli", 2, {"images": "labels"}, pseudo_labels=1),))
    trainer = make_trainer(tmp_path, method=method, data=Scans(), config=config)
    own = torch.arange(50) % 4
    monkeypatch.setattr(trainer, "cluster", lambda: own)
    monkeypatch.setattr(trainer, "kmeans", lambda *arguments: (own + 1) % 4)
    steps = spy(trainer.method, monkeypatch)
    trainer.fit()
    assert len(steps) == 6
    assert all(torch.equal(labels, own[index]) for _, labels, index in steps)


def test_resampling_sees_clusters_equally_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    drawn = balanced(labels, 30_000, torch.Generator().manual_seed(0))
    shares = labels[drawn].bincount() / 30_000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)  # about four standard deviations
    images = Counter(drawn[labels[drawn] == 1].tolist())
    assert set(images) == set(range(90, 99))
    assert min(images.values()) > 0.8 * 10_000 / 9
    # Only the phase that asks for it draws images twice.
    trainer = make_trainer(tmp_path)
    steps = spy(trainer.method, monkeypatch)
    trainer.fit()
    epochs = [torch.cat([index for _, _, index in steps[i : i + 3]]) for i in range(0, 21, 3)]
    assert [len(index.unique()) == 48 for index in epochs] == [True, True, False, False, False, True, True]
    assert not torch.equal(epochs[2].sort().values, epochs[3].sort().values)


def test_the_order_is_new_in_every_epoch_and_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, method="clc")
    steps = spy(trainer.method, monkeypatch)
    trainer.fit()
    first, second = (torch.cat([index for _, _, index in steps[i : i + 3]]) for i in (0, 3))
    assert not torch.equal(first, second)


def test_locate_and_scale() -> None:
    phases = [Phase("a", 10), Phase("none", 0), Phase("b", 70)]
    assert [locate(phases, epoch) for epoch in (0, 9, 10, 79)] == [(0, 0), (0, 9), (2, 0), (2, 69)]
    with pytest.raises(IndexError, match="epoch"):
        locate(phases, 80)
    assert [[phase.epochs for phase in scaled(phases, epochs)] for epochs in (160, 15, 1)] == [
        [20, 0, 140],
        [1, 0, 14],
        [0, 0, 1],
    ]


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (lambda: Phase("p", -1), "phase p, epochs: expected at least 0, got -1"),
        (lambda: Phase("p", 1, {}), "phase p, passes: expected at least one data set, got none"),
        (
            lambda: Phase("p", 1, pseudo_labels="always"),
            "phase p, pseudo_labels: expected 'never', 'once' or a number of epochs, got 'always'",
        ),
        (lambda: Phase("p", 1, pseudo_labels=0), "pseudo_labels: expected .* got 0"),
        (lambda: Phase("p", 1, pseudo_labels=True), "pseudo_labels: expected .* got True"),
        (lambda: Phase("p", 1, resample=True), "phase p, resample: expected pseudo-labels to draw by"),
    ],
)
def test_a_phase_that_cannot_be(phase: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phase()


@pytest.mark.parametrize(
    ("method", "phase", "message"),
    [
        (
            "hadis",
            Phase("p", 1, {"pictures": None}),
            "phases.0.passes: expected data sets among images, got 'pictures'",
        ),
        ("hadis", Phase("p", 1, {"images": "warm"}), "expected terms among all, warmup of images, got 'warm'"),
        ("hadis", Phase("p", 1), "phases.0.pseudo_labels: expected 'once' or a number .* for terms 'all', got 'never'"),
        ("hadis", Phase("p", 0, {"images": "warmup"}), "phases: expected at least one epoch, got 0"),
    ],
)
def test_a_phase_that_does_not_fit(tmp_path: Path, method: str, phase: Phase, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, config=TrainConfig((phase,), batch_size=16), method=method)


def test_data_views_and_batches_that_do_not_fit(tmp_path: Path) -> None:
    labeled = Phase("p", 1, {"more": "all"}, pseudo_labels=1)
    with pytest.raises(ValueError, match="terms without pseudo-labels, which only 'images' has, of more"):
        make_trainer(tmp_path, {"images": Scans(), "more": Scans()}, TrainConfig((labeled,), batch_size=16))
    with pytest.raises(ValueError, match="data: expected a data set named 'images', got more"):
        make_trainer(tmp_path, {"more": Scans()})
    with pytest.raises(ValueError, match="batch_size: expected 2 to 50, the size of the data set images, got 64"):
        make_trainer(tmp_path, config=config_of(batch_size=64))
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"data images: expected at least 2 images, got {count}"):
            make_trainer(tmp_path, Scans(count=count), config_of(batch_size=16))
    with pytest.raises(TypeError, match="data: expected a map-style data set, .*, got int"):
        make_trainer(tmp_path, {"images": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="num_clusters: expected 1 to 3, the number of images, got 4"):
        make_trainer(tmp_path, Scans(count=3))
    with pytest.raises(ValueError, match="batch_size: expected 2 to 35, the size of the data set unlabelled, got 40"):
        make_trainer(tmp_path, config=config_of("sacc", batch_size=40), method="sacc")
    with pytest.raises(ValueError, match="views: expected 3 for SACC, got 2"):
        make_trainer(tmp_path, method="sacc", views=[torch.nn.Identity()] * 2)
