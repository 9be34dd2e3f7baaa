"""The commands data and recipes: output, JSON, and wrong uses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from tests.runs.runfolders import write_images, write_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty gray images, two in color of another size, and two files that are no images."""
    write_images(tmp_path)
    for index in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / "rings" / f"color{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "bars" / "broken.png").write_bytes(b"nor this")
    return tmp_path


def test_what_a_folder_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder), "--labels", "folders", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["channels"], found["dtype"]) == (62, 3, "uint8")
    assert found["kinds"] == [
        {"height": 12, "width": 12, "bands": 1, "type": "uint8", "images": 60},
        {"height": 20, "width": 30, "bands": 3, "type": "uint8", "images": 2},
    ]
    assert found["classes"] == {"bars": 20, "blobs": 20, "rings": 22}
    assert {entry["path"] for entry in found["skipped"]} == {"notes.txt", "bars/broken.png"}
    assert main(["data", str(folder), "--labels", "folders"]) == 0
    printed = capsys.readouterr().out
    assert "62 images, seen with 3 channels of uint8" in printed
    assert "60 of     12 x 12 pixels, 1 band, uint8" in printed
    assert "3 classes of 20 to 22 images" in printed
    assert "such as notes.txt: no image by its name" in printed
    assert "60 gray images among colored ones" in printed
    assert printed.count("62 images") == 1
    assert printed.count("notes.txt") == 1


def test_a_table_of_labels_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "labels.csv has the columns path and label: --labels {} takes them for scores"
    (folder / "a.csv").write_text("path,cluster\n")
    (folder / "b.csv").write_bytes(b"\xff,label")
    (folder / "bars" / "labels.csv").write_text('\ufeff"label",more,path\n', encoding="utf-8")
    os.mkfifo(folder / "pipe.csv")
    arguments = ["data", str(folder)]
    assert main(arguments) == 0
    assert f"\nbars/{hint.format(folder / 'bars' / 'labels.csv')}\n" in capsys.readouterr().out
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{name},{name[:2]}\n" for name in names))
    assert main(arguments) == 0
    said = f"\n{hint.format(folder / 'labels.csv')}\n"
    assert said in capsys.readouterr().out
    assert main([*arguments, "--labels", str(folder / "labels.csv")]) == 0  # as it was told
    printed = capsys.readouterr().out
    assert "\n3 classes of 20 to 22 images\n" in printed
    assert "--labels" not in printed
    monkeypatch.setattr("deepclust_ext.runs.source.LOOKED_INTO", 0)
    assert main(arguments) == 0
    assert "--labels" not in capsys.readouterr().out


def test_training_notices_a_table_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = write_images(tmp_path / "my images"), tmp_path / "run"
    (images / "labels.csv").write_text("path,label\n")
    assert main(["train", str(images), "--recipe", str(write_recipe(tmp_path)), "--out", str(out)]) == 0
    hint = f"labels.csv has the columns path and label: --labels '{images}/labels.csv' takes them for scores"
    assert capsys.readouterr().err.splitlines().count(hint) == 1
    assert hint in (out / "train.log").read_text()
    for arguments in (["cluster", str(out)], ["data", str(images), str(out)]):  # of several folders names differ
        assert main(arguments) == 0
        assert "--labels" not in "".join(capsys.readouterr())


def test_sizes_that_are_one_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(write_images(tmp_path)), "--labels", "folders"]) == 0
    assert "\n3 classes of 20 images each\n" in capsys.readouterr().out


def test_what_an_array_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 8), np.uint16))
    assert main(["data", str(tmp_path / "a.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"] == [{"height": 8, "width": 8, "bands": 1, "type": "uint16", "images": 5}]


def test_recipes_are_listed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    assert (
        "60000 images of 32 x 32, K = 10, resnet18, 1000 epochs, published ACC 93.0 %"
        in lines[recipes.names().index("hadis-cifar10")]
    )
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recipes.names()
    for name in recipes.names():
        assert main(["recipes", name]) == 0
        (tmp_path / f"{name}.yaml").write_text(capsys.readouterr().out)
        assert recipes.load(tmp_path / f"{name}.yaml") == recipes.completed(recipes.load(name))
    assert main(["recipes", "clc-digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "CLC"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["data"], 2, "the following arguments are required: DATA"),
        (["data", ""], 1, "DATA: expected folders or files, got an empty name"),
        (
            ["data", "labels.csv"],
            1,
            "ext: expected images, got none; skipped 1 file, first labels.csv: no image of a kind that Pillow reads",
        ),
        (["data", "objects.npy"], 1, "whole .npy file: it is another kind of file, or holds objects"),
        (["data", "nowhere"], 1, "nowhere: expected a folder or a file of images, found nothing"),
        (["data", "empty"], 1, "deepclust-ext: empty: expected images, got none"),
        (["data", "digits"], 1, "DATA: expected a folder or a file, got digits, which lies in none"),
        (["data", "cifar11", "--root", "."], 1, "DATA: expected one of"),
        (["recipes", "hadis-cifar11"], 1, "did you mean 'hadis-cifar10'?"),
        (["recipes", "none.yaml"], 1, "none.yaml"),
        (["recipes", "a", "b"], 2, "unrecognized arguments: b"),
    ],
)
def test_wrong_uses(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "objects.npy").write_bytes(b"no array")
    monkeypatch.chdir(tmp_path)
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == message if message.startswith("deepclust-ext: ") else message in last
