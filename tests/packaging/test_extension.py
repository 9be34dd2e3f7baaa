"""What the import does when the native library is missing, broken, or built for another torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import deepclust_ext
from tests.forks import template

PACKAGE = Path(deepclust_ext.__file__).parent

# An editable install finds every submodule in the checkout, also one that is missing from the copy under test.
WITHOUT_EDITABLE = "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"

# Runs the loss, which must work, and prints what the import said and chose.
PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import deepclust_ext
    from deepclust_ext import _extension
import torch
loss = deepclust_ext.fused_hsd_loss(torch.randn(6, 4), torch.randn(6, 4))
assert loss.isfinite(), loss
said = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
print(json.dumps([said, sorted(_extension.NATIVE_DEVICES), _extension.REASON]))
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package to break, whose parent folder goes on the path."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "deepclust_ext", ignore=shutil.ignore_patterns("__pycache__")))


def library_of(package: Path) -> Path:
    (library,) = package.glob("_C.*.so")
    return library


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Code in a process that imports a package as new, in its folder."""

    def run_code(package: Path, code: str = PROBE, **environment: str) -> "subprocess.CompletedProcess[str]":
        return template().run(WITHOUT_EDITABLE + code, package.parent, environment_of(package) | environment)

    return run_code


def environment_of(package: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DEEPCLUST_EXT_BACKEND"}
    return kept | {"PYTHONPATH": str(package.parent)}


def hide(package: Path) -> str:
    library_of(package).unlink()
    return f"it is not built for Python {sys.version_info[0]}.{sys.version_info[1]}"


def corrupt(package: Path) -> str:
    library_of(package).write_bytes(b"not a library")
    return "file too short"


def age(package: Path) -> str:
    (package / "_build.json").write_text(json.dumps({"torch_version": "2.0.1+cu118"}))
    return "it was built for torch 2.0.1+cu118, running torch is "


BREAKAGES = pytest.mark.parametrize("break_it", [hide, corrupt, age])


def test_a_good_library_loads_without_a_warning(copied: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_EDITABLE + PROBE]
    done = subprocess.run(
        command, cwd=copied.parent, env=environment_of(copied), capture_output=True, text=True, check=True
    )
    said, devices, reason = json.loads(done.stdout)
    assert said == []
    assert "cpu" in devices
    assert reason is None


@BREAKAGES
def test_the_reference_runs_after_one_warning_with_reason_and_cure(
    copied: Path, run: Run, break_it: Callable[[Path], str]
) -> None:
    expected = break_it(copied)
    result = run(copied)
    assert result.returncode == 0, result.stderr
    said, devices, reason = json.loads(result.stdout)
    assert len(said) == 1
    assert expected in said[0]
    assert "-m pip install --no-build-isolation" in said[0]
    assert devices == []
    assert expected in reason


def test_a_tree_without_a_library_before_an_installed_package_that_has_one(
    copied: Path, run: Run, tmp_path: Path
) -> None:
    """What happens after `pip install .` to whatever is run inside the checkout."""
    installed = Path(shutil.copytree(copied, tmp_path / "site-packages" / "deepclust_ext"))
    hide(copied)
    path = f"{copied.parent}{os.pathsep}{installed.parent}"
    said, devices, _ = json.loads(run(copied, PYTHONPATH=path).stdout)
    assert devices == []
    (message,) = said
    assert (
        f"in {copied}, which Python imports here instead of {installed}, and that has it: run from a folder that holds "
        f"no deepclust_ext, or build it here too. To build it: {sys.executable} -m pip install"
    ) in message
    library_of(installed).unlink()
    said, *_ = json.loads(run(copied, PYTHONPATH=path).stdout)
    assert f"in {copied}. To build it:" in said[0]


@BREAKAGES
def test_backend_native_makes_it_an_error(copied: Path, run: Run, break_it: Callable[[Path], str]) -> None:
    expected = break_it(copied)
    result = run(copied, DEEPCLUST_EXT_BACKEND="native")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: deepclust_ext has no usable native library")
    assert expected in last


def test_backend_reference_is_silent_even_with_a_broken_library(copied: Path, run: Run) -> None:
    corrupt(copied)
    result = run(copied, DEEPCLUST_EXT_BACKEND="reference")
    assert json.loads(result.stdout) == [[], [], "DEEPCLUST_EXT_BACKEND=reference"]


def test_an_unknown_backend_is_an_error(copied: Path, run: Run) -> None:
    result = run(copied, DEEPCLUST_EXT_BACKEND="cuda")
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ValueError: DEEPCLUST_EXT_BACKEND: expected auto, native or reference, got 'cuda'"


DEVICE_PROBE = """
import warnings
from deepclust_ext._extension import uses_native
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert [uses_native(name) for name in ("cpu", "meta", "mps", "mps", "xpu")] == [True, True, False, False, False]
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def test_a_device_without_kernels_warns_once_per_type(copied: Path, run: Run) -> None:
    lines = run(copied, DEVICE_PROBE).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "RuntimeWarning deepclust_ext was built without kernels for mps tensors",
        "RuntimeWarning deepclust_ext was built without kernels for xpu tensors",
    ]


def test_a_device_without_kernels_is_an_error_under_backend_native(copied: Path, run: Run) -> None:
    result = run(copied, DEVICE_PROBE, DEEPCLUST_EXT_BACKEND="native")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: deepclust_ext was built without kernels for mps tensors")


COMPILE_PROBE = """
import torch
from deepclust_ext._extension import uses_native
def choose(x):
    return x + 1 if uses_native(x.device.type) else x - 1
compiled = torch.compile(choose, fullgraph=True, backend="eager")
print(compiled(torch.zeros(())).item(), compiled(torch.zeros((), device="meta")).device)
"""


def test_the_library_of_another_tree_is_not_taken(copied: Path, run: Run) -> None:
    library = library_of(PACKAGE)
    hide(copied)
    # As the finder of an editable install elsewhere does.
    finder = f"""
import importlib.util
class Elsewhere:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, {str(library)!r}) if name == "deepclust_ext._C" else None
sys.meta_path.append(Elsewhere)
"""
    done = run(copied, finder + PROBE)
    assert done.returncode == 0, done.stderr
    said, devices, reason = json.loads(done.stdout)
    assert devices == []
    assert reason == f"{copied} has none, and that of another tree is not taken: {library}"
    assert len(said) == 1
    assert reason in said[0]


@pytest.mark.parametrize(("backend", "expected"), [("auto", "1.0 meta"), ("reference", "-1.0 meta")])
def test_the_choice_is_traced_without_a_graph_break(copied: Path, run: Run, backend: str, expected: str) -> None:
    result = run(copied, COMPILE_PROBE, DEEPCLUST_EXT_BACKEND=backend)
    assert result.stdout.strip() == expected, result.stderr
