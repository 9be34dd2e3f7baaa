"""The command train: what it leaves, what it says, and wrong uses."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from deepclust_ext.inference import load
from deepclust_ext.methods import CLC
from deepclust_ext.runs import open_run
from deepclust_ext.training.files import load_checkpoint
from tests.runs.runfolders import make_run, write_images, write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"), "--labels", "folders", "--score-every", "2")


def test_a_run_leaves_all_there_is_to_know(run: Path) -> None:
    left = {path.name for path in run.iterdir() if path.is_file()}
    assert left == {
        *("recipe.yaml", "run.json", "history.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "run.lock"),
        *("train.log", "clusters.csv", "report.html"),
    }
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "ended"
    assert record["images"] == sum(record["sizes"]) == 60
    assert set(record["scores"]) == {"acc", "nmi", "ari", "silhouette", "sizes"}
    assert {"torch", "deepclust_ext"} <= record["versions"].keys()
    assert record["seconds"]["total"] > record["seconds"]["training"] > 0
    assert record["source"]["data"] == [str(run.parent / "images")]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert all({"probe_rank", "probe_clusters"} <= epoch.keys() for epoch in history)
    assert [{"probe_agreement", "acc", "nmi"} <= epoch.keys() for epoch in history] == [False, True]
    log = (run / "train.log").read_text()
    assert "2 epochs, 14 steps of " in log
    assert "epoch 2 of 2: loss " in log


def test_the_table_is_what_the_loaded_run_says(run: Path) -> None:
    with (run / "clusters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    opened = open_run(run)
    images = opened.images()
    _, shares = load(run).infer(images)
    assert [row["path"] for row in rows] == images.names  # type: ignore[attr-defined]
    assert [int(row["cluster"]) for row in rows] == shares.argmax(1).tolist()
    assert [int(row["second"]) for row in rows] == shares.topk(2).indices[:, 1].tolist()
    torch.testing.assert_close(
        torch.tensor([float(row["confidence"]) for row in rows]), shares.amax(1), atol=1e-4, rtol=0
    )


def test_the_recipe_of_a_run_repeats_it(run: Path, tmp_path: Path) -> None:
    recipe = recipes.load(run / "recipe.yaml")
    assert recipe == recipes.load(run / "recipe.yaml")
    assert recipes.dump(recipe) == (run / "recipe.yaml").read_text()
    arguments = ["train", str(run.parent / "images"), "--recipe", str(run / "recipe.yaml"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (run, tmp_path))
    assert all(torch.equal(weight, second["method"][name]) for name, weight in first["method"].items())


def test_overwrite_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, recipe = write_images(tmp_path / "images"), write_recipe(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("clusters.csv", "report.html", "run.json", "recipe.yaml", "history.jsonl"):
        (mine / name).write_text("mine")
    for out in (mine, images):
        assert main(["train", str(images), "--recipe", str(recipe), "--out", str(out), "--overwrite"]) == 1
        assert "--out: expected an empty folder, or one with a run to overwrite" in capsys.readouterr().err
    assert {path.read_text() for path in mine.iterdir()} == {"mine"}


def test_what_images_lack_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    (images / "notes.txt").write_text("no image")
    options = ["--recipe", str(write_recipe(tmp_path)), "--out", str(tmp_path / "run"), "--set", "optimizer.lr=2e-3"]
    assert main(["train", str(images), *options, "--batch-size", "10"]) == 0
    said = capsys.readouterr().err
    assert "optimizer.lr: 0.002, as asked for\nbatch_size: 10, as asked for\n" in said
    assert "1 file skipped, first notes.txt: no image by its name" in said
    assert said.count("60 images, kept in memory") == 1
    assert recipes.load(tmp_path / "run" / "recipe.yaml").optimizer.lr == 2e-3  # type: ignore[union-attr]


def test_images_that_are_resized_are_kept_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", size=14)
    out = tmp_path / "run"
    assert main(["train", str(images), "--recipe", str(write_recipe(tmp_path)), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "images resized to 12 x 12, as the views need them\n" in said
    assert said.count("60 images, kept in memory") == 1


def test_what_was_asked_for_is_said_instead_of_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = str(write_images(tmp_path / "images")), str(tmp_path / "run")
    assert main(["train", images, "--clusters", "3", "--epochs", "1", "--batch-size", "20", "--out", out]) == 0
    said = capsys.readouterr().err
    assert "\nbatch_size: 20, as asked for\n1 epoch, as asked for\n1 epoch, 3 steps of " in said
    assert "batches of" not in said
    assert "400 epochs" not in said


@pytest.mark.parametrize("options", [["--clusters", "1"], ["--recipe", "small.yaml"]])
@pytest.mark.parametrize("kind", ["folder", "list", "file"])
def test_one_image_is_too_few_and_what_was_skipped_is_said(
    options: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", count=1), write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("bars", "rings"):
        (tmp_path / "images" / name / "00.png").write_bytes(b"no image")
    names = [f"images/{name}/00.png\n" for name in ("bars", "blobs", "rings")]
    (tmp_path / "list.txt").write_text("".join(names))
    data = {"folder": "images", "list": "list.txt", "file": "images/blobs/00.png"}[kind]
    first = {"folder": "bars/00.png", "list": "images/bars/00.png", "file": ""}[kind]
    skipped = f"; skipped 2 files, first {first}: no image of a kind that Pillow reads" if first else ""
    assert main(["train", data, *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"deepclust-ext: DATA: expected at least 2 images, got 1{skipped}"


def test_more_clusters_than_images_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", count=1)
    (images / "bars" / "00.png").write_bytes(b"no image")
    assert main(["train", str(images), "--clusters", "3", "--out", str(tmp_path / "run")]) == 1
    expected = "--clusters: expected 1 to 2, the number of images, got 3; skipped 1 file, first bars/00.png: no image"
    assert expected in capsys.readouterr().err


def test_a_folder_of_any_images_needs_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    (images / "broken.png").write_bytes(b"no image")
    out = tmp_path / "run"
    assert main(["train", str(images), "--clusters", "3", "--epochs", "1", "--profile", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "60 images" in printed.out
    assert "augment" in printed.out  # the profile
    assert "gray" in printed.err  # why the recipe is what it is
    assert "broken.png" in (out / "skipped.csv").read_text()
    assert json.loads((out / "run.json").read_text())["skipped"] == 1


WRONG = [
    (["train", "nowhere", "--clusters", "3"], "nowhere: expected a folder or a file of images, found nothing"),
    (["train", "images", "--clusters", "99", "--recipe", "small.yaml"], "--clusters: expected 1 to 60"),
    (
        ["train", "images", "--clusters", "3", "--method", "kmeans"],
        "--method: expected one of clc, hadis, neighborhead, pici, sacc, turtle, got 'kmeans'",
    ),
    (["train", "images", "--recipe", "hadis-cifar11"], "did you mean 'hadis-cifar10'?"),
    (["train", "images", "--recipe", "small.yaml", "--set", "batchsize=3"], "did you mean 'batch_size'?"),
    (["train", "images", "--recipe", "small.yaml", "--method", "sacc"], "--method: expected clc, as the recipe"),
    (
        ["train", "images", "--recipe", "small.yaml", "--device", "cuda:9"],
        "--device: expected one that torch can use here",
    ),
    (["train", "images", "--recipe", "small.yaml", "--score-every", "1"], "--score-every: expected none without"),
    (["train", "images", "--recipe", "small.yaml", "--out", "images"], "--out: expected an empty folder, got images"),
    (
        ["train", "--resume", "--out", "images"],
        "--out: expected run.json in images, which says where the images lie, got none",
    ),
    (["train", "cifar10", "--root", ".", "--clusters", "3"], "cifar-10-batches-py"),
    (
        ["train", "cifar10", "--clusters", "3"],
        "--root: expected the folder that holds the files of the data set cifar10, got none",
    ),
    (["data", "stl10"], "--root: expected the folder that holds the files of the data set stl10, got none"),
    (
        ["train", "digits", "--clusters", "10"],
        "--recipe: expected one for the data set digits, such as hadis-digits, got none",
    ),
    (["train", "--resume", "--out", "nowhere"], "--out: expected the folder of a run at nowhere, got nothing"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "DATA: expected a folder of images, got none"),
        (["train", "--resume"], "--out: expected the folder of the run to resume, got none"),
        (["train", "images", "--weights", "w.pth"], "--weights: expected none without --backbone, got w.pth"),
        (["train", "images", "--image-size", "9"], "--image-size: expected none without --backbone, got 9"),
        (["embed", "images", "--mean", "0,0", "--std", "1,0.5"], "--mean: expected none without --backbone, got 0,0"),
        (["train", "images"], "--clusters: expected how many, since no recipe says so, got none"),
        (
            ["train", "images", "--backbone", "no:way", "--std", "1,1,1"],
            "--mean, --std: expected both or neither, got one",
        ),
    ],
)
def test_options_that_make_no_sense_together_are_the_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"deepclust-ext: {message}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "batch_size"], "--set: expected KEY=VALUE, such as optimizer.lr=0.1, got 'batch_size'"),
        (["--set", "=3"], "--set: expected KEY=VALUE, such as optimizer.lr=0.1, got '=3'"),
        (["--set", "views=["], "--set: expected YAML after views=, got '['"),
        (["--resume", "--overwrite"], "--overwrite: not allowed with argument --resume"),
    ],
)
def test_options_that_cannot_be_read_are_the_status_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "images", *options])
    assert capsys.readouterr().err == f"deepclust-ext: argument {message}; see deepclust-ext train --help\n"


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_uses_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "images"), write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("deepclust-ext: ")
    assert message in last
    assert not (tmp_path / "runs").exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "sacc-digit"], "did you mean 'sacc-digits'?"),
        (["--recipe", "nothing.yaml"], "nothing.yaml: cannot be read or written: No such file or directory"),
        (["--recipe", "small.yaml", "--method", "sacc"], "--method: expected clc, as the recipe small.yaml has it"),
        (["--recipe", "small.yaml", "--set", "batchsize=3"], "did you mean 'batch_size'?"),
        (["--recipe", "small.yaml", "--set", "optimizer.lr=fast"], "optimizer.lr: expected a finite number"),
        (["--recipe", "small.yaml", "--set", "batch_size=0"], "batch_size: expected at least 2"),
        (["--recipe", "small.yaml", "--set", "test_view.size=x"], "test_view.size: expected an integer"),
        (["--recipe", "small.yaml", "--score-every", "1"], "--score-every: expected none without labels, got 1"),
        (["--recipe", "small.yaml", "--set", "backbone.name=resnet19"], "backbone.name: expected one of small,"),
        (["--recipe", "small.yaml", "--set", "backbone.name=no.such:network"], "backbone.name: expected a module that"),
        (["--recipe", "small.yaml", "--set", "backbone.stem=cifar"], "backbone.stem: expected none for"),
        (["--clusters", "3", "--set", "backbone.name=resnet19"], "backbone.name: expected one of small,"),
        (["--clusters", "3", "--method", "kmeans"], "--method: expected one of"),
        (["--clusters", "3", "--set", "model.width=3"], "deepclust-ext: --set model: expected one of"),
        (["--clusters", "3", "--set", "batchsize=3"], "deepclust-ext: --set: expected one of method, data, "),
        (["--clusters", "3", "--set", "optimizer.lr=x"], "deepclust-ext: --set optimizer.lr: expected a finite number"),
        (["--clusters", "3", "--set", "test_view.size=0"], "deepclust-ext: --set test_view.size: expected at least 1"),
        (
            ["--clusters", "3", "--labels", "nothing.csv"],
            "--labels: expected 'folders', 'own' of an .npz file, or a CSV file",
        ),
        (["--recipe", "small.yaml", "--out", "small.yaml"], "--out: expected a folder, got the file small.yaml"),
        (["--recipe", "small.yaml", "--device", "warp"], "--device: expected one that torch can use here"),
    ],
)
def test_wrong_wishes_are_said_before_images_are_read(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(*arguments: Any) -> Any:
        raise AssertionError("an image was read")

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00.png").touch()
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deepclust_ext.data.stores.Files.read", read)
    assert main(["train", "images", *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


#: Settings out of range, and what is said of each.
BAD_SETTINGS = [
    ("optimizer.lr=-1", "optimizer.lr: expected a finite number of at least 0, got -1.0"),
    ("optimizer={lr: -1}", "optimizer.lr: expected a finite number of at least 0, got -1.0"),
    ("optimizer.name=adagrad", "optimizer.name: expected 'sgd' or 'adam', got 'adagrad'"),
    ("learning_rate.warmup=-1", "learning_rate.warmup: expected a finite number of at least 0, got -1.0"),
    ("learning_rate.floor=0.5", "learning_rate: expected no warmup, floor or horizon for 'constant', got one"),
    ("kmeans.n_init=0", "kmeans.n_init: expected at least 1, got 0"),
    ("batch_size=0", "batch_size: expected at least 2, got 0"),
    ("data.size=0", "data.size: expected at least 1, got 0"),
    ("data.images=-1", "data.images: expected at least 1, got -1"),
    ("views=[]", "views: expected 2 for CLC, got 0"),
    ("views=[{name: resize, size: 0}, {name: affine}]", "views.0.size: expected at least 1, got 0"),
    ("phases=[]", "phases: expected at least one epoch, got 0"),
    ("phases=[{name: a, epochs: 1}, {name: b, epochs: -1}]", "phases.1.epochs: expected at least 0, got -1"),
    ("phases=[{name: a, epochs: 1, passes: {}}]", "phases.0.passes: expected at least one data set, got none"),
    (
        "phases.0.epochs=3",
        "phases.0.epochs: expected sections before its last part, got phases, a list, which is set as a whole",
    ),
    (
        "backbone.stem=cifar",
        "backbone.stem: expected none for 'tests.runs.runfolders:tiny_network', which is no ResNet, got 'cifar'",
    ),
]


@pytest.mark.parametrize(("setting", "message"), BAD_SETTINGS)
def test_a_bad_setting_is_named_once_and_as_it_was_given(
    setting: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", count=1)
    monkeypatch.setattr("deepclust_ext.runs.source.load_images", lambda *sources, **settings: pytest.fail("read"))
    arguments = ["train", str(tmp_path / "images"), "--recipe", str(write_recipe(tmp_path)), "--set", setting]
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"deepclust-ext: --set {message}\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.queue_size=-1", "model.queue_size: expected at least 1, got -1"),
        ("phases=[{name: a, epochs: 1, passes: {images: x}}]", "phases.0.passes: expected terms among all, instance"),
    ],
)
def test_a_bad_setting_of_the_method_is_named_as_it_was_given(
    setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images"), write_recipe(tmp_path)
    arguments = ["--recipe", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"), "--set", setting]
    assert main(["train", str(tmp_path / "images"), *arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"deepclust-ext: --set {message}")


def test_a_setting_of_an_optimizer_that_the_recipe_leaves_to_the_method(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("optimizer: {name: adam, lr: 1.0e-3}\n", ""))
    for loaded in (
        recipes.load(recipe, {"optimizer.lr": 0.5}),
        recipes.changed(recipes.load(recipe), {"optimizer.lr": 0.5}),
    ):
        assert loaded.optimizer == replace(CLC.default_optimizer, lr=0.5)


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere", "--clusters", "3", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
