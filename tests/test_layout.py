"""The layer law, checked by machine: every op has all its files, imports go one way, names agree in every layer."""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deepclust_ext
from deepclust_ext import _extension, ops, reference

ROOT = Path(__file__).parents[1]

# The layer law: a room imports only from rooms with a lower number. The package itself stands for the ops it exports.
LEVELS = {
    "_C": 0,
    "_extension": 1,
    "reference": 1,
    "ops": 2,
    "distributed": 3,
    "losses": 4,
    "compat": 5,
    "cluster": 5,
    "data": 5,
    "backbones": 5,
    "methods": 6,
    "inference": 7,
    "training": 8,
    "evaluation": 8,
    "recipes": 9,
    "runs": 10,
    "commands": 11,
    "clusterer": 11,
    "__main__": 12,
}

# Functions that users look for in a room, and that a later one has: imported when they are called.
DOORS = {("deepclust_ext/inference/__init__.py", "deepclust_ext.runs")}

# By op and by its family, the folder of csrc/ in which its header stands.
FILES_OF_AN_OP = (
    "csrc/{family}/{op}.h",
    "csrc/{family}/README.md",
    "csrc/{family}/{op}.cpp",
    "csrc/{family}/cpu/{op}.cpp",
    "csrc/{family}/cuda/{op}.cuh",
    "csrc/{family}/cuda/{op}.cu",
    "csrc/{family}/cuda/torch/{op}.cpp",
    "deepclust_ext/reference/{op}.py",
    "tests/ops/test_{op}.py",
    "benchmarks/ops/{op}.py",
)


def op_names(root: Path) -> list[str]:
    """Return the ops: every public module of deepclust_ext/ops."""
    return sorted(path.stem for path in (root / "deepclust_ext" / "ops").glob("[!_]*.py"))


def family_of(root: Path, op: str) -> str:
    """Return the folder of csrc/ with the op's header, and where there is none, what stands for it."""
    return next((path.parent.name for path in sorted(root.glob(f"csrc/*/{op}.h"))), "FAMILY")


def missing_parts(root: Path) -> list[str]:
    """Return what the ops lack, each as a path or as the entry to add."""
    exports = {
        path: listed_names(root / path) for path in ("deepclust_ext/__init__.py", "deepclust_ext/ops/__init__.py")
    }
    samples = listed_names(root / "tests" / "ops" / "opsamples.py", "SAMPLE_INPUTS")
    missing = []
    for op in op_names(root):
        family = family_of(root, op)
        paths = [pattern.format(op=op, family=family) for pattern in FILES_OF_AN_OP]
        missing += [path for path in paths if not (root / path).is_file()]
        missing += [f"{path}: {op} in __all__" for path, names in exports.items() if op not in names]
        if op not in samples:
            missing.append(f"tests/ops/opsamples.py: {op} in SAMPLE_INPUTS")
    return missing


def listed_names(path: Path, variable: str = "__all__") -> set[str]:
    """Return the strings in a list literal, or the keys of a dict literal, that a module assigns to a variable."""
    for node in ast.parse(path.read_text()).body if path.is_file() else []:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            literal = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            return {
                entry.value for entry in literal if isinstance(entry, ast.Constant) and isinstance(entry.value, str)
            }
    return set()


def wrong_imports(root: Path) -> list[str]:
    """Return the imports that do not go down a layer, and rooms without a number.

    reference/ may import torch and the standard library only.
    """
    package = root / "deepclust_ext"
    wrong = []
    for path in sorted(package.rglob("*.py")):
        unit = path.relative_to(package).parts[0].removesuffix(".py")
        if unit not in (*LEVELS, "__init__"):
            wrong.append(f"{path.relative_to(root)} stands in no room of LEVELS")
            continue
        for module in imported_modules(path, package) if unit != "__init__" else ():
            top, *inside = module.split(".")
            if inside[:1] == [unit]:
                continue
            if unit == "reference":
                allowed = top == "torch" or top in sys.stdlib_module_names
            elif top == "deepclust_ext":
                target = inside[0] if inside else "ops"  # the package itself exports the ops
                allowed = target == "__version__" or LEVELS.get(target, LEVELS[unit]) < LEVELS[unit]
            else:
                allowed = True
            if not allowed and (path.relative_to(root).as_posix(), module) not in DOORS:
                wrong.append(f"{path.relative_to(root)} imports {module}")
    return wrong


def imported_modules(path: Path, package: Path) -> Iterator[str]:
    """Yield the absolute name of every module that a file imports, also by `from package import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = path.relative_to(package.parent).parent.parts
                base = ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                is_module = base == "deepclust_ext" and any(package.glob(f"{alias.name}*"))
                yield f"{base}.{alias.name}" if is_module else base


def wrong_includes(root: Path) -> list[str]:
    """Return what kernel code includes, itself or by a header, beyond device.h, csrc/ and the C++ standard library."""
    csrc = root / "csrc"
    files = [*sorted(csrc.glob("*/cuda/*.cu")), *sorted(csrc.glob("*/cuda/*.cuh"))]
    wrong = []
    for path in files:  # grows as it goes
        for quote, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.MULTILINE):
            header = csrc / name
            allowed = header.is_file() if quote == '"' else re.fullmatch(r"[a-z_]+", name)
            if not allowed:
                wrong.append(f"{path.relative_to(root)} includes {name}")
            elif quote == '"' and name != "core/cuda/device.h" and header not in files:
                files.append(header)
    return wrong


def test_there_are_ops_to_check() -> None:
    assert {"batch_hard_mining", "fused_hsd_loss"} <= set(op_names(ROOT))


def test_every_op_has_all_its_parts() -> None:
    missing = missing_parts(ROOT)
    assert not missing, "\n".join(["missing:", *missing])


def test_imports_go_down_the_layers_only() -> None:
    wrong = wrong_imports(ROOT)
    assert not wrong, "\n".join(wrong)


def test_kernel_code_sees_cuda_through_device_h_only() -> None:
    wrong = wrong_includes(ROOT)
    assert not wrong, "\n".join(wrong)


def test_no_python_file_exceeds_400_lines() -> None:
    folders = ("deepclust_ext", "tests", "benchmarks")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("op", op_names(ROOT))
def test_argument_names_and_order_agree(op: str) -> None:
    public = list(inspect.signature(getattr(ops, op)).parameters)
    assert list(inspect.signature(getattr(reference, op)).parameters) == public
    if not _extension.NATIVE_DEVICES:
        return
    schema = [argument.name for argument in getattr(torch.ops.deepclust_ext, op).default._schema.arguments]
    if "generator" in public:  # the function draws the op's seed from it
        schema.remove("seed")
    if "keep_gradient" in schema:  # the function finds it from what requires a gradient
        assert schema.pop() == "keep_gradient"
    assert schema == [name for name in public if name in schema]


@pytest.mark.parametrize("op", op_names(ROOT))
def test_pybind_entry_takes_the_arguments_of_the_schema(op: str) -> None:
    if not _extension.NATIVE_DEVICES:
        pytest.skip("no native library")
    signature = getattr(importlib.import_module("deepclust_ext._C"), op).__doc__.splitlines()[0]
    schema = [argument.name for argument in getattr(torch.ops.deepclust_ext, op).default._schema.arguments]
    assert re.findall(r"(\w+): ", signature) == schema


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
        path = tmp_path / pattern.format(op="spin", family="turns")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files = {
        "deepclust_ext/__init__.py": '__all__ = ["spin"]',
        "deepclust_ext/ops/__init__.py": '__all__ = ["spin"]',
        "deepclust_ext/ops/spin.py": "from deepclust_ext import _extension\nfrom deepclust_ext.reference import spin",
        "deepclust_ext/_extension.py": "import deepclust_ext._C",
        "tests/ops/opsamples.py": 'SAMPLE_INPUTS: dict[str, int] = {"spin": 1}',
    }
    for name, text in files.items():
        plant(tmp_path, name, text)
    return tmp_path


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_checker_accepts_a_complete_op(planted: Path) -> None:
    assert missing_parts(planted) == []
    assert wrong_imports(planted) == []


@pytest.mark.parametrize("pattern", FILES_OF_AN_OP[1:])
def test_checker_names_a_missing_file(planted: Path, pattern: str) -> None:
    path = pattern.format(op="spin", family="turns")
    (planted / path).unlink()
    assert missing_parts(planted) == [path]


def test_checker_names_a_missing_header_as_an_op_without_a_family(planted: Path) -> None:
    (planted / "csrc" / "turns" / "spin.h").unlink()
    assert "csrc/FAMILY/spin.h" in missing_parts(planted)


def test_checker_names_a_part_in_another_family(planted: Path) -> None:
    plant(planted, "csrc/leaps/cpu/spin.cpp", "")
    (planted / "csrc" / "turns" / "cpu" / "spin.cpp").unlink()
    assert missing_parts(planted) == ["csrc/turns/cpu/spin.cpp"]


@pytest.mark.parametrize("path", ["deepclust_ext/__init__.py", "deepclust_ext/ops/__init__.py"])
def test_checker_names_a_missing_export(planted: Path, path: str) -> None:
    plant(planted, path, '__all__ = ["other"]')
    assert missing_parts(planted) == [f"{path}: spin in __all__"]


@pytest.mark.parametrize("text", ["SAMPLE_INPUTS = {}", "", "OTHER = {'spin': 1}"])
def test_checker_names_a_missing_sample_entry(planted: Path, text: str) -> None:
    plant(planted, "tests/ops/opsamples.py", text)
    assert missing_parts(planted) == ["tests/ops/opsamples.py: spin in SAMPLE_INPUTS"]


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
