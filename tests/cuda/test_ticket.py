"""`make test-gpu` rehearsed without a GPU: with tools that only say what they were asked for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cuda.gpu import ticket
from tests.cuda.gpu.ticket import PASSED, ROOT, Stage
from tests.forks import run_module


def write_tool(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on PATH with a GPU's nvidia-smi, a sanitizer, and a Python that writes down what it is told."""
    folder = tmp_path / "tools"
    folder.mkdir()
    write_tool(folder, "nvidia-smi", 'echo "NVIDIA Pretended, 1024 MiB, 1.2"')
    write_tool(
        folder, "compute-sanitizer", 'while [ "$1" != --tool ]; do shift; done; tool=$2; shift 2; TOOL=$tool "$@"'
    )
    calls = tmp_path / "calls"
    write_tool(folder, "python", f'echo "$TOOL $DEEPCLUST_EXT_CUDA $PYTORCH_NO_CUDA_MEMORY_CACHING $*" >> {calls}')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def shell(name: str, script: str, seconds: int = 20) -> Stage:
    return Stage(name, seconds, (("sh", "-c", script),))


def test_every_stage_runs_in_order(tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_run = ticket.stages(str(tools / "python"))
    assert ticket.run_all(to_run, "build", tmp_path / "results") == 0
    calls = [" ".join(line.split()) for line in (tmp_path / "calls").read_text().splitlines()]
    expected = [
        "1 -c import torch",
        "1 setup.py --quiet build_ext --inplace",
        "-m pytest -q",
        "-m pytest -q",
        "-m pytest -q",
        "memcheck 1 -m tests.cuda.gpu.run_ops",
        "racecheck 1 -m tests.cuda.gpu.run_ops",
        "-m benchmarks --device cuda --quick",
        "-m benchmarks --device cuda",
    ]
    assert [call.startswith(part) for call, part in zip(calls, expected, strict=True)] == [True] * len(expected)
    record = json.loads((tmp_path / "results" / "stages.json").read_text())
    assert record["gpu"] == "NVIDIA Pretended, 1024 MiB, 1.2"
    names = ["build", "conformance", "ops", "sanitizers", "first-cases", "all-cases"]
    assert [(stage["name"], stage["status"]) for stage in record["stages"]] == [(name, PASSED) for name in names]
    assert "NVIDIA Pretended" in capsys.readouterr().out


def test_what_stages_name_is_there_and_the_first_four_fit_eight_minutes() -> None:
    to_run = ticket.stages(sys.executable)
    assert sum(stage.seconds for stage in to_run[:4]) <= 480
    for stage in to_run:
        for command in stage.commands:
            for word in command:
                if word.startswith("tests/"):
                    assert (ROOT / word).is_dir()
    assert (ROOT / "tests/cuda/gpu/run_ops.py").is_file()
    # pytest takes these tests only where it is told to.
    assert list((ROOT / "tests/cuda/gpu").glob("test_*.py"))


def test_the_small_set_runs_every_op() -> None:
    """On the CPU, so that it is not the first time on a card that is lent."""
    run = run_module("tests.cuda.gpu.run_ops", "cpu")
    assert run.returncode == 0, run.stderr
    ops = {line.split()[0] for line in run.stdout.splitlines()}
    assert ops >= {"fused_hsd_loss", "kmeans_seed", "augment_views"}
    assert len(run.stdout.splitlines()) == 4 * len(ops)


def test_a_failure_is_told_and_the_others_run(tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "; ".join(["echo noise"] * 200 + ["echo FAILED tests/ops/x.py::test_y", "exit 3"])
    to_run = [shell("build", "true"), shell("ops", lines), shell("first-cases", "echo '| op | ms |'")]
    assert ticket.run_all(to_run, "build", tmp_path) == 1
    assert [o.status for o in ticket.read_record(tmp_path).values()] == [PASSED, "failed with status 3", PASSED]
    summary = capsys.readouterr().out
    assert "FAILED tests/ops/x.py::test_y" in summary
    assert "noise" not in summary
    assert "| op | ms |" in summary


def test_without_a_library_nothing_else_runs(tools: Path, tmp_path: Path) -> None:
    assert ticket.run_all([shell("build", "exit 1"), shell("ops", "true")], "build", tmp_path) == 1
    assert list(ticket.read_record(tmp_path)) == ["build"]


def test_a_stage_ends_in_time_with_all_that_it_started(tools: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    start = time.monotonic()
    outcome = ticket.run_stage(shell("ops", f"(sleep 3; touch {late}) & sleep 60", seconds=1), tmp_path)
    assert outcome.status == "out of time after 1 s"
    assert time.monotonic() - start < 20
    time.sleep(3)
    assert not late.exists()


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    outcome = ticket.run_stage(Stage("sanitizers", 5, (("no-such-sanitizer",),)), tmp_path)
    assert outcome.status == "failed: no-such-sanitizer: No such file or directory"


def test_it_goes_on_from_a_stage(tools: Path, tmp_path: Path) -> None:
    to_run = [shell("build", "true"), shell("ops", "exit 1"), shell("sanitizers", "true")]
    assert ticket.run_all(to_run, "build", tmp_path) == 1
    seconds = ticket.read_record(tmp_path)["build"].seconds
    to_run[1] = shell("ops", "true")
    assert ticket.run_all(to_run, "ops", tmp_path) == 0
    again = ticket.read_record(tmp_path)
    assert [(o.name, o.status) for o in again.values()] == [(stage.name, PASSED) for stage in to_run]
    assert again["build"].seconds == seconds
    # Elsewhere, where no stage has run, there is nothing to keep.
    assert ticket.run_all(to_run, "sanitizers", tmp_path / "other") == 0
    assert list(ticket.read_record(tmp_path / "other")) == ["sanitizers"]


def test_the_summary_is_short(tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_run = [shell("build", "true"), shell("all-cases", 'for i in $(seq 500); do echo "| row $i |"; done; exit 1')]
    ticket.run_all(to_run, "build", tmp_path)
    summary = capsys.readouterr().out.split("\n\n", 1)[1]
    assert len(summary.splitlines()) == ticket.SUMMARY_LINES


@pytest.mark.parametrize("script", ["echo 'No devices were found' >&2; exit 6", "true"])
def test_no_gpu_is_one_line(script: str, tools: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_tool(tools, "nvidia-smi", script)
    assert ticket.main(["--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("test-gpu: expected a GPU, nvidia-smi says:")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_make_passes_stage_and_results_on(tools: Path, tmp_path: Path) -> None:
    make = ["make", "--no-print-directory", "test-gpu", f"PYTHON={tools / 'python'}", "STAGE=ops", "RESULTS=there"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True, timeout=60)
    words = (tmp_path / "calls").read_text().split()
    assert words == ["-m", "tests.cuda.gpu.ticket", "--from", "ops", "--results", "there"]
