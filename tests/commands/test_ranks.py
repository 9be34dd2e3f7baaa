"""Commands on several ranks, as torchrun starts them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from deepclust_ext.__main__ import main, make_parser
from deepclust_ext.commands._ranks import local_device
from deepclust_ext.training.files import load_checkpoint
from tests.distributed.pool import Pool
from tests.runs.mortal import VARIABLE
from tests.runs.runfolders import RECIPE, ROOT, write_images

#: Of an epoch of the run below, after two steps of the estimate: two views, for the network and its average.
PASSES_OF_A_STEP, STEPS = 4, 7


def torchrun(
    ranks: int, *arguments: str | Path, module: str = "deepclust_ext", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command on several ranks of this machine."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", module]
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


def recipe_of(folder: Path) -> Path:
    """Write a recipe whose network can end a rank, and whose steps enlarge no rounding, as Adam's do."""
    path = folder / "mortal.yaml"
    text = RECIPE.replace("tests.runs.runfolders:tiny_network", "tests.runs.mortal:network")
    path.write_text(text.replace("{name: adam, lr: 1.0e-3}", "{name: sgd, lr: 0.1, momentum: 0.9}"))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.mark.slow  # torchrun starts twice
def test_a_run_whose_rank_is_killed_ends_at_once_and_goes_on_to_the_same_end(tmp_path: Path, images: Path) -> None:
    options = [str(images), "--recipe", str(recipe_of(tmp_path)), "--labels", "folders"]
    assert main(["train", *options, "--out", str(tmp_path / "alone")]) == 0

    moment, killed_at = PASSES_OF_A_STEP * (2 + STEPS + STEPS // 2), tmp_path / "killed"
    killed = torchrun(2, "train", *options, "--out", tmp_path / "run", **{VARIABLE: f"1:{moment}:{killed_at}"})
    assert time.time() - float(killed_at.read_text()) < 60
    assert killed.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in killed.stderr.split("Root Cause")[1]
    assert "Signal 9" in killed.stderr
    assert len(load_checkpoint(tmp_path / "run" / "checkpoint.pt")["history"]) == 1

    resumed = torchrun(2, "train", "--resume", "--out", tmp_path / "run", module="tests.commands.ended")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("threads of gloo: 0") == 2
    expected, state = (load_checkpoint(tmp_path / name / "checkpoint.pt")["method"] for name in ("alone", "run"))
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        relative = 1e-5 if name.endswith("running_var") else 0  # of 9, whose rounding is a millionth
        torch.testing.assert_close(state[name], value, rtol=relative, atol=1e-5, msg=name)
    clusters, record = (tmp_path / "run" / name for name in ("clusters.csv", "run.json"))
    assert clusters.read_text() == (tmp_path / "alone" / "clusters.csv").read_text()
    assert json.loads(record.read_text())["ranks"] == 2
    assert resumed.stdout.count("ACC ") == 1
    assert resumed.stderr.count("epoch 2 of 2") == 1
    assert "warning" not in resumed.stderr.lower()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The folder of a small run in one process."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["--recipe", str(recipe_of(folder)), "--labels", "folders", "--batch-size", "7"]
    assert main(["train", str(images), "--out", str(folder / "run"), *options]) == 0
    return folder / "run"


def command(group: Any, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run a command on a rank of those that there are already, and return its status and what it says."""
    parsed = make_parser().parse_args(arguments)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status: int = parsed.run(parsed)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("name", "ending", "options"),
    [
        ("cluster", "csv", []),
        ("embed", "csv", []),
        ("embed", "npy", ["DATA"]),
        ("evaluate", "", ["--labels", "folders", "--json"]),
    ],
)
def test_ranks_write_what_one_process_writes(
    pool: Pool,
    tmp_path: Path,
    images: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    ending: str,
    options: list[str],
) -> None:
    data = [str(images / "bars")] if "DATA" in options else []  # twenty images, three batches for four ranks
    arguments = [name, str(run), *data, *(option for option in options if option != "DATA")]
    outs = [["--out", str(tmp_path / f"{who}.{ending}")] if ending else [] for who in ("alone", "ranks")]
    capsys.readouterr()
    assert main([*arguments, *outs[0]]) == 0
    said = capsys.readouterr().out
    answers = pool.run(command, [*arguments, *outs[1]], ranks=4)
    assert [status for status, _, _ in answers] == [0] * 4
    assert answers[0][1].replace("ranks.", "alone.") == said
    assert [out for _, out, _ in answers[1:]] == [""] * 3
    files = sorted(tmp_path.glob("alone.*"))
    assert len(files) == {"": 0, "csv": 1, "npy": 2}[ending]
    for file in files:
        assert file.read_bytes() == (tmp_path / f"ranks{file.suffix}").read_bytes()


def test_commands_that_ranks_cannot_share_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["info"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("deepclust-ext: rank 1 on ")
    assert error.endswith(
        ": torchrun: expected a command that ranks share, such as train, got another: run it by itself\n"
    )


@pytest.mark.parametrize(
    ("name", "expected"), [("cpu", "cpu"), ("cuda", "cuda:3"), ("cuda:0", "device: expected 'cuda' for several ranks")]
)
def test_each_rank_has_the_gpu_of_its_place(monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    assert local_device(name) == name
    for variable, value in {"RANK": "7", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(variable, value)
    if not expected.startswith("device"):
        assert local_device(name) == expected
        return
    with pytest.raises(ValueError, match=expected):
        local_device(name)


@pytest.mark.parametrize(("options", "expected"), [([], "true"), (["--no-sync-batch-norm"], "false")])
def test_how_ranks_normalize_is_a_setting_of_the_recipe(
    tmp_path: Path, images: Path, options: list[str], expected: str
) -> None:
    recipe = ["--recipe", str(recipe_of(tmp_path)), "--epochs", "1"]
    assert main(["train", str(images), "--out", str(tmp_path / "run"), *recipe, *options]) == 0
    assert f"\nsync_batch_norm: {expected}\n" in (tmp_path / "run" / "recipe.yaml").read_text()
