"""All commands on files of features: what they print and leave, and one line for what makes no sense for features."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepclust_ext.__main__ import main
from deepclust_ext.inference import load
from deepclust_ext.runs import open_run
from deepclust_ext.runs.baseline import in_words
from tests.evaluation.pages import data_of
from tests.runs.runfolders import write_images

COUNT, COLUMNS = 90, 6


def write_features(path: Path, count: int = COUNT, columns: int = COLUMNS, seed: int = 0) -> Path:
    """Write rows of three clusters, float16, with a .npy file of their labels beside."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centers = 3 * np.random.default_rng(9).standard_normal((3, columns))
    np.save(path, (centers[labels] + 0.5 * generator.standard_normal((count, columns))).astype(np.float16))
    np.save(path.with_name(f"{path.stem}-labels.npy"), labels)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on features with labels."""
    folder = tmp_path_factory.mktemp("features")
    path = write_features(folder / "x.npy")
    before = path.read_bytes()
    out = folder / "run"
    labels = str(folder / "x-labels.npy")
    options = ("--clusters", "3", "--epochs", "2", "--out", str(out), "--labels", labels, "--score-every", "2")
    assert main(["train", str(path), *options]) == 0
    assert path.read_bytes() == before
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with features that the run has not seen."""
    monkeypatch.chdir(tmp_path)
    write_features(tmp_path / "new.npy", 12, seed=1)
    return tmp_path


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_on_features(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "ended"
    assert record["images"] == sum(record["sizes"]) == COUNT
    assert record["baseline"]["starts"] == 10
    assert set(record["baseline"]["scores"]) == set(record["scores"])
    assert 0 <= record["baseline"]["agreement"] <= 1
    log = (run / "train.log").read_text()
    assert "90 rows of 6 features, float16" in log
    assert "k-means on the features, to compare with" in log
    with (run / "clusters.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"x.npy[{place}]" for place in range(COUNT)]
    trained = load(run)
    rows, shares = trained(torch.from_numpy(np.load(run.parent / "x.npy")).float()[:, :, None, None])
    assert (rows.shape, shares.shape) == ((COUNT, COLUMNS), (COUNT, 3))


def test_what_is_printed_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_features(tmp_path / "x.npy")
    options = ("--clusters", "3", "--epochs", "1", "--out", str(tmp_path / "run"))
    assert main(["train", str(path), *options, "--labels", str(tmp_path / "x-labels.npy")]) == 0
    said = capsys.readouterr()
    printed = said.out
    assert re.match(r"90 rows in 3 of 3 clusters, of \d+ to \d+ rows\n", printed)
    assert "image" not in printed + said.err
    assert "spherical k-means on the features, best of 10 starts: ACC 1.0000, NMI 1.0000, ARI 1.0000; NMI " in printed
    assert in_words({"starts": 1, "agreement": 0.5}) == (
        "spherical k-means on the features, one start: NMI 0.5000 with the clusters of the run"
    )


def test_a_run_goes_on_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_features(tmp_path / "x.npy")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ("--clusters", "3", "--set", "learning_rate={name: constant}")
    assert main(["train", str(path), *settings, "--epochs", "3", "--out", str(whole)]) == 0
    assert main(["train", str(path), *settings, "--epochs", "2", "--out", str(parts)]) == 0
    assert main(["train", "--resume", "--epochs", "3", "--out", str(parts)]) == 0
    assert (whole / "clusters.csv").read_bytes() == (parts / "clusters.csv").read_bytes()
    states = [open_run(folder).trained.state_dict() for folder in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_clusters_rows_and_scores_of_other_features(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(["cluster", str(run), "new.npy"], capsys)["images"] == 12
    assert main(["cluster", str(run), "new.npy", "--out", "a.csv", "--into", "sorted", "--mode", "list"]) == 0
    listed = [line for file in (here / "sorted").iterdir() for line in file.read_text().splitlines()]
    assert sorted(listed) == sorted(f"new.npy[{place}]" for place in range(12))
    capsys.readouterr()
    assert run_json(["embed", str(run), "new.npy"], capsys)["rows"] == [12, COLUMNS]
    with np.load("embedding.npz") as stored:
        values = np.load("new.npy").astype(np.float32)
        expected = values / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(stored["rows"], expected, rtol=1e-5)
    scores = run_json(["evaluate", str(run), "new.npy", "--labels", "new-labels.npy"], capsys)
    assert scores["kmeans"]["acc"] == 1.0
    # What embed has written are features again.
    assert main(["cluster", str(run), "embedding.npz", "--out", "again.csv"]) == 0
    assert (here / "again.csv").read_bytes() == (here / "clusters.csv").read_bytes()


def test_evaluate_sweep_and_export(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(["evaluate", str(run)], capsys)["images"] == COUNT
    assert main(["sweep", str(run), "--clusters", "2:4", "--seeds", "2"]) == 0
    assert (here / "sweep.csv").is_file()
    capsys.readouterr()
    facts = run_json(["export", str(run), "--format", "torch"], capsys)
    assert facts["images"] == ["batch", COLUMNS, 1, 1]
    assert facts["rows"] == ["batch", COLUMNS]
    assert facts["range"] is None
    assert main(["export", str(run), "--format", "torch", "--out", "again.pt2"]) == 0
    assert f"features       batch x {COLUMNS} x 1 x 1, float32, any batch" in capsys.readouterr().out.splitlines()


def test_a_page_without_pictures(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(["report", str(run), "--out", "page.html"], capsys)["images"] == COUNT
    text = (here / "page.html").read_text()
    page = data_of(text)
    assert page["item"] == "row"
    assert "image" not in json.dumps({name: page[name] for name in ("notes", "names", "dataNotes")})
    markup = text[text.index("<main>") : text.index('<script type="application/json"')]
    assert "<h4>Rows in each cluster</h4>" in markup
    assert not re.search(r"\bimages?\b", markup, re.IGNORECASE)
    assert set(page["pictures"]) == {""}
    assert "The rows are features: there is nothing to look at but their names." in page["notes"]
    assert len(page["x"]) == COUNT
    assert page["scores"]["acc"] > 0


def test_what_a_file_of_features_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(["data", "new.npy", "--labels", "new-labels.npy"], capsys)
    assert (found["features"], found["images"], found["classes"]) == (COLUMNS, 12, {"0": 4, "1": 4, "2": 4})
    assert main(["data", "new.npy", "--labels", "new-labels.npy"]) == 0
    printed = capsys.readouterr().out
    assert printed == "3 classes of 4 rows each\n12 rows of 6 features, float16\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "new.npy", "--clusters", "3", "--scale", "percentile"], "--scale: expected 'type' for features"),
        (
            ["train", "new.npy", "--clusters", "3", "--method", "pici"],
            "--method: expected one of NeighborHead, HaDis, CLC, TURTLE",
        ),
        (["train", "new.npy", "--clusters", "3", "--recipe", "sacc-digits"], "data.size: expected 8, as the recipe"),
        (["train", "new.npy", "--clusters", "13"], "--clusters: expected 1 to 12, the number of rows, got 13"),
        (["train", "new.npy", "images", "--clusters", "3"], "DATA: expected features alone or images alone"),
        (["train", "new.npy", "--clusters", "3", "--labels", "folders"], "--labels: expected 'own', a .npy file"),
        (["cluster", "RUN", "new.npy", "--into", "sorted"], "--into: expected rows that are files of their own, got"),
        (["cluster", "RUN", "images"], "DATA: expected features, as RUN was trained on, got images"),
        (["embed", "RUN", "narrow.npy"], "DATA: expected rows of 6 features, as RUN has them, got 5"),
        (["train", "whole.npy", "--clusters", "3"], "whole.npy: expected shape (N, H, W)"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], message: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(here / "images", count=1)
    write_features(here / "narrow.npy", 12, 5)
    np.save("whole.npy", np.zeros((12, 6), np.int64))
    assert main([argument.replace("RUN", str(run)) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "images, kept" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("deepclust-ext: " + message.replace("RUN", str(run)))


@pytest.mark.parametrize("method", ["turtle", "neighborhead"])
def test_a_method_of_features_names_the_file_or_what_makes_features(
    method: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "no.npy", "--clusters", "2", "--method", method]) == 1
    assert "no.npy" in capsys.readouterr().err
    write_images(here / "photos")
    assert main(["train", "photos", "--clusters", "2", "--method", method]) == 1
    assert "which takes rows of features: a file of them, or images with --backbone" in capsys.readouterr().err


def test_frozen_rows_favor_no_number_of_clusters(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(run), "--clusters", "2:3"]) == 0
    assert "NeighborHead leaves the rows as they are: no number of clusters is favored" in capsys.readouterr().out
