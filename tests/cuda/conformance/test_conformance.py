"""The device interface on the emulated device and, where there is one, on a GPU: the same cases, lane by lane."""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cuda.emulator.build import build_program

HERE = Path(__file__).parent
CASES = re.findall(r"^DEVICE_CASE\((\w+)\)", "\n".join(path.read_text() for path in HERE.glob("*.cu")), re.MULTILINE)


@functools.cache
def program(mode: str) -> Path:
    return build_program("conformance", [*sorted(HERE.glob("*.cu")), HERE / "runner.cpp"], mode)


def assert_all_pass(mode: str, **environment: str) -> None:
    result = subprocess.run([program(mode)], env={**os.environ, **environment}, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == [], result.stderr
    assert sorted(line.removeprefix("PASS ") for line in lines if line.startswith("PASS")) == sorted(CASES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("mode", ["plain", "asan", "check"])
@pytest.mark.parametrize(
    ("schedule", "cp_async"), [("forward", "late"), ("reverse", "early"), ("random", "random"), ("random", "late")]
)
def test_emulated_device(mode: str, schedule: str, cp_async: str) -> None:
    assert_all_pass(mode, DEEPCLUST_EMULATOR_SCHEDULE=schedule, DEEPCLUST_EMULATOR_CP_ASYNC=cp_async)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu() -> None:
    assert_all_pass("nvcc")


def test_names_of_cases_are_unique() -> None:
    assert sorted(CASES) == sorted(set(CASES))


def test_a_case_runs_by_name() -> None:
    result = subprocess.run([program("plain"), "votes"], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["PASS votes", "1 cases, 0 failed"]


def test_an_unknown_name_is_an_error() -> None:
    result = subprocess.run([program("plain"), "no_such_case"], capture_output=True, text=True)
    assert result.returncode == 1
