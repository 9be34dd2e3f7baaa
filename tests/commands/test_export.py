"""The command export: what it prints and writes, and wrong uses."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from deepclust_ext.__main__ import main
from deepclust_ext.runs import open_run
from tests.runs.runfolders import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_onnx_is_written_here_and_told(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run)]) == 0
    captured = capsys.readouterr()
    size = (here / "network.onnx").stat().st_size
    lines = captured.out.splitlines()
    assert lines[0] == f"written        network.onnx, {size:,} bytes, CLC with tests.runs.runfolders:tiny_network"
    assert (
        "images         batch x 1 x 12 x 12, float32 from 0 to 1 by the largest value of their type, any batch" in lines
    )
    assert "rows           batch x 4, of length 1" in lines
    assert "shares         batch x 3, the cluster is the largest" in lines
    assert captured.err == ""  # no bar without a terminal, and no chatter of a library
    assert [path.name for path in here.iterdir()] == ["network.onnx"]
    images = torch.rand(5, 1, 12, 12)
    session = onnxruntime.InferenceSession(here / "network.onnx", providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(part) for part in session.run(None, {"images": images.numpy()})]
    torch.testing.assert_close(found, list(open_run(run).trained(images)), rtol=0, atol=1e-5)


def test_json_and_the_format_by_the_ending(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(run), "--out", "models/photos.pt2", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["path"]) == ("torch", "models/photos.pt2")
    assert (facts["images"], facts["shares"]) == (["batch", 1, 12, 12], ["batch", 3])
    extra = {"deepclust_ext.json": ""}
    torch.export.load(here / "models" / "photos.pt2", extra_files=extra)
    assert json.loads(extra["deepclust_ext.json"]).items() <= facts.items()
    assert main(arguments) == 1
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "there.pt2"], "--out: expected a new file, got there.pt2, which exists; --overwrite replaces it"),
        (["--out", "network.pkl"], "--out: expected a name that ends in .onnx for onnx, got network.pkl"),
        (["--format", "torch", "--out", "a.onnx"], "--out: expected a name that ends in .pt2 for torch, got a.onnx"),
        (["--out", "folder.pt2"], "--out: expected a file, got the folder folder.pt2"),
    ],
)
def test_a_wrong_target_is_one_line(
    options: list[str], message: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "there.pt2").touch()
    (here / "folder.pt2").mkdir()
    assert main(["export", str(run), *options]) == 1
    assert capsys.readouterr().err == f"deepclust-ext: {message}\n"


def test_a_missing_package_is_named_before_the_run_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "nowhere"]) == 1
    expected = "--format: onnx needs onnx, onnxruntime, onnxscript, and there is no onnxscript; "
    assert capsys.readouterr().err == f"deepclust-ext: {expected}pip install 'deepclust_ext[export]'\n"


def test_a_folder_without_a_run_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    assert main(["export", "empty", "--format", "torch"]) == 1
    assert capsys.readouterr().err.startswith(
        "deepclust-ext: RUN: expected the folder of a run, such as 'train' makes, at "
    )


def test_an_unknown_format_is_wrong_usage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(run), "--format", "pickle"])
    assert "argument --format: invalid choice: 'pickle'" in capsys.readouterr().err


def test_a_damaged_run_writes_nothing(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = here / "broken"
    shutil.copytree(run, broken)
    (broken / "checkpoint.pt").write_bytes(b"PK")
    (broken / "checkpoint.previous.pt").unlink()
    assert main(["export", str(broken), "--out", "network.pt2"]) == 1
    assert "checkpoint.pt" in capsys.readouterr().err
    assert not (here / "network.pt2").exists()
