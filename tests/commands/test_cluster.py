"""The commands cluster, embed and evaluate: output, JSON, and wrong uses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from deepclust_ext.__main__ import main
from tests.runs.runfolders import CLASSES, make_run, write_images, write_recipe

#: What makes HaDis of the small recipe.
HADIS = {
    "method": "HaDis",
    "model": {"hidden_dim": 8, "embedding_dim": 4},
    "phases": [{"name": "main", "epochs": 1, "pseudo_labels": 1}],
    "test_view": {"name": "resize", "size": 12},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("clustered"), "--labels", "folders")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images that the run has not seen."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "new", count=4, seed=1)
    return tmp_path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["symlink", "copy", "list"])
def test_files_are_sorted_as_the_table_says(mode: str, run: Path, here: Path) -> None:
    assert main(["cluster", str(run), "new", "--into", "sorted", "--mode", mode, "--out", "table.csv"]) == 0
    table = read_table(here / "table.csv")
    assert [row["path"] for row in table] == [f"{name}/{index:02}.png" for name in CLASSES for index in range(4)]
    for row in table:
        assert row["cluster"] != row["second"]
        assert 1 / 3 <= float(row["confidence"]) <= 1
        original = here / "new" / row["path"]
        if mode == "list":
            assert str(original) in (here / "sorted" / f"cluster-{row['cluster']}.txt").read_text().splitlines()
            continue
        placed = here / "sorted" / f"cluster-{row['cluster']}" / row["path"]
        assert placed.is_symlink() == (mode == "symlink")
        assert placed.read_bytes() == original.read_bytes()
    assert len(list((here / "sorted").rglob("*.png"))) == (0 if mode == "list" else 12)


def test_the_table_of_sorted_images_lies_among_them(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "new" / "notes.txt").write_text("no image")
    assert main(["cluster", str(run), "new", "--into", "sorted"]) == 0
    assert len(read_table(here / "sorted" / "clusters.csv")) == 12
    assert not (here / "clusters.csv").exists()
    said = capsys.readouterr()
    assert (said.out + said.err).count("skipped") == 1
    assert "1 file skipped, first notes.txt: no image by its name" in said.err


def test_the_clusters_of_the_run_itself_are_written_anew(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "clusters.csv").read_text()
    (run / "clusters.csv").unlink()
    found = run_json(["cluster", str(run)], capsys)
    assert (run / "clusters.csv").read_text() == before
    assert found["images"] == sum(found["sizes"]) == 60
    assert (found["table"], found["into"], found["skipped"]) == (str(run / "clusters.csv"), None, [])
    assert main(["cluster", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("60 images in ")
    assert "sizes: 0: " in printed


def test_names_that_no_table_is_made_for(run: Path, here: Path) -> None:
    (here / "odd").mkdir()
    picture = Image.open(here / "new" / "bars" / "00.png")
    names = ['a "b",c.png', "line\nend.png", "-x.png", "π.png", b"\xff.png".decode(errors="surrogateescape")]
    for name in names:
        picture.save(here / "odd" / name)
    assert main(["cluster", str(run), "odd", "--out", "odd.csv", "--into", "sorted"]) == 0
    assert sorted(row["path"] for row in read_table(here / "odd.csv")) == sorted(names)
    assert sorted(path.name for path in (here / "sorted").rglob("*.png")) == sorted(names)


def test_two_folders_with_equal_names_lose_nothing(run: Path, here: Path) -> None:
    write_images(here / "other" / "new", count=4, seed=2)
    (here / "list.txt").write_text(f"{here}/new/bars/00.png\n{here}/other/new/bars/00.png\nnew/../new/bars/01.png\n")
    assert main(["cluster", str(run), "new", "other/new", "--into", "sorted", "--mode", "copy", "--out", "a.csv"]) == 0
    assert len(list((here / "sorted").rglob("*.png"))) == 24
    assert main(["cluster", str(run), "list.txt", "--into", "listed", "--mode", "copy", "--out", "b.csv"]) == 0
    placed = list((here / "listed").rglob("*.png"))
    assert len(placed) == 3
    assert all(path.resolve().is_relative_to(here / "listed") for path in placed)


@pytest.mark.parametrize("kind", ["npz", "npy", "csv"])
def test_rows_and_names_are_written(kind: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(["embed", str(run), "new", "--format", kind], capsys)
    assert found["rows"] == [12, 4]
    path = here / f"embedding.{kind}"
    if kind == "npz":
        with np.load(path) as stored:
            rows, names = stored["rows"], stored["names"].tolist()
    elif kind == "npy":
        rows, names = np.load(path), (here / "embedding.txt").read_text().splitlines()
    else:
        table = read_table(path)
        names = [row.pop("path") for row in table]
        rows = np.array([[float(value) for value in row.values()] for row in table], np.float32)
    assert names == [f"{name}/{index:02}.png" for name in CLASSES for index in range(4)]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert main(["embed", str(run), "new", "--out", f"again.{kind}"]) == 0
    assert "12 rows of 4 numbers, written: again." in capsys.readouterr().out
    assert (here / f"again.{kind}").read_bytes() == path.read_bytes() or kind == "npz"


def test_scores_by_folders_and_by_a_file(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_folders = run_json(["evaluate", str(run), "new", "--labels", "folders"], capsys)
    assert {"acc", "nmi", "ari", "silhouette", "sizes", "knn_accuracy", "kmeans"} <= by_folders.keys()
    assert (by_folders["images"], by_folders["classes"], by_folders["clusters"]) == (12, 3, 3)
    lines = [f"{name}/{index:02}.png,{name}" for name in CLASSES for index in range(4)]
    (here / "labels.csv").write_text("\n".join(["path,label", *reversed(lines)]))
    assert run_json(["evaluate", str(run), "new", "--labels", "labels.csv"], capsys) == by_folders
    record = json.loads((run / "run.json").read_text())
    own = run_json(["evaluate", str(run)], capsys)
    assert {name: own[name] for name in record["scores"]} == record["scores"]
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"{own['acc']:.4f}" in printed
    assert "k-means on its rows" in printed


def test_scores_are_those_of_the_table(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepclust_ext.evaluation import clustering_accuracy

    table = read_table(run / "clusters.csv")
    true = [row["path"].split("/")[0] for row in table]
    expected = clustering_accuracy(true, [int(row["cluster"]) for row in table])
    assert run_json(["evaluate", str(run)], capsys)["acc"] == expected


WRONG = [
    (["cluster", "nowhere"], "RUN: expected the folder of a run, such as 'train' makes, at nowhere, got nothing"),
    (["cluster", "new"], "got a folder without recipe.yaml"),
    (["cluster", "there.csv"], "RUN: expected the folder of a run, such as 'train' makes, at there.csv, got a file"),
    (["report", "there.csv"], "RUN: expected the folder of a run, such as 'train' makes, at there.csv, got a file"),
    (["cluster", "RUN", "nothing"], "nothing: expected a folder or a file of images"),
    (["cluster", "RUN", "new", "--out", "new"], "--out: expected a file to write, got the folder new"),
    (["cluster", "RUN", "new", "--out", "there.csv"], "--overwrite replaces it"),
    (["cluster", "RUN", "new", "--into", "new"], "--into: expected an empty folder, got new"),
    (["cluster", "RUN", "new", "--into", "there.csv"], "--into: expected a folder, got the file there.csv"),
    (
        ["cluster", "RUN", "array.npy", "--into", "x"],
        "--into: expected images that are files of their own, got array.npy[0]",
    ),
    (["cluster", "RUN", "colors"], "DATA: expected images of 1 channel"),
    (["cluster", "RUN", "new", "--into", "new/sorted"], "--into: expected a folder outside of new, whose images"),
    (["embed", "RUN", "new", "--out", "rows.npy"], "--out: expected no file at rows.txt, which is there"),
    (
        ["embed", "RUN", "lines", "--out", "new.npy"],
        "--out: expected a name that ends in .npz or .csv, since 'a\\nb.png'",
    ),
    (["embed", "RUN", "new", "--device", "warp"], "--device: expected one that torch can use here"),
    (
        ["evaluate", "RUN", "new"],
        "--labels: expected 'folders', 'own' or a CSV file with the columns path and label, got none",
    ),
    (["evaluate", "RUN", "new", "--labels", "own"], "--labels: expected 'folders' or a CSV file, since"),
    (["evaluate", "RUN", "new", "--labels", "x"], "--labels: expected 'folders', 'own' of an .npz file, or a CSV file"),
    (["evaluate", "RUN", "new", "--labels", "there.csv"], "expected the columns path and label"),
]


def test_weights_of_another_network_are_said_in_short(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    values |= {"method": "SACC", "model": {}, "views": values["views"][:1] * 3}
    recipe.write_text(yaml.safe_dump(values))
    assert main(["cluster", str(tmp_path / "run"), "--out", str(tmp_path / "table.csv")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"deepclust-ext: {tmp_path / 'run'}: expected weights of the network in recipe.yaml, got")
    assert said.endswith(" ...")
    assert len(said) < 500


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_uses_are_one_line(
    arguments: list[str], message: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "there.csv").write_text("a,b\n")
    (here / "rows.txt").touch()
    np.save(here / "array.npy", np.zeros((4, 12, 12), np.uint8))
    (here / "colors").mkdir()
    Image.new("RGB", (12, 12)).save(here / "colors" / "a.png")
    (here / "lines").mkdir()
    Image.new("L", (12, 12)).save(here / "lines" / "a\nb.png")
    assert main([str(run) if argument == "RUN" else argument for argument in arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("deepclust-ext: ")
    assert message in last
    assert (here / "there.csv").read_text() == "a,b\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv", "--out", "rows.npz"], "expected a name that ends in .csv, got rows.npz"),
        (["--out", "rows.txt"], "expected a name that ends in .npz, got rows.txt"),
    ],
)
def test_an_ending_that_says_another_format_is_the_status_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", "run", *options]) == 2
    assert capsys.readouterr().err == f"deepclust-ext: --out: {message}\n"


def test_scores_without_labels_are_refused_before_images_are_read(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*arguments: Any) -> Any:
        raise AssertionError("an image was read")

    monkeypatch.setattr("deepclust_ext.data.stores.Files.read", read)
    record = json.loads((run / "run.json").read_text())
    record["source"]["labels"] = None
    (here / "run").mkdir()
    for name in ("recipe.yaml", "checkpoint.pt"):
        (here / "run" / name).write_bytes((run / name).read_bytes())
    (here / "run" / "run.json").write_text(json.dumps(record))
    for arguments in (["run"], ["run", "new"], [str(run), "new"]):
        assert main(["evaluate", *arguments]) == 1
        assert "--labels: expected 'folders', 'own' or a CSV file" in capsys.readouterr().err


def test_scores_by_labels_of_the_data_themselves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(write_images(here / "images").rglob("*.png"))])
    labels = np.repeat(np.arange(3), 20)
    np.savez(here / "scans.npz", train_images=images, train_labels=labels[:, None], test_labels=labels[:7])
    train = ["train", "scans.npz", "--recipe", str(write_recipe(here)), "--out"]
    assert main([*train, "run"]) == 0
    capsys.readouterr()
    own = run_json(["evaluate", "run", "--labels", "own"], capsys)
    assert (own["images"], own["classes"]) == (60, 3)
    assert run_json(["evaluate", "run", "--labels", "train_labels"], capsys) == own
    assert run_json(["evaluate", "run", "scans.npz", "--labels", "own"], capsys) == own
    assert main(["evaluate", "run"]) == 1
    assert "--labels: expected 'folders', 'own' or a CSV file" in capsys.readouterr().err
    assert main([*train, "labeled", "--labels", "train_labels"]) == 0
    capsys.readouterr()
    assert run_json(["evaluate", "labeled"], capsys) == own  # by what the run's folder keeps


def test_gray_images_stand_for_colors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    color = tmp_path / "color"
    for path in sorted(write_images(tmp_path / "gray").rglob("*.png")):
        (color / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(color / path.parent.name / path.name)
    out = str(tmp_path / "run")
    assert main(["train", str(color), "--clusters", "3", "--epochs", "1", "--method", "clc", "--out", out]) == 0
    for name in ("color", "gray"):
        assert main(["cluster", out, str(tmp_path / name), "--out", str(tmp_path / f"{name}.csv")]) == 0
    assert (tmp_path / "gray.csv").read_text() == (tmp_path / "color.csv").read_text()


def test_what_images_are_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    Image.new("RGB", (12, 12)).save(images / "bars" / "color.png")
    out = str(tmp_path / "run")
    assert main(["train", str(images), "--clusters", "3", "--epochs", "1", "--method", "clc", "--out", out]) == 0
    assert main(["cluster", out, str(images), "--out", str(tmp_path / "a.csv")]) == 0
    said = capsys.readouterr().err
    assert said.count("60 gray images among colored ones") == 2  # once by each command
    assert said.count("61 images, kept in memory") == 2


def test_images_that_have_gone_are_said(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = run.parent / "images" / "bars" / "00.png"
    content, table = gone.read_bytes(), (run / "clusters.csv").read_text()
    gone.unlink()
    try:
        assert main(["evaluate", str(run)]) == 0
        assert "was trained on 60 images, and there are 59 now" in capsys.readouterr().err
    finally:
        gone.write_bytes(content)
        (run / "clusters.csv").write_text(table)


def test_centers_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepclust_ext import recipes as known

    recipe = known.dump(known.changed(known.load(write_recipe(tmp_path)), HADIS))
    (tmp_path / "hadis.yaml").write_text(recipe)
    images, out = str(write_images(tmp_path / "images")), tmp_path / "run"
    assert main(["train", images, "--recipe", str(tmp_path / "hadis.yaml"), "--out", str(out)]) == 0
    centers = np.load(out / "centers.npy")
    for wrong in (centers[:2], np.full_like(centers, np.nan)):
        np.save(out / "centers.npy", wrong)
        assert main(["cluster", str(out)]) == 1
        assert "centers.npy: expected 3 finite rows, got shape" in capsys.readouterr().err


def test_a_damaged_run_is_named(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").mkdir()
    for name in ("recipe.yaml", "run.json", "checkpoint.pt"):
        (here / "run" / name).write_bytes((run / name).read_bytes())
    assert main(["cluster", "run"]) == 0
    for name, content in (("checkpoint.pt", b"nothing"), ("run.json", b"{"), ("recipe.yaml", b"method: [")):
        whole = (here / "run" / name).read_bytes()
        (here / "run" / name).write_bytes(content)
        assert main(["cluster", "run"]) == 1
        said = capsys.readouterr().err
        assert name in said
        assert "resume" not in said
        (here / "run" / name).write_bytes(whole)
