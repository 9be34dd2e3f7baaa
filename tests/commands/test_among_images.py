"""Runs, sorted files and figures that lie among the images: no image too many, and none lost."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepclust_ext.__main__ import main
from deepclust_ext.data import load_images
from tests.runs.runfolders import make_run, write_images, write_recipe

CONSTANT = ["--set", "learning_rate={name: constant}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, the folder of a run, and a link from the images to a folder beside them."""
    folder = tmp_path_factory.mktemp("trained")
    make_run(folder)
    write_images(folder / "new", count=2)
    (folder / "beside").mkdir()
    (folder / "images" / "link").symlink_to(folder / "beside")
    return folder


def no_images(*sources: Any, **settings: Any) -> Any:
    raise AssertionError("images were read")


@pytest.mark.parametrize("out", ["run", "runs/first"])
def test_a_run_is_none_of_the_images_around_it(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = write_images(tmp_path / "images"), tmp_path / "images" / out
    assert main(["train", str(images), "--recipe", str(write_recipe(tmp_path)), "--out", str(run), *CONSTANT]) == 0
    assert main(["cluster", str(run), "--into", str(run / "sorted"), "--mode", "copy"]) == 0
    Image.new("RGB", (30, 20)).save(run / "sweep.png")
    capsys.readouterr()
    assert main(["data", str(images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["channels"]) == (60, 1)
    assert found["skipped"] == [{"path": out, "reason": "the folder of a run"}]
    assert main(["train", "--resume", "--out", str(run), "--epochs", "3"]) == 0
    assert len(load_images(images, on_error="raise")) == 60
    assert len(load_images(run)) == 61  # whoever asks for it gets it


@pytest.mark.parametrize(
    ("arguments", "option", "place"),
    [
        (["cluster", "run", "--into", "images/sorted"], "into", "images/sorted"),
        (["cluster", "run", "new", "--into", "images/sorted"], "into", "images/sorted"),
        (["cluster", "run", "new", "--into", "new/bars/../deep/sorted"], "into", "new/bars/../deep/sorted"),
        (["cluster", "run", "new", "--into", "beside/sorted"], "into", "beside/sorted"),
        (["sweep", "run", "--clusters", "2:3", "--out", "images"], "out", "images"),
        (["sweep", "run", "new", "--clusters", "2:3", "--out", "images/bars"], "out", "images/bars"),
    ],
)
def test_pictures_are_not_written_among_the_images(
    arguments: list[str],
    option: str,
    place: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr("deepclust_ext.runs.source.load_images", no_images)
    assert main(arguments) == 1
    source = "new" if place.startswith("new") else trained / "images"
    expected = f"expected a folder outside of {source}, whose images would include what it gets, got {place}"
    assert capsys.readouterr().err == f"deepclust-ext: --{option}: {expected}\n"


@pytest.mark.parametrize("place", ["sorted", "run/sorted", "images/.sorted", "images/../imagesorted"])
def test_what_is_beside_the_images_is_fine(place: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert main(["cluster", "run", "--into", place]) == 0
    assert len(load_images("images")) == len(list(Path(place).rglob("*.png"))) == 60
    shutil.rmtree(os.path.realpath(place))


@pytest.mark.parametrize("data", ["centers.npy", "../run/checkpoint.pt"])
def test_data_are_not_overwritten_with_the_run_that_holds_them(
    data: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", trained / "copy", dirs_exist_ok=True)
    shutil.copy(trained / "copy" / "checkpoint.pt", trained / "copy" / "centers.npy")
    before = sorted(path.name for path in (trained / "copy").iterdir())
    monkeypatch.chdir(trained / "copy")
    data = data.replace("run", "copy")
    assert main(["train", data, "--clusters", "2", "--out", str(trained / "copy"), "--overwrite"]) == 1
    expected = f"expected a folder without DATA to overwrite, got {trained / 'copy'}, which holds {data}"
    assert capsys.readouterr().err == f"deepclust-ext: --out: {expected}\n"
    assert sorted(path.name for path in (trained / "copy").iterdir()) == before
