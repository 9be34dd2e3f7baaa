"""A folder of images through a frozen network, by the commands: embedded once, kept, and used by all of them."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepclust_ext.__main__ import main
from deepclust_ext.data import load_images, resize_view
from deepclust_ext.runs import open_run
from deepclust_ext.runs.folder import read_record
from tests.commands.test_ranks import command
from tests.distributed.pool import Pool
from tests.evaluation.pages import data_of
from tests.inference.networks import CALLS, HERE, SIZE, WIDTH, save, trained
from tests.runs.runfolders import write_images

COUNT = 60


def frozen(folder: Path, name: str = "build", size: int = SIZE) -> list[str]:
    """Return the options of a network, whose weights are in a folder."""
    weights = [] if name != "build" else ["--weights", str(folder / "w.pth")]
    return ["--backbone", f"{HERE}:{name}", *weights, "--image-size", str(size)]


def train(folder: Path, out: str, *options: str, network: list[str] | None = None) -> int:
    """Train on the images of a folder, with a network that is frozen."""
    chosen = frozen(folder) if network is None else network
    arguments = [str(folder / "images"), "--clusters", "3", "--epochs", "2", *chosen, *options]
    return main(["train", *arguments, "--out", str(folder / "runs" / out)])


def prepare(folder: Path, count: int = COUNT // 3) -> Path:
    write_images(folder / "images", count=count)
    save(folder / "w.pth", trained().state_dict())
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, weights and a run on them."""
    folder = prepare(tmp_path_factory.mktemp("frozen"))
    CALLS.clear()
    assert train(folder, "run", "--labels", "folders", "--score-every", "2") == 0
    assert sum(CALLS) == COUNT
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in which the run knows its own images and weights, as the working folder."""
    place = tmp_path / "here"
    shutil.copytree(made, place)
    record = place / "runs" / "run" / "run.json"
    record.write_text(record.read_text().replace(str(made), str(place)))
    monkeypatch.chdir(place)
    CALLS.clear()
    yield place
    CALLS.clear()


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("features-*"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line that a command said, which is all that it says of a failure."""
    return capsys.readouterr().err.splitlines()[-1]


def expected_rows(folder: Path) -> Any:
    view = resize_view(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = load_images(folder, cache="none", channels=3)
    with torch.no_grad():
        return torch.cat([trained().eval()(view([image])) for image in images]).numpy()


def test_a_run_on_images_through_a_network(made: Path) -> None:
    run = made / "runs" / "run"
    (path,) = run.glob("features-*.npy")
    np.testing.assert_allclose(np.load(path), expected_rows(made / "images"), rtol=1e-5, atol=1e-6)
    record = json.loads((run / "run.json").read_text())
    network = record["source"]["network"]
    assert (network["name"], network["size"], network["weights"]) == (f"{HERE}:build", SIZE, str(made / "w.pth"))
    assert record["config"]["method"] == "neighborhead"
    assert {"acc", "nmi"} <= set(record["scores"])
    assert record["baseline"]["starts"] == 10
    with (run / "clusters.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    assert names == load_images(made / "images", cache="none").names
    log = (run / "train.log").read_text()
    assert f"rows of {HERE}:build, kept in {path}: 12 x 12 pixels, bicubic, mean 0.485, 0.456, 0.406, std " in log
    assert len(set(data_of((run / "report.html").read_text())["pictures"])) > 1


def test_the_next_run_does_not_embed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = folder / "runs" / "run", folder / "runs" / "second"
    assert train(folder, "second", "--seed", "1") == 0
    assert CALLS == []
    assert files(second) == files(first)
    assert (second / files(second)[0]).samefile(first / files(first)[0])  # no second copy
    assert "found in" in capsys.readouterr().err
    assert train(folder, "run", "--overwrite") == 0
    assert CALLS == []


@pytest.mark.parametrize("change", ["weights", "size", "mean", "image", "network"])
def test_whatever_decides_the_rows_makes_others(change: str, folder: Path) -> None:
    network, options = frozen(folder), list[str]()
    if change == "weights":
        state = trained().state_dict()
        state["0.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
        save(folder / "w.pth", state)
    elif change == "size":
        network = frozen(folder, size=SIZE + 2)
    elif change == "mean":
        options = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]
    elif change == "image":
        path = folder / "images" / "bars" / "00.png"
        pixels = np.array(Image.open(path))
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(path)
    else:
        network = frozen(folder, "trained")
    assert train(folder, "second", *options, network=network) == 0
    assert sum(CALLS) == COUNT
    assert files(folder / "runs" / "second") != files(folder / "runs" / "run")


def test_the_commands_go_by_the_kept_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "w.pth").unlink()
    run = str(folder / "runs" / "run")
    assert main(["evaluate", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 3
    assert main(["sweep", run, "--clusters", "2:3", "--seeds", "2"]) == 0
    assert main(["report", run, "--out", "page.html"]) == 0
    assert len(set(data_of(Path("page.html").read_text())["pictures"])) > 1
    assert main(["cluster", run, "--into", "sorted"]) == 0
    assert len(list(Path("sorted").rglob("*.png"))) == COUNT
    assert main(["embed", run, "--out", "rows.npy"]) == 0
    assert np.load("rows.npy").shape == (COUNT, WIDTH)
    assert CALLS == []


def test_new_images_are_embedded_by_the_same_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "run"
    write_images(folder / "new", count=2, seed=1)
    assert main(["cluster", str(run), "new", "--out", "new.csv", "--into", "sorted"]) == 0
    assert sum(CALLS) == 6
    assert len(list(Path("sorted").rglob("*.png"))) == 6
    assert len(files(run)) == 1  # those of the run alone stay
    network = frozen(folder)
    assert main(["embed", "new", *network, "--out", "new.npz"]) == 0
    with np.load("new.npz") as stored:
        np.testing.assert_allclose(stored["rows"], expected_rows(folder / "new"), rtol=1e-5, atol=1e-6)
        assert stored["names"].tolist() == load_images(folder / "new", cache="none").names
    assert main(["cluster", str(run), "new.npz", "--out", "again.csv"]) == 0
    assert Path("again.csv").read_bytes() == Path("new.csv").read_bytes()
    save(folder / "w.pth", trained(1).state_dict())
    assert main(["cluster", str(run), "new", "--out", "other.csv"]) == 1
    expected = f"deepclust-ext: --weights: expected those of {HERE}:build that the run was trained with, sha256 "
    assert one_line(capsys).startswith(expected)


def test_weights_that_have_moved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(folder / "new", count=2, seed=1)
    run = str(folder / "runs" / "run")
    assert main(["cluster", run, "new", "--out", "before.csv"]) == 0
    (folder / "w.pth").rename("moved.pth")
    assert main(["cluster", run, "new", "--out", "after.csv"]) == 1
    said = one_line(capsys)
    assert said.startswith(f"deepclust-ext: --weights: expected those of {HERE}:build")
    assert f"at {folder / 'w.pth'}, found nothing; --weights FILE says where they lie now" in said
    moved = ["--weights", "moved.pth"]
    assert main(["cluster", run, "new", "--out", "after.csv", *moved]) == 0
    assert Path("after.csv").read_bytes() == Path("before.csv").read_bytes()
    assert main(["embed", run, "new", "--out", "new.npy", *moved]) == 0
    assert main(["evaluate", run, "new", "--labels", "folders", *moved]) == 0
    assert main(["sweep", run, "new", "--clusters", "2:3", "--seeds", "2", *moved]) == 0
    save(folder / "other.pth", trained(1).state_dict())
    assert main(["cluster", run, "new", "--out", "other.csv", "--weights", "other.pth"]) == 1
    assert "that the run was trained with, sha256 " in one_line(capsys)
    # The rows of the run itself, which every command takes, are made again.
    (kept,) = Path(run).glob("features-*")
    for arguments in (["cluster", run], ["report", run], ["train", "--resume", "--out", run]):
        kept.unlink(missing_ok=True)
        capsys.readouterr()
        assert main(arguments) == 1
        expected = "--weights FILE says where they lie now, to `train --resume` for good, to other commands for once"
        assert one_line(capsys).endswith(expected)
        assert read_record(Path(run))["source"]["network"]["weights"] == str(folder / "w.pth")
        assert main([*arguments, *moved]) == 0
        assert kept.is_file()
    for arguments in (["report", run], ["train", "--resume", "--out", run]):  # which need the network no more
        capsys.readouterr()
        assert main([*arguments, "--weights", "other.pth"]) == 1
        assert "that the run was trained with, sha256 " in one_line(capsys)
    assert read_record(Path(run))["source"]["network"]["weights"] == str(folder / "moved.pth")
    assert main(["cluster", run, "new", "--out", "again.csv"]) == 0
    assert Path("again.csv").read_bytes() == Path("before.csv").read_bytes()
    kept.unlink()
    assert main(["report", run]) == 0  # the run knows it from then on


@pytest.mark.filterwarnings("default:the module of pooling:RuntimeWarning")
def test_a_run_does_not_go_on_with_rows_of_other_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    module, run = folder / "pooling.py", folder / "runs" / "own"
    code = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.AvgPool2d(3), nn.Flatten())\n"
    module.write_text(code)
    network = ["--backbone", "pooling:build", "--image-size", str(SIZE)]
    assert train(folder, "own", "--set", "learning_rate={name: constant}", network=network) == 0
    for kept in run.glob("features-*"):
        kept.unlink()
    module.write_text(code.replace("AvgPool2d(3)", "MaxPool2d((3, 3))"))
    monkeypatch.delitem(sys.modules, "pooling")
    assert main(["train", "--resume", "--epochs", "3", "--out", str(run)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "warning: the module of pooling:build has changed since the run was trained" in said[-3]
    assert said[-1].startswith("deepclust-ext: DATA: expected the same values as in ")


def test_rows_that_are_gone_are_embedded_again(folder: Path) -> None:
    run = folder / "runs" / "run"
    before = (run / "clusters.csv").read_bytes()
    (kept,) = run.glob("features-*")
    rows = kept.read_bytes()
    kept.unlink()
    assert main(["cluster", str(run)]) == 0
    assert sum(CALLS) == COUNT
    assert (run / "clusters.csv").read_bytes() == before
    assert kept.read_bytes() == rows


def test_a_damaged_file_of_rows_is_named_and_not_taken_from_beside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "runs" / "run"
    (kept,) = run.glob("features-*")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert main(["cluster", str(run)]) == 1
    fault = "expected the rows of these images, got a damaged file: its checksum is not that of its bytes"
    assert one_line(capsys) == f"deepclust-ext: {kept}: {fault}; remove it, and they are embedded again"
    assert train(folder, "second") == 0
    assert sum(CALLS) == COUNT


def test_a_run_goes_on_to_the_same_bits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = ["--set", "learning_rate={name: constant}"]
    assert train(folder, "whole", *constant, "--epochs", "3") == 0
    assert train(folder, "parts", *constant) == 0
    (folder / "w.pth").unlink()  # the rows are there
    parts = str(folder / "runs" / "parts")
    assert main(["train", "--resume", "--epochs", "3", "--out", parts]) == 0
    assert CALLS == []
    states = [open_run(folder / "runs" / name).trained.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert main(["train", "--resume", "--out", parts, *frozen(folder)]) == 1
    assert one_line(capsys).startswith("deepclust-ext: --backbone: expected none with --resume, which goes by ")


def test_what_is_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, 8)
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(tmp_path / "images" / "bars" / "white.png")
    (tmp_path / "images" / "bars" / "broken.png").write_bytes(b"no image")
    options = [*frozen(tmp_path, "spoiling"), "--mean", "0,0,0", "--std", "1,1,1"]
    assert train(tmp_path, "run", "--labels", "folders", network=options) == 0
    with (tmp_path / "runs" / "run" / "skipped.csv").open() as file:
        skipped = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(skipped) == {"bars/white.png", "bars/broken.png"}
    assert skipped["bars/white.png"] == "NaN or infinity"
    assert "1 row skipped, first bars/white.png: NaN or infinity" in capsys.readouterr().err
    opened = open_run(tmp_path / "runs" / "run")
    images: Any = opened.images()
    assert len(images) == len(images.pictures) == len(images.labels) == 24
    assert images.path(8).name == "00.png"
    assert images.path(8).parent.name == "blobs"  # behind those that were left out
    part = images[20:]
    assert part.path(0) == images.path(20)
    assert torch.equal(part.pictures[0][0], images.pictures[20][0])


def test_gray_images_for_a_network_of_gray_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, 8)
    network = frozen(tmp_path, "gray")
    assert train(tmp_path, "gray", "--mean", "0.5", "--std", "0.5", network=network) == 0
    (path,) = (tmp_path / "runs" / "gray").glob("features-*")
    assert np.load(path).shape == (24, SIZE * SIZE)
    assert train(tmp_path, "two", "--mean", "0.5,0.5", "--std", "0.5,0.5", network=network) == 1
    expected = "deepclust-ext: --mean: expected 1 number, one for each channel of the images, got 2"
    assert one_line(capsys) == expected


def test_ranks_embed_what_one_process_embeds(tmp_path: Path, pool: Pool) -> None:
    folder = prepare(tmp_path)
    assert train(folder, "run") == 0
    arguments = ["embed", str(folder / "images"), *frozen(folder)]
    assert main([*arguments, "--out", str(folder / "alone.npy")]) == 0
    answers = pool.run(command, [*arguments, "--out", str(folder / "ranks.npy")], ranks=4)
    assert [status for status, _, _ in answers] == [0] * 4
    for suffix in (".npy", ".txt"):
        assert (folder / f"alone{suffix}").read_bytes() == (folder / f"ranks{suffix}").read_bytes()
    # Rows that are kept are written by one of them, and used by all.
    (folder / "runs" / "run" / files(folder / "runs" / "run")[0]).unlink()
    answers = pool.run(command, ["embed", str(folder / "runs" / "run"), "--out", str(folder / "own.npy")], ranks=4)
    assert [status for status, _, _ in answers] == [0] * 4
    assert len(files(folder / "runs" / "run")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "images", "--backbone", f"{HERE}:build", "--weights", ""],
            "--weights: expected a file, got an empty name",
        ),
        (
            ["train", "images", "--backbone", "small"],
            "--backbone: expected 'timm:NAME' or 'module:function', got 'sm",
        ),
        (["train", "images", "--backbone", "timm:a"], "--weights: expected a file of the weights of timm:a, since"),
        (["train", "images", "NETWORK", "--method", "pici"], "--method: expected one of NeighborHead, HaDis, CLC"),
        (["train", "digits", "NETWORK"], "--backbone: expected a folder or files of images, got the data set digits"),
        (["train", "x.npy", "NETWORK"], "--backbone: expected images, got features, which need no network, in x.npy"),
        (["train", "images", "WRONG"], "--weights: expected the 7 tensors of the network in wrong.pth, got 1 missing"),
        (["embed", "images", "WRONG"], "--weights: expected the 7 tensors of the network in wrong.pth, got 1 missing"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("x.npy", np.zeros((9, 4), np.float32))
    state = dict(trained().state_dict())
    del state["0.bias"]
    save(folder / "wrong.pth", state)
    named = {"NETWORK": frozen(folder), "WRONG": [*frozen(folder), "--weights", "wrong.pth"]}
    clusters = ["--clusters", "3"] if arguments[0] == "train" else []
    assert main([*(option for word in arguments for option in named.get(word, [word])), *clusters]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"deepclust-ext: {message}")
    assert CALLS == []


def test_images_for_a_run_on_rows_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.random.default_rng(0).standard_normal((30, WIDTH)).astype(np.float32))
    assert main(["train", "x.npy", "--clusters", "3", "--epochs", "1", "--out", "rows"]) == 0
    assert main(["cluster", "rows", "images", "--out", "a.csv"]) == 1
    expected = "DATA: expected features, as rows was trained on, got images; embed --backbone makes rows of images"
    assert one_line(capsys).startswith(f"deepclust-ext: {expected}")


def test_a_boost_holds_the_rows_of_its_network(folder: Path) -> None:
    run, boosted = folder / "runs" / "hadis", folder / "elsewhere" / "boosted"
    assert train(folder, "hadis", "--method", "hadis") == 0
    assert main(["boost", str(run), "--epochs", "1", "--out", str(boosted)]) == 0
    assert files(boosted) == files(run)
    shutil.rmtree(folder / "runs")
    (folder / "w.pth").rename(folder / "moved.pth")
    assert main(["cluster", str(boosted), "--out", "c.csv"]) == 0


def test_a_run_whose_weights_have_moved_is_boosted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "hadis", "--method", "hadis") == 0
    (folder / "w.pth").rename(folder / "moved.pth")
    for rows in folder.glob("runs/*/features-*"):
        rows.unlink()
    command = ["boost", str(folder / "runs" / "hadis"), "--epochs", "1", "--out", str(folder / "boosted")]
    assert main(command) == 1
    assert "--weights FILE says where they lie now" in one_line(capsys)
    assert main([*command, "--weights", str(folder / "moved.pth")]) == 0
