"""Without the native library nothing is timed: the reference is never called ours."""

import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import hadis_ablation, steps
from deepclust_ext import _extension
from tests.forks import run_module


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    monkeypatch.setattr(_extension, "REASON", "it is not built for Python 3.11 in /somewhere")


@pytest.mark.usefixtures("without_library")
@pytest.mark.parametrize("main", [command_line.main, steps.main, hadis_ablation.main])
def test_a_benchmark_is_refused(main: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert (
        "expected native kernels for cpu, since ours would be the reference, got none: it is not built for "
        f"Python 3.11 in /somewhere. `{sys.executable} -m pip install"
    ) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_library")
def test_what_times_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--floors"]) == 0
    assert "sinkhorn_knopp" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["benchmarks.sinkhorn_proof", "pytest benchmarks/test_benchmarks.py"])
def test_a_deliberate_run_of_the_reference_is_none_of_ours(command: str) -> None:
    refused = run_module(*command.split(), DEEPCLUST_EXT_BACKEND="reference")
    assert refused.returncode != 0
    assert "got none: DEEPCLUST_EXT_BACKEND=reference" in refused.stdout + refused.stderr
