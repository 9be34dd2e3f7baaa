"""The command boost: from a run to one that needs it no more, stopped and resumed to the bit, and wrong uses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from deepclust_ext.inference.weights import digest_of
from deepclust_ext.methods import Boost
from deepclust_ext.recipes.boost import boost_recipe
from deepclust_ext.runs import Options, open_run, train
from deepclust_ext.training import Trainer
from deepclust_ext.training.files import load_checkpoint
from tests.runs.runfolders import make_run

QUICK = ("--epochs", "3", "--batch-size", "20", "--set", "model.hidden_dim=8", "--set", "kmeans.n_init=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"))


def weights_of(path: Path) -> dict[str, Any]:
    return dict(load_checkpoint(path / "checkpoint.pt")["method"])


def test_a_run_is_boosted_and_needed_no_more(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, out = tmp_path / "old", tmp_path / "new"
    shutil.copytree(run, old)
    assert main(["boost", str(old / "checkpoint.pt"), *QUICK, "--profile", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "60 images in " in printed.out
    assert f"boosts {old}, CLC after 2 epochs" in (out / "train.log").read_text()
    record = json.loads((out / "run.json").read_text())
    digest = digest_of(open_run(run).trained.method.inference_network())
    assert record["start"] == {"run": str(old), "method": "clc", "weights": digest}
    assert record["config"]["method"] == "boost"
    recipe = recipes.load(out / "recipe.yaml")
    assert (recipe.model["base"], recipe.model["base_model"]["queue_size"]) == ("CLC", 16)
    shutil.rmtree(old)
    clusters = (out / "clusters.csv").read_bytes()
    opened = open_run(out)
    assert opened.trained.centers is not None
    for command in (["cluster", str(out)], ["evaluate", str(out), "--labels", "folders"], ["embed", str(out)]):
        ending = {"cluster": ["--out", str(tmp_path / "c.csv")], "embed": ["--out", str(tmp_path / "e.npz")]}
        assert main([*command, *ending.get(command[0], [])]) == 0
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "clusters.csv").read_bytes() == clusters
    assert json.loads((out / "run.json").read_text())["start"] == record["start"]


def test_a_boost_that_is_killed_ends_with_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boost", str(run), *QUICK, "--out", str(tmp_path / "whole")]) == 0
    after_step, steps = Boost.after_step, iter(range(100))

    def after(self: Boost, progress: float = 0.0) -> None:
        after_step(self, progress)
        if next(steps) == 4:  # within the second of three epochs of three steps
            raise RuntimeError("killed")

    monkeypatch.setattr(Boost, "after_step", after)
    assert main(["boost", str(run), *QUICK, "--out", str(tmp_path / "part")]) == 1
    assert "killed" in capsys.readouterr().err
    monkeypatch.setattr(Boost, "after_step", after_step)
    assert main(["train", "--resume", "--out", str(tmp_path / "part")]) == 0
    whole, part = weights_of(tmp_path / "whole"), weights_of(tmp_path / "part")
    assert all(torch.equal(weight, part[name]) for name, weight in whole.items())
    assert (tmp_path / "part" / "clusters.csv").read_bytes() == (tmp_path / "whole" / "clusters.csv").read_bytes()


def test_a_boost_that_is_killed_before_its_first_checkpoint_starts_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    command = ["boost", str(run), *QUICK, "--out", str(out)]

    def killed(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", killed)
        assert main(command) == 1
        (out / ".recipe.tmp.yaml").touch()  # as where it is killed while it writes
        capsys.readouterr()
        assert main(["train", "--resume", "--out", str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("checkpoint.pt, got none; the command that began the run starts it over")
    (out / "notes.txt").touch()
    assert main(command) == 1
    assert "which holds notes.txt" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    assert main(command) == 0
    assert (out / "clusters.csv").is_file()
    capsys.readouterr()
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.endswith(
        f"; `deepclust-ext train --resume --out {out}` continues the run in it, --overwrite replaces it\n"
    )


@pytest.mark.parametrize("setting", ["model.base=SACC", "model.base_model.queue_size=3", "backbone.name=resnet18"])
def test_what_the_run_decides_is_not_set(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    assert main(["boost", str(run), "--set", setting, "--out", str(tmp_path / "new")]) == 1
    key = setting.split("=")[0]
    expected = f"--set: expected no {key}, which is that of the run to boost, the argument RUN, got "
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_notes_of_the_images_are_said_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = run.parent / "images" / "notes.txt"
    notes.write_text("no image")
    assert main(["boost", str(run), *QUICK, "--out", str(tmp_path / "new")]) == 0
    notes.unlink()
    assert capsys.readouterr().err.count("1 file skipped, first notes.txt") == 1


def test_a_wrong_setting_names_the_option(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boost", str(run), "--set", "model.width=3", "--out", str(tmp_path / "new")]) == 1
    assert "deepclust-ext: --set model: expected one of base, " in capsys.readouterr().err
    assert main(["boost", str(run), "--set", "phases=[]", "--out", str(tmp_path / "new")]) == 1  # reads no images
    assert capsys.readouterr().err == "deepclust-ext: --set phases: expected at least one epoch, got 0\n"


def test_the_recipe_is_the_run_s_but_for_how_it_learns() -> None:
    trained = recipes.load("sacc-stl10")
    recipe = boost_recipe(trained)
    assert recipe.name == "boost-stl10"
    assert recipe.data.unlabelled == 0
    assert recipe.backbone == trained.backbone
    assert recipe.views == (trained.views[0], trained.views[2])
    assert recipe.test_view == trained.test_view
    assert recipe.model["base_model"]["cluster_weight"] == 1.0
    assert recipe.phases == recipes.load("boost-digits").phases
    assert recipes.changed(recipe, {}) == recipe
    with pytest.raises(ValueError, match="run: expected one of HaDis, .* whose network learns, got one of TURTLE"):
        boost_recipe(recipes.load("turtle-digits"))


def test_without_a_run_to_start_from_nothing_is_trained(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", "--recipe", "boost-digits", "--out", str(tmp_path / "new")]) == 1
    assert "start: expected a run, whose network Boost goes on from" in capsys.readouterr().err
    images = str(run.parent / "images")
    assert main(["train", images, "--clusters", "3", "--method", "boost", "--out", str(tmp_path / "new")]) == 1
    assert "got 'Boost', which takes a run, whose network Boost goes on from" in capsys.readouterr().err
    opened = open_run(run)
    with pytest.raises(ValueError, match="start: expected none for CLC, which begins anew"):
        train(opened.recipe, opened.images(), tmp_path / "new", Options(), start=opened)
    assert main(["boost", str(tmp_path)]) == 1
    assert main(["boost", str(run), "--out", str(run)]) == 1
    assert "--out: expected an empty folder" in capsys.readouterr().err
