"""The command report: the page of a run, written again, its JSON, and wrong uses."""

import json
import shutil
from pathlib import Path

import pytest

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from tests.evaluation.pages import data_of
from tests.runs.runfolders import CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "images").mkdir()
    (folder / "images" / "notes.txt").write_text("no image")
    return make_run(folder)


def test_a_run_has_its_page_and_gets_it_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "report.html"
    written = path.read_bytes()
    data = data_of(written.decode("ascii"))
    assert (data["title"], data["count"], len(data["clusters"]), data["label"]) == ("CLC: run", 60, 3, None)
    assert data["recipe"] + "\n" == recipes.dump(recipes.load(run / "recipe.yaml"))
    assert sum(name.endswith(".png") for name in data["names"]) == 60
    lines = {line["name"] for panel in data["curves"]["panels"] for line in panel["lines"]}
    assert {"loss", "probe_rank", "probe_clusters"} <= lines
    assert data["curves"]["epochs"] == [1, 2]
    assert [name for name, _ in data["skipped"]] == ["notes.txt"]
    path.unlink()
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert path.read_bytes() == written
    assert capsys.readouterr().out == f"60 images in 3 clusters, 0.1 MB, to open in a browser: {path}\n"


def test_labels_bring_scores(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_bytes()
    out = tmp_path / "labeled.html"
    assert main(["report", str(run), "--labels", "folders", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"images": 60, "clusters": 3, "page": str(out), "bytes": out.stat().st_size}
    data = data_of(out.read_text())
    assert data["classes"] == list(CLASSES)
    assert sum(map(sum, data["confusion"]["counts"])) == 60
    assert set(data["scores"]) >= {"acc", "nmi", "ari"}
    assert (run / "report.html").read_bytes() == before
    assert main(["report", str(run), "--out", str(out), "--overwrite"]) == 0
    assert data_of(out.read_text())["label"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out", "{there}"], "--out: expected no file at {there}, which is there; --overwrite replaces it"),
        (["{run}", "--out", "{folder}"], "--out: expected a file to write, got the folder {folder}"),
        (["{folder}"], "RUN: expected the folder of a run, such as 'train' makes, at {folder}, got a folder without"),
        (
            ["{run}", "--labels", "animals"],
            "--labels: expected 'folders', 'own' of an .npz file, or a CSV file of path and label, got 'animals'",
        ),
    ],
)
def test_wrong_uses_are_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.html"
    there.write_text("mine")
    names = {"run": run, "there": there, "folder": tmp_path}
    capsys.readouterr()
    assert main(["report", *(argument.format(**names) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message.format(**names) in captured.err
    assert there.read_text() == "mine"


def test_images_that_have_moved_and_what_to_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied, gone, page = tmp_path / "run", tmp_path / "gone", (run / "report.html").read_bytes()
    shutil.copytree(run, copied)
    record = json.loads((copied / "run.json").read_text())
    record["source"]["data"] = [str(gone)]
    (copied / "run.json").write_text(json.dumps(record))
    for command in ("report", "cluster", "evaluate"):
        capsys.readouterr()
        assert main([command, str(copied), *(["--labels", "folders"] if command == "evaluate" else [])]) == 1
        assert capsys.readouterr().err == (
            f"deepclust-ext: {gone}: expected a folder or a file of images, found nothing; if the images of {copied} "
            f"have moved: deepclust-ext train --resume --out {copied} DATA, by which it takes note of where they are\n"
        )
    assert (copied / "report.html").read_bytes() == page
    now = tmp_path / "now"
    shutil.copytree(run.parent / "images", now)
    assert main(["train", "--resume", "--out", str(copied), str(now)]) == 0
    (copied / "report.html").unlink()
    assert main(["report", str(copied)]) == 0
    assert (copied / "report.html").read_bytes() == page
    (now / "rings" / "00.png").unlink()
    assert main(["train", "--resume", "--out", str(copied), str(now)]) == 1
    assert "DATA: expected 60 images, with which the run in" in capsys.readouterr().err


def test_wrong_options_are_the_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report"])
    assert "RUN" in capsys.readouterr().err
