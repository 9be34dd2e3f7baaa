"""Checkpoints: resume to the bit from anywhere, whole files, and an error for whatever would make it another run."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepclust_ext.data import RandomAffine, load_images
from deepclust_ext.methods import HaDis, OptimizerSettings
from deepclust_ext.training import KMeansSettings, LearningRate, Phase, TrainConfig, seed_everything
from deepclust_ext.training import checkpoint as checkpoint_module
from deepclust_ext.training.checkpoint import not_finite
from deepclust_ext.training.files import CHECKPOINT_NAME
from deepclust_ext.training.phases import locate
from tests.methods.methodsamples import METHODS, small_clc, small_hadis
from tests.training.runs import PHASES, Scans, assert_same_run, config_of, make_trainer, phases_of, stop

#: Method, and after which epoch and step of it the run stops; every phase, both ends of one, both data sets of one.
STOPS = [
    ("hadis", 1, 1),  # within the warm-up
    ("hadis", 2, 0),  # before the first step of the next phase
    ("hadis", 3, 2),  # where pseudo-labels are those of the epoch before
    ("hadis", 5, 0),
    ("hadis", 6, 2),  # within the last phase, whose pseudo-labels are of its beginning
    ("pici", 0, 2),
    ("pici", 2, 1),
    ("pici", 4, 1),  # where pseudo-labels have just been matched
    ("pici", 5, 2),  # where they are of the epoch before
    ("sacc", 1, 2),
    ("sacc", 2, 0),
    ("sacc", 3, 1),  # within the first of two data sets
    ("sacc", 4, 4),  # within the second
    *((name, 2, 1) for name in METHODS if name not in PHASES),
]


@pytest.mark.parametrize(("method", "epoch", "step"), STOPS)
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, method: str, epoch: int, step: int) -> None:
    whole = make_trainer(tmp_path / "whole", method=method)
    whole.fit()
    stop(tmp_path / "part", epoch, step, method)
    resumed = make_trainer(tmp_path / "part", method=method)
    seed_everything(99)  # another process has other generators
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)
    assert torch.equal(whole.cluster(), resumed.cluster())


def test_every_phase_is_stopped_somewhere() -> None:
    stopped = {(method, locate(phases_of(method), epoch)[0]) for method, epoch, _ in STOPS}
    assert stopped == {(method, index) for method in METHODS for index in range(len(phases_of(method)))}


def test_resume_restores_every_generator(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    expected = (torch.rand(1), np.random.rand(), random.random())
    seed_everything(99)
    make_trainer(tmp_path).fit(resume=True)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_a_bank_knows_its_images_and_resumes(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", model=small_hadis(bank_size=50))
    whole.fit()
    assert isinstance(whole.method, HaDis)
    assert whole.method.in_bank.all()  # seven epochs of up to 48 of the 50 images each
    # An image's entry is more like its own row than like the mean row.
    rows = whole.embed()
    own = (whole.method.bank * rows).sum(dim=1)
    assert float(own.mean()) > float((whole.method.bank @ rows.T).mean())
    stop(tmp_path / "part", 3, 1, "hadis", model=small_hadis(bank_size=50))
    resumed = make_trainer(tmp_path / "part", model=small_hadis(bank_size=50))
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


def test_it_holds_what_decides_the_run_in_plain_types(tmp_path: Path) -> None:
    recipe = {"method": "HaDis", "published": {"acc": 93.0}}
    trainer = make_trainer(tmp_path, recipe=recipe)
    trainer.fit()
    state = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)
    assert len(state["history"]) == 7
    assert state["phase"] == {"name": "last", "index": 2, "epochs": 2}
    assert state["settings"] == trainer.settings()
    assert set(state["versions"]) == {"deepclust_ext", "torch", "numpy"}
    some = {
        "method": "HaDis",
        "method.momentum": 0.996,
        "phases.1.pseudo_labels": 2,
        "phases.0.passes.0": "images: warmup",
        "optimizer.lr": 0.05,
        "learning_rate.warmup": 1.0,
        "kmeans.n_init": 10,
        "data.images.count": 50,
        "data.images.shape": "(1, 8, 8)",
        "recipe.published.acc": 93.0,
    }
    assert some.items() <= state["settings"].items()
    assert all(isinstance(value, str | int | float | bool | None) for value in state["settings"].values())


class Named(Scans):
    names = ("a.png",) * 50


def phases(**changes: Any) -> tuple[Phase, ...]:
    return tuple(replace(phase, **changes) if phase.name == "main" else phase for phase in PHASES["hadis"])


#: A change of the run, and the setting with both values that the message must have.
CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "method": (
        lambda: {"model": small_clc(), "config": config_of("clc")},
        "method: expected 'HaDis' as in .* got 'CLC'",
    ),
    "argument": (lambda: {"model": small_hadis(momentum=0.5)}, "method.momentum: expected 0.996 as in .*, got 0.5"),
    "epochs": (lambda: {"config": config_of(phases=phases(epochs=4))}, "epochs: expected 7 as in .*, got 8"),
    "labels": (
        lambda: {"config": config_of(phases=phases(pseudo_labels=1))},
        "phases.1.pseudo_labels: expected 2 as in .*, got 1",
    ),
    "resample": (
        lambda: {"config": config_of(phases=phases(resample=False))},
        "phases.1.resample: expected True as in .*, got False",
    ),
    "terms": (
        lambda: {"config": config_of(phases=phases(passes={"images": "warmup"}))},
        "phases.1.passes.0: expected 'images: all' as in .*, got 'images: warmup'",
    ),
    "phase's name": (
        lambda: {"config": config_of(phases=phases(name="x"))},
        "phases.1.name: expected 'main' .*, got 'x'",
    ),
    "batch size": (lambda: {"config": config_of(batch_size=8)}, "batch_size: expected 16 as in .*, got 8"),
    "schedule": (
        lambda: {"config": config_of(learning_rate=LearningRate("warmup_cosine", 1.0, horizon=9.0))},
        "learning_rate.horizon: expected None as in .*, got 9.0",
    ),
    "optimizer": (
        lambda: {"config": config_of(optimizer=replace(HaDis.default_optimizer, lr=0.1))},
        "optimizer.lr: expected 0.05 as in .*, got 0.1",
    ),
    "optimizer's name": (
        lambda: {"config": config_of(optimizer=OptimizerSettings("adam"))},
        "optimizer.name: expected 'sgd' as in .*, got 'adam'",
    ),
    "k-means": (
        lambda: {"config": config_of(kmeans=KMeansSettings(n_init=3))},
        "kmeans.n_init: expected 10 as in .*, got 3",
    ),
    "seed": (lambda: {"config": config_of(seed=1)}, "seed: expected 0 as in .*, got 1"),
    "view": (
        lambda: {"views": [RandomAffine(), RandomAffine(degrees=5)]},
        r"views.1: expected 'RandomAffine\(degrees=15.*got 'RandomAffine\(degrees=5",
    ),
    "arguments of a view": (
        lambda: {"views": [RandomAffine(), partial(torch.add, other=1)]},
        r"views.1: expected 'RandomAffine.*; .*views.1.function: expected 'nothing' .*; .*other: .*, got 1",
    ),
    "test view": (lambda: {"test_view": nn.Identity()}, r"test_view: expected None as in .*, got 'Identity\(\)'"),
    "count": (lambda: {"data": Scans(count=51)}, "data.images.count: expected 50 as in .*, got 51"),
    "pixels": (
        lambda: {"data": Scans(seed=9)},
        "^data.images: expected the same values as in .*, got others; a run goes on only with the data that it began "
        "with: bring those back, or train anew, which overwrite does in the same folder$",
    ),
    "names": (lambda: {"data": Named()}, "^data.images: expected the same names as in .*, got others; a run goes on"),
    "data sets": (
        lambda: {"data": {"images": Scans(), "more": Scans()}},
        "data.more.count: expected 'nothing' as in .*, got 50",
    ),
    "recipe": (
        lambda: {"recipe": {"name": "hadis-digits"}},
        "recipe.name: expected 'nothing' as in .*, got 'hadis-digits'",
    ),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    stop(folder, 1, 0, "hadis")
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_refused_with_the_setting_and_both_values(stored: Path, change: str) -> None:
    options, message = CHANGES[change]
    before = (stored / CHECKPOINT_NAME).read_bytes()
    with pytest.raises(ValueError, match=message):
        make_trainer(stored, **options()).fit(resume=True)
    assert (stored / CHECKPOINT_NAME).read_bytes() == before


def test_every_setting_is_compared(stored: Path) -> None:
    trainer = make_trainer(stored)
    for name, value in trainer.settings().items():
        message = rf"^{re.escape(name)}: expected .* as in .*, got 'changed'$"
        if name == "data.images.content":
            message = "^data.images: expected the same values as in .*, got others; "
        with pytest.raises(ValueError, match=message):
            checkpoint_module.check_settings(trainer.settings(), trainer.settings() | {name: "changed"}, stored)
        assert value != "changed"


@pytest.mark.parametrize(
    "name", ["data.images.values", "sync_batch_norm", "kmeans.n_init", "method.momentum", "recipe.batch_size"]
)
def test_a_checkpoint_of_an_older_version_is_called_one(stored: Path, name: str) -> None:
    now = make_trainer(stored).settings() | {"data.images.values": "a hash", "recipe.name": "x", "recipe.batch_size": 8}
    before = {each: value for each, value in now.items() if each != name}
    message = (
        f"resume: expected a checkpoint of this version of deepclust_ext at {stored}, got one of an older version, "
        f"which does not know {name}: go on with the version that wrote it, or train anew, which overwrite does in "
        "the same folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checkpoint_module.check_resumed(
            {"settings": before, "versions": checkpoint_module.versions()},
            now,
            stored,
            last_phase=1,
            fixed_epochs=None,
            other_versions=False,
        )


def test_other_versions_are_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(tmp_path, 2, 0, "clc")
    monkeypatch.setattr(checkpoint_module, "__version__", "9.9")
    message = (
        r"versions.deepclust_ext: expected '.*' as in .*, got '9.9'; go on with the version that wrote it, or train "
        "anew, which overwrite does in the same folder$"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, method="clc").fit(resume=True)
    assert len(make_trainer(tmp_path, method="clc").fit(resume=True, other_versions=True)) == 3


def test_a_number_of_workers_is_no_other_run(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    stop(tmp_path / "part", 6, 0, "hadis")
    resumed = make_trainer(tmp_path / "part", config=config_of(num_workers=1))
    resumed.fit(resume=True)
    assert_same_run(whole, resumed)


def test_not_finite_names_tensors() -> None:
    bad = torch.tensor([1.0, torch.inf])
    assert not_finite({"fine": torch.ones(2), "count": torch.tensor(3), "bad": bad}) == ["bad"]
    assert not_finite({}) == []


@pytest.mark.parametrize("place", [0, 25, 49])
def test_other_pixels_of_the_sample_are_another_data_set(place: int) -> None:
    data = Scans()
    before = checkpoint_module.fingerprint(data)
    assert checkpoint_module.fingerprint(Scans()) == before
    sample = {i * 49 // (checkpoint_module.SAMPLE - 1) for i in range(checkpoint_module.SAMPLE)}
    data.images[place, 0, 7, 7] += 1e-3
    assert (checkpoint_module.fingerprint(data) != before) == (place in sample)
    assert {0, 49} <= sample


def test_every_pixel_counts_where_that_costs_little() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(100, 4, 4), dtype=np.uint8)
    other = pixels.copy()
    other[1, 2, 2] ^= 1  # an image that is not in the sample

    def as_tensors(values: Any) -> Any:
        return TensorDataset(torch.from_numpy(values).unsqueeze(1))

    for make in (as_tensors, load_images):
        found = [checkpoint_module.fingerprint(make(values)) for values in (pixels, pixels.copy(), other)]
        assert found[0] == found[1]
        assert [name for name in found[0] if found[0][name] != found[2][name]] == ["values"]


def test_images_that_are_never_the_same_have_no_content() -> None:
    class Moving(Scans):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) + torch.rand(())

    first, second = (checkpoint_module.fingerprint(Moving()) for _ in range(2))
    assert first == second
    assert first["content"] == "not the same twice"


def of_epochs(epochs: int, **changes: Any) -> TrainConfig:
    phases = (Phase("first", 1, {"images": "warmup"}), Phase("main", epochs - 1, pseudo_labels=2))
    return config_of(phases=phases, **{"learning_rate": LearningRate("warmup_cosine", 1.0, horizon=9.0)} | changes)


@pytest.mark.parametrize("rate", [LearningRate("warmup_cosine", 1.0, horizon=9.0), LearningRate()])
def test_a_run_can_have_more_epochs(tmp_path: Path, rate: LearningRate) -> None:
    def recipe(epochs: int) -> dict[str, Any]:
        return {"phases": [{"epochs": 1}, {"epochs": epochs - 1}]}

    long = make_trainer(tmp_path / "long", config=of_epochs(6, learning_rate=rate), recipe=recipe(6))
    long.fit()
    make_trainer(tmp_path / "more", config=of_epochs(3, learning_rate=rate), recipe=recipe(3)).fit()
    more = make_trainer(tmp_path / "more", config=of_epochs(6, learning_rate=rate), recipe=recipe(6))
    assert len(more.fit(resume=True)) == 6
    assert_same_run(long, more)
    with pytest.raises(ValueError, match="^epochs: expected 6 as in .*, got 5; phases.1.epochs: expected 5 .* got 4$"):
        make_trainer(tmp_path / "more", config=of_epochs(5, learning_rate=rate), recipe=recipe(6)).fit(resume=True)


@pytest.mark.parametrize(
    ("changes", "model", "why"),
    [
        (
            {"learning_rate": LearningRate("warmup_cosine", 1.0)},
            {},
            "without a horizon the learning rate falls over all epochs of the run",
        ),
        ({}, {"momentum_rises": True}, "HaDis goes by the share of the run that is done"),
    ],
)
def test_more_epochs_are_refused_where_they_change_the_first(
    tmp_path: Path, changes: dict[str, Any], model: dict[str, Any], why: str
) -> None:
    stop(tmp_path, 1, 0, "hadis", config=of_epochs(3, **changes), model=small_hadis(**model))
    what = f"{why}, so in a run of 4 epochs the first 3 would have been others: train a new one of 4$"
    with pytest.raises(ValueError, match=rf"^epochs: expected 3 as in .*, got 4; .*; {what}"):
        make_trainer(tmp_path, config=of_epochs(4, **changes), model=small_hadis(**model)).fit(resume=True)
    with pytest.raises(ValueError, match=r"^epochs: expected 3 as in .*, got 2; phases.1.epochs: .* got 1$"):
        make_trainer(tmp_path, config=of_epochs(2, **changes), model=small_hadis(**model)).fit(resume=True)


def test_more_epochs_of_an_earlier_phase_are_another_run(tmp_path: Path) -> None:
    stop(tmp_path, 1, 0, "hadis", config=of_epochs(3))
    phases = (Phase("first", 2, {"images": "warmup"}), Phase("main", 2, pseudo_labels=2))
    with pytest.raises(ValueError, match=r"^phases.0.epochs: expected 1 as in .*, got 2$"):
        make_trainer(tmp_path, config=replace(of_epochs(3), phases=phases)).fit(resume=True)


def test_generators_of_gpus_that_are_not_there_are_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    state = checkpoint_module.random_state() | {"cuda": [torch.tensor([1]), torch.tensor([2])]}
    restored: dict[int, int] = {}
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device: restored.update({device: int(value)}))
    for devices, expected in ((2, {0: 1, 1: 2}), (3, {0: 1, 1: 2})):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        checkpoint_module.restore_random_state(state)
        assert restored == expected
    for devices, expected in ((1, {0: 1}), (0, {})):
        restored.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        with pytest.warns(RuntimeWarning, match=f"a machine with 2 GPUs, and here are {devices}") as caught:
            checkpoint_module.restore_random_state(state)
        assert (restored, len(caught)) == (expected, 1)
