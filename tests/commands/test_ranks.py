"""Commands on several ranks, as torchrun starts them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepclust_ext.__main__ import main
from deepclust_ext.training.files import load_checkpoint
from tests.runs.mortal import VARIABLE
from tests.runs.runfolders import RECIPE, ROOT, write_images

#: Of an epoch of the run below, after two steps of the estimate: two views, for the network and its average.
PASSES_OF_A_STEP, STEPS = 4, 7


def torchrun(ranks: int, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on several ranks of this machine."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "deepclust_ext"]
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


def test_a_run_whose_rank_is_killed_ends_at_once_and_goes_on_to_the_same_end(tmp_path: Path, images: Path) -> None:
    options = [str(images), "--recipe", str(recipe_of(tmp_path)), "--labels", "folders"]
    assert main(["train", *options, "--out", str(tmp_path / "alone")]) == 0

    moment = PASSES_OF_A_STEP * (2 + STEPS + STEPS // 2)
    start = time.monotonic()
    killed = torchrun(2, "train", *options, "--out", tmp_path / "run", **{VARIABLE: f"1:{moment}"})
    assert time.monotonic() - start < 60
    assert killed.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in killed.stderr
    assert "Signal 9" in killed.stderr
    assert len(load_checkpoint(tmp_path / "run" / "checkpoint.pt")["history"]) == 1

    resumed = torchrun(2, "train", "--resume", "--out", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    expected, state = (load_checkpoint(tmp_path / name / "checkpoint.pt")["method"] for name in ("alone", "run"))
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5, msg=name)
    print(resumed.stdout, resumed.stderr)
