"""The command train: how it stops and goes on, and what it refuses to go on with."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from deepclust_ext.training.files import load_checkpoint
from tests.runs.runfolders import RECIPE, make_run, start, write_images, write_recipe
from tests.training.runs import without_seconds

#: A module with a network that takes ten minutes once the run has begun.
SLOW = """
import sys
import time
from pathlib import Path
from torch import nn
from tests.runs.runfolders import tiny_network

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = tiny_network()

    def forward(self, images):
        if Path("run/checkpoint.pt").exists():
            print("a step that takes long", file=sys.stderr, flush=True)
            time.sleep(600)
        return self.network(images)

def network():
    return Slow()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"), "--labels", "folders", "--score-every", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve epochs, which nothing stopped."""
    return make_run(tmp_path_factory.mktemp("whole"), "--epochs", "12")


def test_resume_takes_what_the_run_was_told_and_new_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path, "--seed", "3", "--precision", "bf16")
    (tmp_path / "images").rename(tmp_path / "moved")
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3"]) == 1
    assert "images: expected a folder or a file of images, found nothing" in capsys.readouterr().err
    moved = str(tmp_path / "moved")
    assert main(["train", moved, "--resume", "--out", str(out), "--epochs", "3", "--labels", "folders"]) == 0
    record = json.loads((out / "run.json").read_text())
    assert (record["config"]["seed"], record["config"]["precision"]) == (3, "bf16")
    assert record["source"]["data"] == [moved]
    assert 0 <= record["scores"]["acc"] <= 1


def test_a_resumed_run_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path, "--epochs", "3")
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "5"]) == 0
    assert "\n5 epochs, 2 left, 14 steps of " in capsys.readouterr().err
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"seconds": {}}))  # as after a kill
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "steps of" not in capsys.readouterr().err
    seconds = json.loads((out / "run.json").read_text())["seconds"]
    assert seconds["total"] > seconds["training"] > 0


def test_more_epochs_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path)
    whole = make_run(tmp_path / "whole", "--epochs", "3")
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3"]) == 0
    assert recipes.load(out / "recipe.yaml").epochs == 3
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (whole, out))
    assert without_seconds(first["history"]) == without_seconds(second["history"])
    assert all(torch.equal(weight, second["method"][name]) for name, weight in first["method"].items())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_the_run_goes_on_to_the_same_bits(
    number: signal.Signals, status: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images"), write_recipe(tmp_path)
    train = ["train", "images", "--recipe", "small.yaml", "--epochs", "12", "--out", "stopped"]
    with start(train, tmp_path) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epoch 2 of 12"):
            assert line
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == status, rest
    assert "stopping after this step; once more to end at once" in rest
    assert "to go on: deepclust-ext train --resume --out stopped" in rest
    assert "checkpoint.pt holds the run, and resume continues it" in rest.splitlines()[-1]
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "stopped"
    assert 2 <= len(load_checkpoint(tmp_path / "stopped" / "checkpoint.pt")["history"]) < 12
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "--out", "stopped"]) == 0
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (whole, tmp_path / "stopped"))
    assert without_seconds(first["history"]) == without_seconds(second["history"])
    assert all(torch.equal(weight, second["method"][name]) for name, weight in first["method"].items())


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "slow.yaml").write_text(RECIPE.replace("tests.runs.runfolders:tiny_network", "slow:network"))
    (tmp_path / "slow.py").write_text(SLOW)
    with start(["train", "images", "--recipe", "slow.yaml", "--out", "run"], tmp_path) as process:
        assert process.stderr is not None
        late = threading.Timer(120, process.kill)
        late.start()
        for said in ("a step that takes long", "once more to end at once"):
            while said not in (line := process.stderr.readline()):
                assert line, "it ended early"
            process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        late.cancel()
    assert process.returncode == 130, rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score-every", "1"], "--score-every: expected none without labels, got 1"),
        (["--set", "backbone.name=resnet19"], "backbone.name: expected one of small,"),
    ],
)
def test_wrong_wishes_for_a_run_to_resume_are_said_before_images_are_read(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("images were read")

    write_recipe(tmp_path).rename(tmp_path / "recipe.yaml")
    source = {"data": [str(tmp_path / "images")], "root": None, "size": None, "scale": "type", "labels": None}
    (tmp_path / "run.json").write_text(json.dumps({"status": "stopped", "config": {}, "source": source}))
    monkeypatch.setattr("deepclust_ext.runs.source.load_images", read)
    assert main(["train", "--resume", "--out", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_would_make_it_another_run_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "recipe.yaml").read_text()
    assert main(["train", "--resume", "--out", str(run), "--set", "optimizer.lr=0.5"]) == 1
    assert "optimizer.lr: expected 0.001" in capsys.readouterr().err
    assert (run / "recipe.yaml").read_text() == before


def test_a_run_goes_on_with_as_many_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(write_images(tmp_path / "images", count=19))
    assert main(["train", images, "--resume", "--out", str(run)]) == 1
    message = f"DATA: expected 60 images, with which the run in {run} began, got 57; others need a run of their own"
    assert capsys.readouterr().err.splitlines()[-1] == f"deepclust-ext: {message}"


def test_a_run_goes_on_with_the_same_images_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(write_images(tmp_path / "images", seed=1))
    assert main(["train", images, "--resume", "--out", str(run)]) == 1
    message = (
        f"DATA: expected the same values as in {run / 'checkpoint.pt'}, got others; a run goes on only with the data "
        "that it began with: bring those back, or train anew, which overwrite does in the same folder"
    )
    assert capsys.readouterr().err.splitlines()[-1] == f"deepclust-ext: {message}"


def test_a_run_of_another_version_proposes_no_python(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deepclust_ext.training.checkpoint.__version__", "9.9")
    assert main(["train", "--resume", "--out", str(run)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("deepclust-ext: versions.deepclust_ext: expected '")
    cure = "go on with the version that wrote it, or train anew, which overwrite does in the same folder"
    assert said.endswith(f"got '9.9'; {cure}")
    assert main(["evaluate", str(run)]) == 0  # the clusters are there all the same
