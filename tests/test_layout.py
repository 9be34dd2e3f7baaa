"""The layer law, checked by machine: every op has all its parts, imports go one way, launches are safe."""

import importlib
import pkgutil
from pathlib import Path

import pytest

import deepclust_ext
from tests.layout import (
    ENTRIES_OF_AN_OP,
    EXPORTS_OF_AN_OP,
    FILES_OF_AN_OP,
    ROOT,
    function_names,
    missing_parts,
    op_names,
    tensors_on_any_device,
    unsafe_launches,
    wrong_imports,
    wrong_includes,
)


def test_there_are_ops_to_check() -> None:
    assert {"batch_hard_mining", "fused_hsd_loss"} <= set(op_names(ROOT))
    assert "kmeans_step" in function_names(ROOT)
    assert "kmeans_step" not in op_names(ROOT)


def test_every_op_has_all_its_parts() -> None:
    missing = missing_parts(ROOT)
    assert not missing, "\n".join(["missing:", *missing])


def test_imports_go_down_the_layers_only() -> None:
    wrong = wrong_imports(ROOT)
    assert not wrong, "\n".join(wrong)


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    wrong = tensors_on_any_device(ROOT)
    assert not wrong, "\n".join(wrong)


def test_kernel_code_sees_cuda_through_device_h_only() -> None:
    wrong = wrong_includes(ROOT)
    assert not wrong, "\n".join(wrong)


def test_launches_set_the_device_and_look_at_their_status() -> None:
    wrong = unsafe_launches(ROOT)
    assert not wrong, "\n".join(wrong)


def test_no_python_file_exceeds_400_lines() -> None:
    folders = ("deepclust_ext", "tests", "benchmarks")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize(
    "module", [found.name for found in pkgutil.walk_packages(deepclust_ext.__path__, "deepclust_ext.")]
)
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


# The checkers themselves, on planted violations.


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A tree with one op, complete."""
    for pattern in FILES_OF_AN_OP:
        plant(tmp_path, pattern.format(op="spin", family="turns"), "// or any other text")
    for path in EXPORTS_OF_AN_OP:
        plant(tmp_path, path, '__all__ = ["Spins", "spin"]')
    for path, entry in ENTRIES_OF_AN_OP.items():
        plant(tmp_path, path, entry.format(op="spin"))
    plant(tmp_path, "deepclust_ext/_extension.py", "import deepclust_ext._C")
    plant(tmp_path, "deepclust_ext/reference/spin.py", "import torch")
    imports = "from deepclust_ext import _extension\nfrom deepclust_ext.reference import spin"
    plant(tmp_path, "deepclust_ext/ops/spin.py", imports)
    plant(tmp_path, "csrc/turns/cuda/torch/spin.cpp", LAUNCH)
    return tmp_path


LAUNCH = """
at::Tensor spin_cuda(const at::Tensor& rows) {  // launch_nothing()
  const DeviceScope device(rows);
  check_launch(
      launch_spin(rows.data_ptr(), device.stream()));
}

void turn_cuda(const at::Tensor& rows, const DeviceScope& device) {
  check_launch(launch_turn(rows.data_ptr(), device.stream()));
}
"""


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_checker_accepts_a_complete_op(planted: Path) -> None:
    assert op_names(planted) == ["spin"]
    assert missing_parts(planted) == []
    assert wrong_imports(planted) == []
    assert unsafe_launches(planted) == []


@pytest.mark.parametrize("pattern", FILES_OF_AN_OP[1:])
def test_checker_names_a_missing_and_an_empty_file(planted: Path, pattern: str) -> None:
    path = pattern.format(op="spin", family="turns")
    plant(planted, path, "")
    assert missing_parts(planted) == [f"{path} is empty"]
    (planted / path).unlink()
    assert missing_parts(planted) == [path]


def test_checker_names_a_missing_header_as_an_op_without_a_family(planted: Path) -> None:
    (planted / "csrc" / "turns" / "spin.h").unlink()
    assert "csrc/FAMILY/spin.h" in missing_parts(planted)


def test_checker_names_a_part_in_another_family(planted: Path) -> None:
    plant(planted, "csrc/leaps/cpu/spin.cpp", "")
    (planted / "csrc" / "turns" / "cpu" / "spin.cpp").unlink()
    assert missing_parts(planted) == ["csrc/turns/cpu/spin.cpp"]


@pytest.mark.parametrize("path", EXPORTS_OF_AN_OP)
def test_checker_names_a_missing_export(planted: Path, path: str) -> None:
    plant(planted, path, "__all__ = []")
    assert missing_parts(planted) == [f"{path}: spin in __all__"]


@pytest.mark.parametrize("path", ENTRIES_OF_AN_OP)
@pytest.mark.parametrize("text", ["", "spinning", "launch_spin_backward(), def spin_backward(), `spins`"])
def test_checker_names_a_missing_entry(planted: Path, path: str, text: str) -> None:
    plant(planted, path, text)
    assert missing_parts(planted) == [f"{path}: {ENTRIES_OF_AN_OP[path].format(op='spin')}"]


def test_checker_names_an_exported_op_without_files(planted: Path) -> None:
    plant(planted, "deepclust_ext/ops/__init__.py", '__all__ = ["leap", "spin"]')
    assert op_names(planted) == ["leap", "spin"]
    assert set(missing_parts(planted)) > {"csrc/FAMILY/leap.h", "deepclust_ext/ops/leap.py", "CHANGELOG.md: `leap`"}


def test_checker_takes_a_function_of_an_op_for_a_part_of_it(planted: Path) -> None:
    imports = "from deepclust_ext.ops.spin import spin, spin_back\n"
    plant(planted, "deepclust_ext/ops/__init__.py", imports + '__all__ = ["spin", "spin_back"]')
    assert op_names(planted) == ["spin"]
    assert function_names(planted) == ["spin", "spin_back"]
    assert missing_parts(planted) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "wrong"),
    [
        ("torch/spin.cpp", "DeviceScope device(rows)", "int none", "launch_spin without a DeviceScope before it"),
        ("torch/spin.cpp", ", const DeviceScope& device", "", "launch_turn without a DeviceScope before it"),
        ("torch/spin.cpp", "check_launch(launch_turn", "(launch_turn", "launch_turn without check_launch"),
        ("torch/turn.h", "", "  check_launch(launch_turn(1));", "launch_turn without a DeviceScope before it"),
        ("spin.cu", "", "{ launch_rows(1); }", "launch_rows without a look at its status"),
        ("spin.cu", "", "if (x) device::launch(1);", "device::launch without a look at its status"),
        ("spin.cu", "", "else launch_type<decltype(x)>(1);", "launch_type without a look at its status"),
        ("spin.cuh", "", "x;  // why\n  device::memset_async(1);", "device::memset_async without a look at its status"),
    ],
)
def test_checker_names_an_unsafe_launch(planted: Path, path: str, old: str, new: str, wrong: str) -> None:
    path = f"csrc/turns/cuda/{path}"
    text = (planted / path).read_text() if old else ""
    assert old in text
    plant(planted, path, text.replace(old, new) if old else new)
    assert unsafe_launches(planted) == [f"{path}: {wrong}"]


def test_checker_names_a_file_that_sets_no_device_and_a_launch_past_device_h(planted: Path) -> None:
    plant(planted, "csrc/turns/cuda/torch/spin.cpp", "at::Tensor spin_cuda(const at::Tensor& rows) { return rows; }")
    plant(planted, "csrc/turns/cuda/spin.cu", "void launch_spin() { spin_kernel<<<1, 2>>>(); }")
    assert unsafe_launches(planted) == [
        "csrc/turns/cuda/torch/spin.cpp has no DeviceScope",
        "csrc/turns/cuda/spin.cu launches by <<<, not by device::launch",
    ]


def test_checker_accepts_launches_whose_status_is_kept(planted: Path) -> None:
    lines = [
        "cudaError_t launch_rows(int x) { return device::launch(rows_kernel<T>, x); }",
        "cudaError_t launch_spin(int x) {",
        "  cudaError_t error = device::memset_async(x);",
        "  if (error == cudaSuccess) error = launch_rows(x);",
        "  return error != cudaSuccess ? error : launch_type<decltype(x)>(x);  // ; launch_rows(x)",
        "}",
    ]
    plant(planted, "csrc/turns/cuda/spin.cu", "\n".join(lines))
    assert unsafe_launches(planted) == []


@pytest.mark.parametrize(
    ("path", "line", "module"),
    [
        ("deepclust_ext/ops/spin.py", "from deepclust_ext.losses import Spin", "deepclust_ext.losses"),
        ("deepclust_ext/ops/spin.py", "from deepclust_ext import losses", "deepclust_ext.losses"),
        ("deepclust_ext/ops/spin.py", "from deepclust_ext import fused_hsd_loss", "deepclust_ext"),
        ("deepclust_ext/ops/spin.py", "from ..methods.base import Base", "deepclust_ext.methods.base"),
        ("deepclust_ext/ops/spin.py", "def f():\n    import deepclust_ext.training", "deepclust_ext.training"),
        ("deepclust_ext/ops/spin.py", "from deepclust_ext import distributed", "deepclust_ext.distributed"),
        ("deepclust_ext/distributed/spin.py", "from deepclust_ext.losses import Spin", "deepclust_ext.losses"),
        ("deepclust_ext/losses/spin.py", "from deepclust_ext.methods import HaDis", "deepclust_ext.methods"),
        ("deepclust_ext/losses/spin.py", "from deepclust_ext import evaluation", "deepclust_ext.evaluation"),
        ("deepclust_ext/cluster/spin.py", "from deepclust_ext.data import Digits", "deepclust_ext.data"),
        ("deepclust_ext/data/spin.py", "from deepclust_ext.backbones import small", "deepclust_ext.backbones"),
        ("deepclust_ext/backbones/spin.py", "from deepclust_ext.methods import HaDis", "deepclust_ext.methods"),
        ("deepclust_ext/methods/spin.py", "from deepclust_ext.inference import embed", "deepclust_ext.inference"),
        ("deepclust_ext/inference/spin.py", "from deepclust_ext.training import Trainer", "deepclust_ext.training"),
        ("deepclust_ext/training/spin.py", "from deepclust_ext.evaluation import scores", "deepclust_ext.evaluation"),
        ("deepclust_ext/evaluation/spin.py", "from deepclust_ext import training", "deepclust_ext.training"),
        ("deepclust_ext/training/spin.py", "from deepclust_ext.recipes import load", "deepclust_ext.recipes"),
        ("deepclust_ext/recipes/spin.py", "from deepclust_ext.commands import demo", "deepclust_ext.commands"),
        ("deepclust_ext/commands/spin.py", "from deepclust_ext import __main__", "deepclust_ext.__main__"),
        ("deepclust_ext/_extension.py", "from deepclust_ext.reference import spin", "deepclust_ext.reference"),
        ("deepclust_ext/reference/spin.py", "from deepclust_ext.ops import spin", "deepclust_ext.ops"),
        ("deepclust_ext/reference/spin.py", "from deepclust_ext import _extension", "deepclust_ext._extension"),
        ("deepclust_ext/reference/spin.py", "import numpy as np", "numpy"),
    ],
)
def test_checker_names_an_import_that_goes_up(planted: Path, path: str, line: str, module: str) -> None:
    for unit in ("distributed", "losses", "methods", "training", "evaluation"):
        plant(planted, f"deepclust_ext/{unit}/__init__.py", "")
    plant(planted, "deepclust_ext/__main__.py", "")
    plant(planted, path, line)
    assert wrong_imports(planted) == [f"{path} imports {module}"]


def test_checker_names_a_tensor_on_any_device(planted: Path) -> None:
    plant(planted, "deepclust_ext/data/spin.py", "import torch\n\nx, y = torch.ones(3), torch.ones(3, device='cpu')")
    wrong = "deepclust_ext/data/spin.py makes a tensor on any device: torch.ones(3)"
    assert tensors_on_any_device(planted) == [wrong]


@pytest.mark.parametrize("path", ["deepclust_ext/spin.py", "deepclust_ext/garage/spin.py"])
def test_checker_names_a_file_outside_the_rooms(planted: Path, path: str) -> None:
    plant(planted, path, "import torch")
    assert wrong_imports(planted) == [f"{path} stands in no room of LEVELS"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("deepclust_ext/losses/spin.py", "from deepclust_ext import spin\nfrom deepclust_ext.losses.base import Base"),
        ("deepclust_ext/methods/spin.py", "from deepclust_ext.losses import Spin\nfrom deepclust_ext.data import load"),
        ("deepclust_ext/reference/spin.py", "import math\nimport torch\nfrom deepclust_ext.reference.turn import turn"),
        ("deepclust_ext/recipes/spin.py", "from deepclust_ext.training import Trainer"),
        ("deepclust_ext/commands/spin.py", "from deepclust_ext import recipes, reference\nimport deepclust_ext"),
        ("deepclust_ext/__main__.py", "from deepclust_ext.commands import demo"),
    ],
)
def test_checker_accepts_imports_that_go_down(planted: Path, path: str, line: str) -> None:
    plant(planted, "deepclust_ext/recipes/__init__.py", "")
    plant(planted, path, line)
    assert wrong_imports(planted) == []


@pytest.mark.parametrize(
    ("path", "line", "name"),
    [
        ("csrc/turns/cuda/spin.cu", "#include <torch/library.h>", "torch/library.h"),
        ("csrc/turns/cuda/spin.cu", "#include <c10/cuda/CUDAStream.h>", "c10/cuda/CUDAStream.h"),
        ("csrc/turns/cuda/spin.cuh", "# include <ATen/ATen.h>", "ATen/ATen.h"),
        ("csrc/turns/cuda/turn.cuh", '#include "cuda_fp16.h"', "cuda_fp16.h"),
        ("csrc/core/cuda/tile.cuh", "  #include <mma.h>", "mma.h"),
        ("csrc/core/rows.h", "#include <cuda_runtime.h>", "cuda_runtime.h"),
    ],
)
def test_checker_names_an_include_past_device_h(planted: Path, path: str, line: str, name: str) -> None:
    plant(planted, "csrc/core/rows.h", "")
    plant(planted, "csrc/turns/cuda/spin.cu", '#include "core/rows.h"')
    plant(planted, path, line)
    assert wrong_includes(planted) == [f"{path} includes {name}"]


def test_checker_accepts_what_kernel_code_may_include(planted: Path) -> None:
    plant(planted, "csrc/core/cuda/device.h", "#include <cuda_runtime.h>")
    plant(planted, "csrc/core/cuda/context.h", "#include <ATen/Context.h>")
    plant(planted, "csrc/turns/cuda/spin.cu", '#include <type_traits>\n#include "turns/cuda/spin.cuh"')
    plant(planted, "csrc/turns/cuda/spin.cuh", '#include <cstdint>\n#include "core/cuda/device.h"')
    plant(planted, "csrc/turns/cuda/torch/spin.cpp", '#include <c10/cuda/CUDAGuard.h>\n#include "core/cuda/context.h"')
    assert wrong_includes(planted) == []
