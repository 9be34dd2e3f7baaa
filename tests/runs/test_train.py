"""Whole runs in Python: they are the trainer's own to the bit, leave others' files alone, and say where images were."""

import contextlib
import csv
import json
import shutil
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepclust_ext import recipes
from deepclust_ext.data import Images, load_images
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.runs import Options, Run, Source, open_run, train
from deepclust_ext.runs.board import Board
from deepclust_ext.runs.estimate import seconds_of_a_step
from deepclust_ext.runs.scores import score_run
from deepclust_ext.runs.train import _clear, check_folder
from deepclust_ext.training import seed_everything
from deepclust_ext.training.files import RunFolder, load_checkpoint
from tests.runs.runfolders import write_images, write_recipe
from tests.training.runs import without_seconds


@pytest.fixture
def images(tmp_path: Path) -> Any:
    return load_images(write_images(tmp_path / "images"))


@pytest.fixture
def recipe(tmp_path: Path) -> recipes.Recipe:
    test_view = {"name": "resize", "size": 12}
    return recipes.load(write_recipe(tmp_path), {"test_view": test_view})


def small_run(tmp_path: Path, images: Any, recipe: recipes.Recipe, **options: Any) -> Run:
    return train(recipe, images, tmp_path / "run", Options(**options), source=Source((str(tmp_path / "images"),)))


def test_looks_and_estimates_change_nothing(tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    run = small_run(tmp_path, images, recipe)
    plain = make_trainer(recipe, images, tmp_path / "plain")
    state, before = torch.get_rng_state(), {name: weight.clone() for name, weight in plain.method.state_dict().items()}
    assert seconds_of_a_step(plain) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, before[name]) for name, weight in plain.method.state_dict().items())
    plain.fit()
    weights = load_checkpoint(run.path / "checkpoint.pt")["method"]
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.method.state_dict().items())
    looks = ("probe_rank", "probe_clusters", "probe_agreement")
    ours = [{key: value for key, value in epoch.items() if key not in looks} for epoch in run.history]
    assert without_seconds(ours) == without_seconds(plain.history)


@pytest.mark.parametrize("method", ["HaDis", "SACC"])
def test_other_methods_run_too(method: str, tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    views = [{"name": "affine"}] * (3 if method == "SACC" else 2)
    phases = (
        [{"name": "main", "epochs": 2, "pseudo_labels": 1}] if method == "HaDis" else [{"name": "main", "epochs": 2}]
    )
    changes = {
        "method": method,
        "views": views,
        "batch_size": 16,
        "phases": phases,
        "model": {"hidden_dim": 8, "embedding_dim": 4},
    }
    run = small_run(tmp_path, images, recipes.changed(recipe, changes))
    opened = open_run(run.path)
    rows, shares = opened.trained.infer(images)
    expected = run.trained.infer(images)
    assert torch.equal(rows, expected[0])
    assert torch.equal(shares, expected[1])
    assert (run.path / "centers.npy").exists() == (method == "HaDis")
    if method == "HaDis":  # a run that has not ended has no centers yet: they come from its images
        (run.path / "centers.npy").unlink()
        torch.testing.assert_close(open_run(run.path).trained.infer(images)[1], shares)


def test_the_images_are_embedded_once_at_the_end(
    tmp_path: Path, images: Any, recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepclust_ext.runs.page.report_html", lambda *arguments, **options: "")  # it reads images
    phases = [{"name": "main", "epochs": 1, "pseudo_labels": "once"}]
    changes = {"method": "HaDis", "model": {"hidden_dim": 8, "embedding_dim": 4}, "phases": phases}
    recipe = recipes.changed(recipe, changes)
    seen: list[int] = []

    class Counted(Images):
        def images_at(self, indices: Sequence[int]) -> Any:
            seen.extend(indices if (tmp_path / "run" / "checkpoint.pt").exists() else ())
            return super().images_at(indices)

    counted = Counted(images.store)
    run = train(recipe, counted, tmp_path / "run")
    assert len(seen) == 60 + 56 + 60 + 60  # for pseudo-labels, the batches of the epoch, the probe, the clusters
    rows, shares = run.trained.infer(counted)
    with (run.path / "clusters.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["cluster"]) for row in table] == shares.argmax(1).tolist()
    torch.testing.assert_close(run.trained.shares_of(rows), shares)


def test_files_of_others_stay(tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    small_run(tmp_path, images, recipe)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: expected an empty folder, got .*, which holds checkpoint"):
        small_run(tmp_path, images, recipe)
    (tmp_path / "run" / "skipped.csv").write_text("of the run before")
    small_run(tmp_path, images, recipe, overwrite=True, seed=1)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "skipped.csv").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["seed"] == 1
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("epoch 2 of 2") == 1


def test_a_thread_that_is_not_the_main_one_can_train(tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(small_run(tmp_path, images, recipe)))
    thread.start()
    thread.join()
    assert len(runs[0].history) == 2


def test_tensorboard_has_every_epoch(tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = small_run(tmp_path, images, recipe)
    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(epoch["epoch"], pytest.approx(epoch["loss"])) for epoch in run.history]


def test_a_folder_that_is_moved_away_is_made_again(
    tmp_path: Path, images: Any, recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TensorBoard too, whose writer of a file that is gone ends the run."""
    write = Board.write

    def move_first(board: Board, record: Any, found: Any) -> Any:
        if record["epoch"] == 2:
            (tmp_path / "run").rename(tmp_path / "moved")
        return write(board, record, found)

    monkeypatch.setattr(Board, "write", move_first)
    run = small_run(tmp_path, images, recipe)
    assert len(open_run(run.path).history) == 2
    if find_spec("tensorboard") is not None:
        assert all(any((folder / "tensorboard").iterdir()) for folder in (run.path, tmp_path / "moved"))


def test_a_place_where_tensorboard_cannot_write_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run" / "tensorboard"
    with Board(folder) as board:
        board.write({"epoch": 1, "loss": 0.5}, {})
        folder.parent.rename(tmp_path / "moved")
        (tmp_path / "run").touch()
        with pytest.raises(OSError, match=f"^{folder}: cannot be written: Not a directory$"):
            board.write({"epoch": 2, "loss": 0.5}, {})


def test_what_a_kill_leaves_of_a_run_that_is_overwritten_can_be_overwritten(
    tmp_path: Path, images: Any, recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, right = small_run(tmp_path, images, recipe).path, Path.unlink
    for count in range(20):
        folder = Path(shutil.copytree(whole, tmp_path / f"{count}"))
        removed: list[Path] = []

        def unlink(path: Path, missing_ok: bool = False, removed: Any = removed, count: int = count) -> None:
            if len(removed) == count:
                raise KeyboardInterrupt
            removed.append(path)
            right(path, missing_ok)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", unlink)
            _clear(RunFolder(folder))
        check_folder(folder, resume=False, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_images_that_cannot_be_opened_again(tmp_path: Path, images: Any, recipe: recipes.Recipe) -> None:
    array = np.zeros((60, 12, 12), np.uint8)
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape)
    train(recipe, load_images(array), tmp_path / "memory")
    with pytest.raises(ValueError, match="data: expected images, since .* was given its own in memory, got none"):
        open_run(tmp_path / "memory").images()
    assert len(open_run(tmp_path / "memory").images(tmp_path / "images")) == 60  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score_every: expected none without labels, got 3"):
        train(recipe, images, tmp_path / "none", Options(score_every=3))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(()), "data: expected a folder of images, got none"),
        (Source(("cifar10", "stl10"), root="."), "data: expected one name where there is a root, got cifar10, stl10"),
        (Source(("cifar10",), root=".", labels="folders"), "labels: expected 'own' or none for cifar10, got 'folders'"),
        (Source(("cifar11",), root="."), "name: expected one of"),
        (Source(("digits",), labels="folders"), "labels: expected 'own' or none for digits, got 'folders'"),
    ],
)
def test_wrong_sources(source: Source, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source.open()


def test_a_data_set_by_its_name_has_its_own_labels() -> None:
    own, plain = (Source(("digits",), labels=labels).resolved().open() for labels in ("own", None))
    assert torch.equal(own.labels, plain.labels)  # type: ignore[attr-defined]


def test_a_source_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    source = Source(("images",), labels="folders").resolved()
    monkeypatch.chdir("/")
    assert source.name == "images"
    assert source.labels == "folders"
    images: Any = source.open()
    assert images.classes == ("bars", "blobs", "rings")


def test_a_seed_that_no_run_can_have_is_refused_before_any_work(tmp_path: Path, recipe: recipes.Recipe) -> None:
    class Unread(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            raise AssertionError("images were counted")

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("an image was read")

    refusal = pytest.raises(ValueError, match="seed: expected 0 to 4294967295, got 4294967296")
    with refusal:
        Options(seed=2**32)
    with refusal:
        make_trainer(recipe, Unread(), tmp_path / "out", seed=2**32)
    before = torch.get_rng_state()
    with refusal:
        seed_everything(2**32)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="seed: expected 0 to 18446744073709551615, got 18446744073709551616"):
        score_run(None, Unread(), seed=2**64)  # type: ignore[arg-type]
