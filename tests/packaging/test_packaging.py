"""Every documented way to install gives a package that works from outside the checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from tests.cuda.emulator.build import KERNEL_FLAGS, ROOT, emulating_compiler, is_stale, load_setup
from tests.new_op import write_op

BUILD = ("-m", "build", "--no-isolation", "--outdir")

pytestmark = pytest.mark.slow

PROBE = """
import torch, deepclust_ext
from deepclust_ext import _extension
loss, *_ = torch.ops.deepclust_ext.fused_hsd_loss(torch.randn(9, 4), torch.randn(9, 4))
assert loss.isfinite() and "cpu" in _extension.NATIVE_DEVICES
print(deepclust_ext.__file__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without what this test run has in its environment, and show its output if it fails.

    Without CUDA kernels, which take minutes to build and nothing to package, unless `environment` asks for them.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))
    }
    result = subprocess.run(
        command,
        cwd=cwd,
        env=kept | {"DEEPCLUST_EXT_CUDA": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(result.stdout)
    return result


def succeed(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = run(*command, cwd=cwd, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout


def make_environment(folder: Path, *, isolated: bool) -> Path:
    """Make a virtual environment and return its Python; unless isolated, it sees the packages of the running one."""
    venv.create(folder, with_pip=isolated)
    python = folder / "bin" / "python"
    if not isolated:
        purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (purelib / "running.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Install without dependencies into an environment made by :func:`make_environment` with isolated=False."""
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation")
    return succeed(*pip, *arguments, cwd=cwd, **environment)


def lend(name: str, python: Path) -> None:
    """Link a package of the running environment and all that it needs into another, where pip finds it installed.

    What pip does not find it would install through the link of a folder that packages share, into the running one.
    """
    folder = site_packages(python)
    asked, lent = [Requirement(name)], set()
    while asked:
        wanted = asked.pop()
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:  # of another system
            continue
        extras = ("", *sorted(wanted.extras))
        if (found.name, extras) in lent:
            continue
        lent.add((found.name, extras))
        for need in map(Requirement, found.requires or ()):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                asked.append(need)
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))  # type: ignore[arg-type]


def check_installation(python: Path, outside: Path, *, package: Path) -> None:
    """Check that the installed package lies where it should and runs natively; `outside` is no checkout."""
    assert Path(succeed(python, "-c", PROBE, cwd=outside).strip()).parent == package
    info = json.loads(succeed(python.parent / "deepclust-ext", "info", "--json", cwd=outside))
    assert info["backend"] == "native"
    assert info["built_for_torch"].split("+")[0] == torch.__version__.split("+")[0]


def site_packages(python: Path) -> Path:
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree as a fresh clone has it, so that no test builds in the real one."""
    leftovers = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "_build.json", ".*_cache", "__pycache__"
    )

    def ignored(folder: str, names: list[str]) -> set[str]:  # runs at the top, not the room of that name
        return leftovers(folder, names) | ({"runs"} if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignored))


@pytest.fixture
def source(checkout: Path, tmp_path: Path) -> Path:
    """The unpacked source distribution."""
    succeed(sys.executable, *BUILD, tmp_path / "dist", "--sdist", cwd=checkout)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    return tmp_path / sdist.name.removesuffix(".tar.gz")


def made_objects() -> dict[str, str]:
    """Return the object files that `make setup` and `make check-cuda` left here, by source, where nothing is newer.

    A file for each compiler is left out and compiled in every test, so that setup.py's commands are tried.
    """
    setup_py = load_setup()
    csrc, native, cuda = ROOT / "csrc", ROOT / setup_py.objects_folder(torch.__version__), ROOT / "build" / "check-cuda"
    kernels = [path.relative_to(ROOT) for path in csrc.glob("*/cpu/*.cpp")]
    by_setup = {str(path): native / path.with_suffix(".o") for path in kernels}
    by_setup["build/units/bindings.cpp"] = native / "build/units/bindings.o"
    by_check = {str(path.relative_to(ROOT)): cuda / f"{path.stem}.o" for path in csrc.glob("*/cuda/*.cu")}
    by_check["build/units/cuda.cpp"] = cuda / "cuda.host.o"
    del by_check["csrc/mining/cuda/pair_gradient.cu"]
    inputs = [ROOT / "setup.py", *(path for path in csrc.rglob("*") if path.is_file())]
    record = ROOT / "deepclust_ext" / "_build.json"  # what is newer than this was made for the torch that runs
    fresh = {source: path for source, path in by_setup.items() if not is_stale(path, inputs)}
    fresh |= {source: path for source, path in by_check.items() if not is_stale(path, [*inputs, record])}
    return {source: str(path) for source, path in fresh.items()}


COMPILER = """\
#!{python} -IS
import os, shutil, sys
following = dict(zip(sys.argv, sys.argv[1:]))
if "-c" in following:
    source = os.path.relpath(following["-c"], {tree!r})
    with open({log!r}, "a") as log:
        print(source, file=log)
    if made := {made!r}.get(source):
        shutil.copyfile(made, following["-o"])
        sys.exit()
os.execvp({command!r}[0], [*{command!r}, *sys.argv[1:]])
"""


def reusing_compilers(tree: Path, log: Path, changed: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment in which a tree equal to this checkout is built from the object files made here.

    Each source that is to be compiled goes into the log; one without such an object file, or that changed, is compiled.
    """
    commands = {"CXX": shlex.split(os.environ.get("CXX", "c++"))}
    if found := load_setup().find_toolkit(os.environ):
        commands["PYTORCH_NVCC"] = [str(found[0] / "bin" / "nvcc")]
    made = {source: path for source, path in made_objects().items() if source not in changed}
    environment = {}
    for variable, command in commands.items():
        path = log.with_name(variable)
        path.write_text(
            COMPILER.format(python=sys.executable, tree=str(tree), log=str(log), made=made, command=command)
        )
        path.chmod(0o755)
        environment[variable] = str(path)
    return environment


def test_pip_install_in_isolation(source: Path, tmp_path: Path) -> None:
    """From what a source distribution ships, in environments that hold nothing else, but for torch in the second one.

    The next test says that nothing of csrc/ is left out, so what `make setup` compiled with this torch is used again.
    Torch has gigabytes: pip unpacks it for the build, and what runs is the same one, which pip has to ask for.
    """
    constraint = tmp_path / "constraint.txt"  # the build environment's torch must be the one that then runs
    constraint.write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    python = make_environment(tmp_path / "environment", isolated=True)
    lend("torch", python)
    pins = {"PIP_CONSTRAINT": str(constraint), "PIP_BUILD_CONSTRAINT": str(constraint)}
    compiled = tmp_path / "compiled"
    settings = {"PIP_COMPILE": "0", **pins, **reusing_compilers(source, compiled)}
    said = succeed(python, "-m", "pip", "install", ".", cwd=source, **settings)
    assert re.search(r"^Requirement already satisfied: torch>=.* \(from deepclust.ext", said, flags=re.MULTILINE)
    (installed,) = re.findall(r"^Installing collected packages: (.*)", said, flags=re.MULTILINE)
    assert not {name for name in installed.split(", ") if re.match("torch|cuda|nvidia", name)}
    check_installation(python, tmp_path, package=site_packages(python) / "deepclust_ext")
    assert {"build/units/bindings.cpp", "csrc/build_info.cpp"} <= set(compiled.read_text().split())


def test_source_distribution_wheel_and_editable_install(checkout: Path, source: Path, tmp_path: Path) -> None:
    """All from one tree, with CUDA where there is a toolkit: object files are made once."""
    shipped = {str(path.relative_to(source)) for path in source.rglob("*")}
    native = {str(path.relative_to(checkout)) for path in (checkout / "csrc").rglob("*") if path.is_file()}
    assert native | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= shipped
    assert "build" not in shipped

    compiled = tmp_path / "compiled"
    settings = {"DEEPCLUST_EXT_CUDA": "auto", "TORCH_CUDA_ARCH_LIST": "9.0", **reusing_compilers(source, compiled)}
    python = make_environment(tmp_path / "environment", isolated=False)
    said = succeed(python, *BUILD, tmp_path / "dist", "--wheel", cwd=source, **settings)
    assert "-std=" not in said  # no command of a compiler
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"deepclust_ext"}
    package = {name.removeprefix("deepclust_ext/") for name in names}
    assert {"py.typed", "_C.pyi", "_build.json", f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"} <= package
    recipes = {f"recipes/{path.name}" for path in (checkout / "deepclust_ext" / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes <= package
    install(python, wheel, cwd=tmp_path)
    check_installation(python, tmp_path, package=site_packages(python) / "deepclust_ext")

    install(python, "--editable", ".", cwd=source, **settings)
    check_installation(python, tmp_path, package=source / "deepclust_ext")
    sources = compiled.read_text().split()
    assert {"build/units/bindings.cpp", "csrc/build_info.cpp"} <= set(sources)
    assert len(sources) == len(set(sources))


def test_an_op_as_new_op_writes_it_builds_and_passes(checkout: Path, tmp_path: Path) -> None:
    write_op(checkout, "spin_rows", "turns")
    objects = reusing_compilers(checkout, tmp_path / "compiled", changed=["build/units/bindings.cpp"])
    build = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    succeed(*build, cwd=checkout, DEEPCLUST_EXT_WERROR="1", **objects)
    names = ("test_layout", "test_signatures", "ops/test_spin_rows", "ops/test_all_ops")
    tests = [f"tests/{name}.py" for name in names]
    succeed(sys.executable, "-m", "pytest", "-n", "0", *tests, "-k", "spin_rows", cwd=checkout)
    files = ("deepclust_ext/ops/spin_rows.py", "tests/ops/test_spin_rows.py", "benchmarks/ops/spin_rows.py")
    if (known := ROOT / ".mypy_cache").is_dir():  # what `make typecheck` knows of torch
        shutil.copytree(known, checkout / known.name)
    succeed(sys.executable, "-m", "mypy", *files, cwd=checkout)
    if load_setup().find_toolkit(os.environ):
        compiler = [*emulating_compiler(), *KERNEL_FLAGS["plain"], f"-I{checkout / 'csrc'}", "-x", "c++", "-Werror"]
        succeed(*compiler, "-c", "csrc/turns/cuda/spin_rows.cu", "-o", tmp_path / "kernel.o", cwd=checkout)


def test_install_without_the_native_library(checkout: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", isolated=False)
    install(python, ".", cwd=checkout, DEEPCLUST_EXT_NATIVE="0")
    output = succeed(python.parent / "deepclust-ext", "info", cwd=tmp_path)
    assert "backend       reference: it is not built for Python" in output
    assert "deepclust-ext: warning: deepclust_ext has no usable native library" in output


def test_a_build_that_fails_says_so_and_names_the_way_out(checkout: Path, tmp_path: Path) -> None:
    command = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        tmp_path / "here",
        ".",
    )
    result = run(*command, cwd=checkout, CC="no-such-compiler", CXX="no-such-compiler")
    assert result.returncode != 0
    assert "deepclust_ext: the native library did not build" in result.stdout
    assert "DEEPCLUST_EXT_NATIVE=0" in result.stdout
