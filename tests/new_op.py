"""Writes a new op: the files of a small one that works, and its entries in the files that list ops.

    python -m tests.new_op NAME --family FAMILY

NAME is the op's name in every layer, FAMILY its folder in csrc/, there already or new. The op squares every element of
a batch of rows, with its gradient, on CPU and CUDA. It builds and passes the tests as it is; then make of it what it is
to be. Its files stand in tests/template_op, each at its place, with OP, CamelOP and FAMILY for the names.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.layout import ROOT

TEMPLATES = ROOT / "tests" / "template_op"

SAMPLES = '''\
def OP_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Ragged sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 3), (2, 5), (37, 16), (131, 67))
    rows = {f"{n}x{d}": torch.randn(n, d, generator=generator, dtype=torch.float64) for n, d in sizes}
    return [Sample(name, (features.to(dtype).to(device),)) for name, features in rows.items()]


'''

LAUNCHES = """\
void OP(int64_t count, int64_t depth) {
  for (const ElementType type : {ElementType::kF32, ElementType::kF64, ElementType::kF16, ElementType::kBf16}) {
    require(launch_OP({type, count * depth, memory, nullptr}, memory, nullptr));
  }
}

"""

#: Keywords of C++ that are several words, as names of ops are; those of Python are one.
KEYWORDS = """and_eq char16_t char32_t char8_t co_await co_return co_yield const_cast dynamic_cast not_eq or_eq
reinterpret_cast static_assert static_cast thread_local wchar_t xor_eq"""

LISTED = r'^    "([a-z]\w*)",$|^\]'

# By path: what to add, each with the lines before which it may go, the first of them that is later in the alphabet
# where the pattern has a group.
ENTRIES = {
    "deepclust_ext/reference/__init__.py": (
        (r"^from ", "from deepclust_ext.reference.OP import OP\n"),
        (LISTED, '    "OP",\n'),
    ),
    "deepclust_ext/ops/__init__.py": (
        (r"^from ", "from deepclust_ext.ops.OP import OP\n"),
        (LISTED, '    "OP",\n'),
    ),
    "deepclust_ext/__init__.py": (
        (r"^    from ", "    from deepclust_ext.ops.OP import OP\n"),
        (LISTED, '    "OP",\n'),
    ),
    "deepclust_ext/_C.pyi": ((r"^def (?!build_info)(\w+)\(|\Z", "def OP(features: Tensor) -> Tensor: ...\n"),),
    "csrc/module.cpp": (
        (r'^#include "(\w+/\w+\.h)"|^\nTORCH_LIBRARY', '#include "FAMILY/OP.h"\n'),
        (r"^  DEEPCLUST_ENTRY\((\w+)\)|^}\n\Z", "  DEEPCLUST_ENTRY(OP);\n"),
    ),
    "tests/ops/opsamples.py": ((r"^#: By op: ", SAMPLES),),
    "tests/cuda/launches/main.cu": (
        (r'^#include "(\w+/cuda/\w+\.cuh)"|^\nnamespace', '#include "FAMILY/cuda/OP.cuh"\n'),
        (r"^}  // namespace$", LAUNCHES),
        (r"^      pair_gradient\(count, depth\);$", "      OP(count, depth);\n"),
    ),
    "CHANGELOG.md": ((r"^- ", "- `OP`: every element of a batch of rows squared, on CPU and CUDA.\n"),),
}


def filled(text: str, op: str, family: str) -> str:
    """Return a template with the names filled in."""
    camel = "".join(word.capitalize() for word in op.split("_"))
    return text.replace("CamelOP", camel).replace("OP", op).replace("FAMILY", family)


def new_files(root: Path, op: str, family: str) -> dict[Path, str]:
    """Return what the op's files are to hold; a family that is there keeps its README."""
    files = {}
    for template in sorted(TEMPLATES.rglob("*.txt")):
        path = root / filled(str(template.relative_to(TEMPLATES).with_suffix("")), op, family)
        if path.name != "README.md" or not path.is_file():
            files[path] = filled(template.read_text(), op, family)
    return files


def with_entry(text: str, places: str, entry: str) -> str:
    """Return a text with an entry before the first place that has no name, or one that is later than the entry's."""
    own = re.search(places, entry, re.MULTILINE)
    name = own[1] if own and own.lastindex else ""
    for place in re.finditer(places, text, re.MULTILINE):
        if not place.lastindex or place[1] > name:
            return text[: place.start()] + entry + text[place.start() :]
    raise ValueError(f"no place for {entry!r}")


def find_fault(root: Path, op: str, family: str) -> str | None:
    """Return what is wrong with the names, or None."""
    if re.search(rf"\b{op}\b", KEYWORDS):
        return f"NAME: expected no keyword of C++, got {op!r}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+(?<!_backward)", op):
        return f"NAME: expected several words in lower case joined by _, like kmeans_assign, no OP_backward, got {op!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", family) or family == "core":
        return f"--family: expected a word in lower case other than core, such as kmeans, got {family!r}"
    there = [path for path in new_files(root, op, family) if path.exists()]
    there += [root / path for path in ENTRIES if re.search(rf"\b{op}\b", (root / path).read_text())]
    return f"NAME: expected a new one, got {op!r}, see {there[0].relative_to(root)}" if there else None


def write_op(root: Path, op: str, family: str) -> list[Path]:
    """Write files and entries, format them, and return the paths.

    Raises:
        ValueError: A name is bad or used; then nothing is written.
    """
    if fault := find_fault(root, op, family):
        raise ValueError(fault)
    files = new_files(root, op, family)
    for name, entries in ENTRIES.items():
        text = (root / name).read_text()
        for places, entry in entries:
            text = with_entry(text, places, filled(entry, op, family))
        files[root / name] = text
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    format_files(root, list(files))
    return list(files)


def format_files(root: Path, paths: list[Path]) -> None:
    """Format files as `make format` does: longer names make longer lines, and another order of imports."""
    tools = Path(sys.executable).parent
    python = [path for path in paths if path.suffix in (".py", ".pyi")]
    native = [path for path in paths if path.suffix in (".h", ".cpp", ".cuh", ".cu")]
    commands: list[list[str | Path]] = [
        [tools / "ruff", "check", "--quiet", "--select", "I", "--fix", *python],
        [tools / "ruff", "format", "--quiet", *python],
        [tools / "clang-format", "-i", *native],
    ]
    for command in commands:
        subprocess.run(command, cwd=root, check=True)


def trial(op: str) -> str:
    """Return the command that builds an op and tests it: by all that concerns it, and whether it lacks a part."""
    return f"""make test TESTS='tests/test_layout.py tests/test_signatures.py tests/ops -k "{op} or layout"'"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m tests.new_op", description="Write the files and entries of a new op.")
    parser.add_argument("name", metavar="NAME", help="in every layer, such as kmeans_assign")
    parser.add_argument("--family", required=True, help="the folder of csrc/, there already or new")
    options = parser.parse_args()
    try:
        paths = write_op(ROOT, options.name, options.family)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print("\n".join(f"written: {path.relative_to(ROOT)}" for path in paths))
    print(f"Build it and try it: {trial(options.name)}")
    print("Keep hashes of its results: python -m tests.same_bits --write")


if __name__ == "__main__":
    main()
