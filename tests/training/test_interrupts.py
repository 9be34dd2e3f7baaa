"""Interrupts: Ctrl-C is one line, and a run that is killed at any moment ends as if nothing had happened."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepclust_ext.training.files import CHECKPOINT_NAME, load_checkpoint
from tests.forks import run_module
from tests.methods.methodsamples import METHODS
from tests.training.runs import make_trainer, without_seconds

ROOT = Path(__file__).parents[2]


def test_ctrl_c_is_one_line_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    script = """if True:
        import signal
        import sys
        from deepclust_ext.__main__ import main
        from deepclust_ext.commands import demo
        from deepclust_ext.training import Phase
        from tests.training.runs import config_of, make_trainer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
        config = config_of(phases=[Phase("main", 10_000)])
        demo.run = lambda args: len(make_trainer(args.out, config=config, method="sacc").fit())
        sys.exit(main(["demo", "--out", sys.argv[1]]))
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("epoch 1 of 10000: loss ")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().splitlines()
    assert process.returncode == 130
    *epochs, last = rest
    assert all(line.startswith("epoch ") for line in epochs)
    done = len(epochs) + 1
    assert last == (
        f"deepclust-ext: interrupted in epoch {done + 1}; {tmp_path / 'checkpoint.pt'} holds the run after epoch "
        f"{done}, and resume continues it"
    )
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")["history"]) == done


def run_killed(folder: Path, method: str, kills: int, seed: int) -> int:
    """Return how many kills met the run, which a program has killed and resumed until it ended."""
    done = run_module("tests.training.killed", folder, method, kills, seed, torch.get_num_threads())
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def assert_same_checkpoints(first: Path, second: Path) -> None:
    one, other = (load_checkpoint(folder / CHECKPOINT_NAME) for folder in (first, second))
    assert without_seconds(one["history"]) == without_seconds(other["history"])
    assert all(torch.equal(weight, other["method"][name]) for name, weight in one["method"].items())


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    assert run_killed(tmp_path / "killed", "clc", 4, 0) > 0
    make_trainer(tmp_path / "whole", method="clc").fit()
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_runs_killed_often_end_as_if_nothing_had_happened(tmp_path: Path, method: str) -> None:
    make_trainer(tmp_path / "whole", method=method).fit()
    met = 0
    for seed in range(2):
        met += run_killed(tmp_path / f"killed{seed}", method, 24, seed)
        assert_same_checkpoints(tmp_path / "whole", tmp_path / f"killed{seed}")
    assert met > 4
