"""What tests/new_op.py writes lacks nothing and is formatted; a build of it is in tests/packaging/test_packaging.py."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout import ROOT, family_of, missing_parts, op_names, unsafe_launches, wrong_imports, wrong_includes
from tests.new_op import find_fault, trial, with_entry, write_op
from tests.signatures import wrong_signatures

FOLDERS = ("csrc", "deepclust_ext", "tests/ops", "tests/cuda/launches", "benchmarks/ops")
FILES = ("CHANGELOG.md", "pyproject.toml", ".clang-format")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what an op is written to."""
    leftovers = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leftovers)
    for name in FILES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def contents(root: Path) -> dict[Path, str]:
    files = [path for path in root.rglob("*") if path.is_file() and ".ruff_cache" not in path.parts]
    return {path: path.read_text() for path in files}


@pytest.mark.parametrize(
    ("op", "family"),
    [("spin_rows", "turns"), ("among_rows", "kmeans"), ("z_of_weighted_and_normalized_rows", "kmeans")],
)
def test_a_new_op_lacks_nothing(checkout: Path, op: str, family: str) -> None:
    before = contents(checkout)
    written = write_op(checkout, op, family)
    assert op in op_names(checkout)
    assert family_of(checkout, op) == family
    assert missing_parts(checkout) == []
    assert wrong_imports(checkout) == wrong_includes(checkout) == unsafe_launches(checkout) == []
    assert wrong_signatures(checkout) == []
    after = contents(checkout)
    assert {path for path in after if after[path] != before.get(path)} == set(written)
    for path in after.keys() - before.keys():
        assert not re.search("OP|FAMILY", after[path])
        assert all(len(line) <= 120 for line in after[path].splitlines())
    python = [path for path in written if path.suffix in (".py", ".pyi")]
    native = [path for path in written if path.suffix in (".h", ".cpp", ".cuh", ".cu")]
    lint: list[list[str | Path]] = [
        ["ruff", "check", *python],
        ["ruff", "format", "--check", *python],
        ["clang-format", "--dry-run", "--Werror", *native],
    ]
    for tool, *arguments in lint:
        subprocess.run([Path(sys.executable).with_name(str(tool)), *arguments], cwd=checkout, check=True)


def test_a_new_family_has_a_readme_and_one_that_is_there_keeps_its_own(checkout: Path) -> None:
    readme = checkout / "csrc" / "kmeans" / "README.md"
    before = readme.read_text()
    write_op(checkout, "spin_rows", "kmeans")
    assert readme.read_text() == before
    write_op(checkout, "leap_rows", "turns")
    assert "`leap_rows`" in (checkout / "csrc" / "turns" / "README.md").read_text()
    assert missing_parts(checkout) == []


@pytest.mark.parametrize(
    ("op", "family", "message"),
    [
        (
            "spin",
            "turns",
            "NAME: expected several words in lower case joined by _, like kmeans_assign, no OP_backward",
        ),
        ("Spin_rows", "turns", "NAME: expected several words in lower case"),
        ("class", "turns", "NAME: expected several words in lower case"),
        ("static_cast", "turns", "NAME: expected no keyword of C++, got 'static_cast'"),
        ("spin-rows", "turns", "NAME: expected several words in lower case"),
        ("spin_rows_backward", "turns", "NAME: expected several words in lower case"),
        ("spin_rows", "core", "--family: expected a word in lower case other than core, such as kmeans, got 'core'"),
        ("spin_rows", "../turns", "--family: expected a word in lower case"),
        ("kmeans_assign", "kmeans", "NAME: expected a new one, got 'kmeans_assign', see benchmarks/ops/kmeans_assign"),
        ("kmeans_step", "kmeans", "NAME: expected a new one, got 'kmeans_step', see tests/ops/test_kmeans_step.py"),
        ("pair_gradient", "mining", "NAME: expected a new one, got 'pair_gradient', see csrc/mining/cpu/pair_gradien"),
        ("build_info", "turns", "NAME: expected a new one, got 'build_info', see deepclust_ext/_C.pyi"),
    ],
)
def test_bad_and_used_names_are_refused_in_one_line(op: str, family: str, message: str) -> None:
    fault = find_fault(ROOT, op, family)
    assert fault is not None
    assert fault.startswith(message)
    assert "\n" not in fault


def test_of_what_is_refused_nothing_is_written(checkout: Path) -> None:
    before = contents(checkout)
    with pytest.raises(ValueError, match="^NAME: expected a new one, got 'kmeans_step', see "):
        write_op(checkout, "kmeans_step", "turns")
    assert contents(checkout) == before


def test_the_trial_of_an_op_is_that_of_the_page_and_tells_missing_parts() -> None:
    assert trial("OP") in (ROOT / "CONTRIBUTING.md").read_text()
    _, tests = shlex.split(trial("spin_rows").removeprefix("make test TESTS="))[0].split(" -k ")
    names = shlex.split(tests)[0].split(" or ")
    assert any(name in "tests/test_layout.py::test_every_op_has_all_its_parts" for name in names)


def test_an_entry_goes_where_the_alphabet_says() -> None:
    places = r'^  "(\w+)",$|^\]'
    listed = '[\n  "b",\n  "d",\n]\n'
    assert with_entry(listed, places, '  "a",\n') == '[\n  "a",\n  "b",\n  "d",\n]\n'
    assert with_entry(listed, places, '  "c",\n') == '[\n  "b",\n  "c",\n  "d",\n]\n'
    assert with_entry(listed, places, '  "e",\n') == '[\n  "b",\n  "d",\n  "e",\n]\n'
    with pytest.raises(ValueError, match="no place for"):
        with_entry("nothing", places, '  "e",\n')
