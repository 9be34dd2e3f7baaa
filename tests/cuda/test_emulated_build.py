"""What the build of the emulated device compiles again, and with which flags."""

import os
from pathlib import Path

import pytest
import torch

from tests.cuda.emulator.build import (
    ROOT,
    compile_all,
    gencode_flags,
    is_stale,
    load_setup,
    native_objects,
    recorded_inputs,
)


def test_architectures_in_torchs_notation() -> None:
    assert gencode_flags("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]


def test_inputs_of_a_compilers_record(tmp_path: Path) -> None:
    record = tmp_path / "kernel.d"
    record.write_text("build/kernel.o: csrc/kernel.cu csrc/core/cuda/device.h \\\n tests/cuda/emulator/emulator.h\n")
    assert recorded_inputs(record) == [
        Path("csrc/kernel.cu"),
        Path("csrc/core/cuda/device.h"),
        Path("tests/cuda/emulator/emulator.h"),
    ]


def touch(path: Path, hours: float) -> Path:
    """Make a file that was changed some hours from now."""
    path.touch()
    changed = path.stat().st_mtime + 3600 * hours
    os.utime(path, (changed, changed))
    return path


def test_stale_when_absent_older_or_an_input_is_gone(tmp_path: Path) -> None:
    target, source = tmp_path / "target", touch(tmp_path / "source", 1)
    assert is_stale(target, [source])
    touch(target, 2)
    assert not is_stale(target, [source])
    assert is_stale(target, [source, tmp_path / "gone"])
    assert is_stale(target, [touch(source, 3)])
    assert is_stale(touch(target, -1e6), [])  # older than the recipe


def test_a_source_compiles_again_when_its_header_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, header = tmp_path / "kernel.cu", tmp_path / "size.h"
    source.write_text('#include "size.h"\nint table[kSize];\n')
    header.write_text("constexpr int kSize = 3;\n")
    compiler = ["g++", "-DDEEPCLUST_EMULATED"]

    def compile_once() -> Path:
        (path,) = compile_all(compiler, [(source, ["-O0"])], tmp_path / "objects")
        return path

    first = compile_once().stat().st_mtime_ns
    assert compile_once().stat().st_mtime_ns == first
    assert capsys.readouterr().out.strip() == f"1/1 {os.path.relpath(source, ROOT)}"  # a count, and no command
    touch(header, 1)
    assert compile_once().stat().st_mtime_ns > first
    header.write_text("constexpr int kSize = broken;\n")
    touch(header, 2)
    with pytest.raises(RuntimeError, match="broken"):
        compile_once()


def test_a_native_object_older_than_a_source_of_its_unit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_py = load_setup()
    source = tmp_path / "csrc" / "module.cpp"
    source.parent.mkdir()
    touch(source, 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.cuda.emulator.build.ROOT", tmp_path)
    path = tmp_path / setup_py.objects_folder(torch.__version__) / "build" / "units" / "bindings.o"
    with pytest.raises(SystemExit, match="absent or older"):
        native_objects(setup_py)
    path.parent.mkdir(parents=True)
    touch(path, 1)
    assert native_objects(setup_py) == [path]
    touch(source, 2)
    with pytest.raises(SystemExit, match="absent or older"):
        native_objects(setup_py)
