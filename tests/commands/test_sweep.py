"""The command sweep: what it prints and writes, and wrong uses."""

import csv
import json
import sys
from pathlib import Path

import pytest

from deepclust_ext.__main__ import main
from deepclust_ext.evaluation.sweep import sweep
from deepclust_ext.runs import open_run
from tests.runs.runfolders import make_run, write_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_here_and_on_the_screen(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["sweep", str(run), "--clusters", "1:7:2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["clusters", "silhouette", "stability", "smallest", "largest", "inertia"]
    assert [line.split()[0] for line in lines[1:5]] == ["1", "3", "5", "7"]
    assert lines[1].split()[1:5] == ["-", "1.0000", "60", "60"]
    assert lines[-2:] == [
        "the network was trained with 3 clusters, which favors 3",
        "written: sweep.csv and sweep.png",
    ]
    with (here / "sweep.csv").open(newline="") as file:
        assert [row["clusters"] for row in csv.DictReader(file)] == ["1", "3", "5", "7"]
    assert (here / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in here.iterdir()) == ["sweep.csv", "sweep.png"]


def test_json_is_what_the_function_gives(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", str(run), "--clusters", "2:4", "--seeds", "3", "--seed", "5", "--out", "swept", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (printed["images"], printed["trained_clusters"], printed["seeds"]) == (60, 3, 3)
    assert printed["files"][0] == "swept/sweep.csv"
    opened = open_run(run)
    rows, _ = opened.trained.infer(opened.images(), batch_size=opened.recipe.batch_size)
    assert printed["sweep"] == [vars(scores) for scores in sweep(rows, [2, 3, 4], seeds=3, seed=5)]
    assert main(arguments) == 1
    assert "--out: expected no file at swept/sweep.csv, which is there; --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_other_images_than_the_run_s(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(here / "others", count=5)
    assert main(["sweep", str(run), "others", "--clusters", "2:3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 15
    assert printed["sweep"][0]["largest"] + printed["sweep"][0]["smallest"] == 15


def test_without_matplotlib_it_says_so(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["sweep", str(run), "--clusters", "2:3"]) == 0
    expected = "written: sweep.csv; no figure, because matplotlib is missing: pip install 'deepclust_ext[plot]'"
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert [path.name for path in here.iterdir()] == ["sweep.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "expected FIRST:LAST or FIRST:LAST:STEP, such as 5:50, got '5'"),
        ("5:", "expected FIRST:LAST or FIRST:LAST:STEP, such as 5:50, got '5:'"),
        ("two:5", "expected FIRST:LAST or FIRST:LAST:STEP, such as 5:50, got 'two:5'"),
        ("5:50:5:5", "expected FIRST:LAST or FIRST:LAST:STEP, such as 5:50, got '5:50:5:5'"),
        ("50:5", "expected 1 <= FIRST <= LAST and a STEP of at least 1, got '50:5'"),
        ("-1:3", "expected 1 <= FIRST <= LAST and a STEP of at least 1, got '-1:3'"),
        ("5:50:-5", "expected 1 <= FIRST <= LAST and a STEP of at least 1, got '5:50:-5'"),
        ("0:5", "expected 1 <= FIRST <= LAST and a STEP of at least 1, got '0:5'"),
        ("5:50:0", "expected 1 <= FIRST <= LAST and a STEP of at least 1, got '5:50:0'"),
    ],
)
def test_a_wrong_range_is_named(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "nowhere", "--clusters", text])
    assert f"argument --clusters: {message}" in capsys.readouterr().err


def test_more_clusters_than_images_are_named_before_anything_is_embedded(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deepclust_ext.inference.Trained.infer", None)
    assert main(["sweep", str(run), "--clusters", "2:61"]) == 1
    assert capsys.readouterr().err.endswith("--clusters: expected at most 60, as many as there are rows, got 61\n")
    assert not list(here.iterdir())


def test_one_seed_is_too_few(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(run), "--clusters", "2:3", "--seeds", "1"])
    assert "argument --seeds: expected at least 2, got 1" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "nowhere", "--clusters", "2:3"]) == 1
    assert capsys.readouterr().err.startswith("deepclust-ext: RUN: expected the folder of a run")
