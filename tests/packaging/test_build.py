"""setup.py's decisions: each a pure function of what it found, so no build is needed to test them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deepclust_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("request_", ["auto", "1"])
@pytest.mark.parametrize("nvcc", ["13.0", "13.2"])
def test_cuda_is_built_when_torch_and_toolkit_agree_on_the_major_version(
    setup_py: ModuleType, request_: str, nvcc: str
) -> None:
    use, reason = setup_py.decide_cuda(request_, torch_cuda="13.2", nvcc=nvcc, gpus=[])
    assert use
    assert reason == f"nvcc {nvcc}, torch built for CUDA 13.2"


OBSTACLES = [
    (None, "13.0", "torch was built without CUDA"),
    ("13.2", None, "no CUDA toolkit was found (CUDA_HOME, nvcc on PATH, /usr/local/cuda)"),
    ("13.2", "12.8", "nvcc is version 12.8 but torch was built for CUDA 13.2"),
]


@pytest.mark.parametrize(("torch_cuda", "nvcc", "obstacle"), OBSTACLES)
def test_auto_falls_back_to_cpu_with_the_reason(
    setup_py: ModuleType, torch_cuda: str | None, nvcc: str | None, obstacle: str
) -> None:
    for request in ("auto", "visible"):
        decision = setup_py.decide_cuda(request, torch_cuda=torch_cuda, nvcc=nvcc, gpus=["9.0"])
        assert decision == (False, obstacle)


def test_a_visible_gpu_decides_where_that_is_asked_for(setup_py: ModuleType) -> None:
    assert setup_py.decide_cuda("visible", torch_cuda="13.2", nvcc="13.0", gpus=["9.0"])[0]
    assert setup_py.decide_cuda("visible", torch_cuda="13.2", nvcc="13.0", gpus=[]) == (
        False,
        "no GPU of compute capability 8.0 or newer is visible; DEEPCLUST_EXT_CUDA=1 builds all the same",
    )


def test_gpus_that_the_kernels_run_on(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(9, 0), (7, 5), (9, 0), (8, 6), (12, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", found.__getitem__)
    assert setup_py.visible_gpus() == ["8.6", "9.0", "12.0"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_py.visible_gpus() == []


@pytest.mark.parametrize(("torch_cuda", "nvcc", "obstacle"), OBSTACLES)
def test_explicit_cuda_that_cannot_be_built_is_an_error(
    setup_py: ModuleType, torch_cuda: str | None, nvcc: str | None, obstacle: str
) -> None:
    with pytest.raises(ValueError, match="DEEPCLUST_EXT_CUDA=1, but ") as caught:
        setup_py.decide_cuda("1", torch_cuda=torch_cuda, nvcc=nvcc, gpus=["9.0"])
    assert str(caught.value).endswith(obstacle)


@pytest.mark.parametrize(
    ("request_", "kept", "left_out"),
    [
        ("7.5;8.0;8.6", "8.0;8.6", ["7.5"]),
        ("5.2 6.0 6.1 7.0 7.5 8.0 8.6+PTX", "8.0;8.6+PTX", ["5.2", "6.0", "6.1", "7.0", "7.5"]),  # of some containers
        ("Turing;Ampere", "Ampere", ["Turing"]),
        ("Volta+PTX, 9.0a, 10.0", "9.0a;10.0", ["Volta+PTX"]),
        ("8.0;8.6;9.0+PTX", "8.0;8.6;9.0+PTX", []),
        ("Common", "Common", []),  # what torch makes of it is newer or torch's to refuse
    ],
)
def test_architectures_that_the_kernels_do_not_run_on_are_left_out(
    setup_py: ModuleType, request_: str, kept: str, left_out: list[str]
) -> None:
    assert setup_py.supported_architectures(request_) == (kept, left_out)


@pytest.mark.parametrize("request_", ["7.5", "6.1;7.5+PTX", "Turing"])
def test_old_architectures_alone_are_refused_before_compiling(setup_py: ModuleType, request_: str) -> None:
    with pytest.raises(
        ValueError, match="TORCH_CUDA_ARCH_LIST: expected an architecture of 8.0 or newer, got"
    ) as caught:
        setup_py.supported_architectures(request_)
    assert repr(request_) in str(caught.value)


def test_explicit_cpu_wins_over_everything(setup_py: ModuleType) -> None:
    decision = setup_py.decide_cuda("0", torch_cuda="13.2", nvcc="13.0", gpus=["9.0"])
    assert decision == (False, "DEEPCLUST_EXT_CUDA=0")


def test_unknown_request_is_an_error(setup_py: ModuleType) -> None:
    with pytest.raises(ValueError, match="DEEPCLUST_EXT_CUDA must be auto, visible, 0 or 1, got 'yes'"):
        setup_py.decide_cuda("yes", torch_cuda=None, nvcc=None, gpus=[])


def make_toolkit(home: Path, version: str, *, headers: bool = True) -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    nvcc.chmod(0o755)
    if headers:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
    return home


def test_a_wrapper_script_on_the_path_is_not_taken_for_the_toolkit(setup_py: ModuleType, tmp_path: Path) -> None:
    wrapper = make_toolkit(tmp_path / "system", "13.0", headers=False)
    real = make_toolkit(tmp_path / "system" / "cuda-13.0", "13.0")
    assert setup_py.find_toolkit({"PATH": str(wrapper / "bin")}, system=wrapper) == (real, "13.0")


def test_cuda_home_comes_before_nvcc_on_the_path(setup_py: ModuleType, tmp_path: Path) -> None:
    chosen, other = make_toolkit(tmp_path / "chosen", "12.8"), make_toolkit(tmp_path / "other", "13.0")
    environment = {"CUDA_HOME": str(chosen), "PATH": str(other / "bin")}
    assert setup_py.find_toolkit(environment, system=tmp_path) == (chosen, "12.8")
    assert setup_py.find_toolkit({"PATH": str(other / "bin")}, system=tmp_path) == (other, "13.0")


def test_no_toolkit(setup_py: ModuleType, tmp_path: Path) -> None:
    assert setup_py.find_toolkit({}, system=tmp_path) is None


def test_compiler_flags(setup_py: ModuleType) -> None:
    plain = setup_py.compiler_flags({}, "linux")
    assert plain == ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi", "-fopenmp"]
    assert "-fopenmp" not in setup_py.compiler_flags({}, "darwin")
    assert setup_py.compiler_flags({"DEEPCLUST_EXT_WERROR": "1"}, "linux") == [*plain, "-Werror"]
    debugged = setup_py.compiler_flags({"DEEPCLUST_EXT_DEBUG": "1"}, "linux")
    assert [debugged.index("-Og") > debugged.index("-O3"), debugged.index("-g") > debugged.index("-g0")] == [True, True]
    sanitized = setup_py.compiler_flags({"DEEPCLUST_EXT_SANITIZE": "1"}, "linux")
    assert sanitized.index("-O1") > sanitized.index("-O3")  # the last one counts
    assert "-fsanitize=address,undefined" in sanitized
    without = setup_py.compiler_flags({"DEEPCLUST_EXT_SANITIZE": "1"}, "linux", "flags : fma avx2")
    assert without == [*sanitized, "-DDEEPCLUST_AVX512=0"]
    assert setup_py.compiler_flags({}, "linux", "flags : fma avx2") == plain  # others run it elsewhere


def test_pre_commit_has_the_versions_that_lint_has() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = re.findall(r"[\w-]+(?:\[\w+\])?==[\d.]+", hooks)
    assert {pin.split("==")[0] for pin in pins} == {"ruff", "clang-format", "codespell[toml]"}
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{pin}"' in project for pin in pins)


def test_nvcc_flags(setup_py: ModuleType) -> None:
    plain = setup_py.nvcc_flags({})
    assert plain == ["-O3", "-lineinfo", "-Xcompiler=-Wall,-Wextra"]
    assert setup_py.nvcc_flags({"DEEPCLUST_EXT_WERROR": "1"}) == [*plain, "-Werror=all-warnings"]


def test_no_two_sources_compile_to_the_same_object() -> None:
    sources = [path.relative_to(ROOT) for suffix in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(suffix)]
    objects = [path.with_suffix(".o") for path in sources]
    assert sorted(set(objects)) == sorted(objects)


def test_every_source_is_compiled_once(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    patterns = [*setup_py.UNITS["bindings"], *setup_py.UNITS["cuda"], *setup_py.ALONE, *setup_py.CUDA_ALONE]
    compiled = setup_py.find_sources(*patterns)
    assert sorted(compiled) == sorted(
        path.relative_to(ROOT) for suffix in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(suffix)
    )


def test_a_unit_includes_its_sources_and_is_written_only_when_it_changes(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "csrc" / "moves").mkdir(parents=True)
    for name in ("module.cpp", "moves/spin.cpp", "moves/turn.cpp"):
        (tmp_path / "csrc" / name).touch()
    monkeypatch.chdir(tmp_path)
    unit = setup_py.write_unit("bindings")
    assert unit.read_text() == '#include "module.cpp"\n#include "moves/spin.cpp"\n#include "moves/turn.cpp"\n'
    os.utime(unit, (1, 1))
    assert setup_py.write_unit("bindings").stat().st_mtime == 1
    (tmp_path / "csrc" / "moves" / "turn.cpp").unlink()
    assert "turn" not in setup_py.write_unit("bindings").read_text()


@pytest.mark.parametrize(
    ("architectures", "jobs", "duration"),
    [([], 2, "2 minutes"), ([], 16, "a minute"), (["8.0", "9.0"], 2, "4 minutes")],
)
def test_how_long_it_takes_is_said(setup_py: ModuleType, architectures: list[str], jobs: int, duration: str) -> None:
    assert setup_py.expected_time(architectures, jobs) == duration


NINJA = """\
[1/3] c++ -MMD -MF a.o.d -I/include -c {folder}/a.cpp -o a.o -std=c++20
{folder}/a.cpp:1:5: warning: unused
[2/3] nvcc -ccbin c++ -c {folder}/b.cu -o b.o
FAILED: [code=1] c.o
c++ -c {folder}/c.cpp -o c.o
{folder}/c.cpp:7:1: error: broken
ninja: no work to do.
"""


def test_output_of_a_build_is_a_count_and_what_compilers_say(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with setup_py.counted_files():
        subprocess.run(["printf", "%s", NINJA.format(folder=tmp_path)], check=True, stdout=1)
    print("after it", flush=True)
    assert capfd.readouterr().out.replace(str(tmp_path), "FOLDER").splitlines() == [
        "  1/3 a.cpp",
        "FOLDER/a.cpp:1:5: warning: unused",
        "  2/3 b.cu",
        "FAILED: [code=1] c.o",
        "c++ -c FOLDER/c.cpp -o c.o",
        "FOLDER/c.cpp:7:1: error: broken",
        "after it",
    ]


@pytest.mark.parametrize(("free_gib", "jobs"), [(64, 8), (5, 2), (1, 1)])
def test_memory_limits_the_number_of_compilers(setup_py: ModuleType, tmp_path: Path, free_gib: int, jobs: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {free_gib << 20} kB\n")
    assert setup_py.default_jobs(8, meminfo) == jobs
    assert setup_py.default_jobs(8, tmp_path / "absent") == 8


def test_missing_torch_is_one_line_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')\n")
    command = [sys.executable, "setup.py", "--version"]
    failed = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines() == [
        "deepclust_ext: the build needs torch, which does not import here (No module named torch). "
        "Install torch, then run: pip install --no-build-isolation -e ."
    ]


def test_setup_py_stays_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 300
