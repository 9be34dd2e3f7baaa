"""What tests/test_layout.py checks: parts of an op, the layer law, devices, what kernels include and their launches."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

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

# What makes tensors on torch's default device, unless told another.
FACTORIES = re.compile(r"torch\.(arange|as_tensor|empty|eye|full|linspace|ones|rand(int|n|perm)?|tensor|zeros)")

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
    "deepclust_ext/ops/{op}.py",
    "tests/ops/test_{op}.py",
    "benchmarks/ops/{op}.py",
)

EXPORTS_OF_AN_OP = (
    "deepclust_ext/__init__.py",
    "deepclust_ext/ops/__init__.py",
    "deepclust_ext/reference/__init__.py",
)

# By path, what stands there of an op.
ENTRIES_OF_AN_OP = {
    "tests/ops/opsamples.py": "def {op}_samples(",
    "csrc/module.cpp": "DEEPCLUST_ENTRY({op})",
    "deepclust_ext/_C.pyi": "def {op}(",
    "tests/cuda/launches/main.cu": "launch_{op}(",
    "CHANGELOG.md": "`{op}`",
}


def text_of(path: Path) -> str:
    """Return what a file holds, nothing where there is none."""
    return path.read_text() if path.is_file() else ""


def op_names(root: Path) -> list[str]:
    """Return the ops: the functions that deepclust_ext.ops exports and its public modules.

    A function that comes from the module of another op is a part of that op.
    """
    folder = root / "deepclust_ext" / "ops"
    homes = imported_from(folder / "__init__.py")
    exported = {name for name in listed_names(folder / "__init__.py") if name.islower()}
    apart = {name for name in exported if homes.get(name, name) == name}
    return sorted(apart | {path.stem for path in folder.glob("[!_]*.py")})


def function_names(root: Path) -> list[str]:
    """Return all functions that deepclust_ext.ops exports, those that share a module with an op too."""
    return sorted(name for name in listed_names(root / "deepclust_ext" / "ops" / "__init__.py") if name.islower())


def imported_from(path: Path) -> dict[str, str]:
    """Return by name the last part of the module that a file imports it from."""
    nodes = ast.parse(text_of(path)).body
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module).rpartition(".")[2] for node in found for alias in node.names}


def family_of(root: Path, op: str) -> str:
    """Return the folder of csrc/ with the op's header, and where there is none, what stands for it."""
    return next((path.parent.name for path in sorted(root.glob(f"csrc/*/{op}.h"))), "FAMILY")


def missing_parts(root: Path) -> list[str]:
    """Return what the ops lack, each as a path, as a path that is empty, or as the entry to add."""
    exports = {path: listed_names(root / path) for path in EXPORTS_OF_AN_OP}
    texts = {path: text_of(root / path) for path in ENTRIES_OF_AN_OP}
    missing = []
    for op in op_names(root):
        family = family_of(root, op)
        for path in (pattern.format(op=op, family=family) for pattern in FILES_OF_AN_OP):
            if not (root / path).is_file():
                missing.append(path)
            elif not text_of(root / path).strip():
                missing.append(f"{path} is empty")
        missing += [f"{path}: {op} in __all__" for path, names in exports.items() if op not in names]
        entries = {path: entry.format(op=op) for path, entry in ENTRIES_OF_AN_OP.items()}
        missing += [f"{path}: {entry}" for path, entry in entries.items() if entry not in texts[path]]
    return missing


def listed_names(path: Path) -> set[str]:
    """Return the strings in the list literal that a module assigns to __all__."""
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, ast.Assign) and any(isinstance(x, ast.Name) and x.id == "__all__" for x in node.targets):
            literal = getattr(node.value, "elts", [])
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


def tensors_on_any_device(root: Path) -> list[str]:
    """Return where the package makes a tensor without naming its device: there the user's default one would count.

    Networks and losses are made where the user wants them.
    """
    wrong = []
    for path in sorted((root / "deepclust_ext").rglob("*.py")):
        if path.parent.name in ("backbones", "losses", "methods"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not FACTORIES.fullmatch(ast.unparse(node.func)):
                continue
            if all(keyword.arg != "device" for keyword in node.keywords):
                wrong.append(f"{path.relative_to(root)} makes a tensor on any device: {ast.unparse(node)}")
    return wrong


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


def unsafe_launches(root: Path) -> list[str]:
    """Return the launches of kernels whose device nobody sets, or whose status nobody looks at.

    A file for CUDA tensors has a DeviceScope, in every function that launches and before it does, and hands the status
    to check_launch. Kernel code returns the status or keeps it.
    """
    wrong = []
    for path in sorted(root.glob("csrc/*/cuda/torch/*")):
        where, text = path.relative_to(root), without_comments(path.read_text())
        if path.suffix == ".cpp" and "DeviceScope" not in text:
            wrong.append(f"{where} has no DeviceScope")
        for function in re.split(r"^}", text, flags=re.MULTILINE):  # which ends with a brace in the first column
            for call in re.finditer(r"(check_launch\(\s*)?\b(launch_\w+)\(", function):
                if "DeviceScope" not in function[: call.start()]:
                    wrong.append(f"{where}: {call[2]} without a DeviceScope before it")
                if not call[1]:
                    wrong.append(f"{where}: {call[2]} without check_launch")
    for path in [*sorted(root.glob("csrc/*/cuda/*.cu")), *sorted(root.glob("csrc/*/cuda/*.cuh"))]:
        where, text = path.relative_to(root), without_comments(path.read_text())
        if "<<<" in text:
            wrong.append(f"{where} launches by <<<, not by device::launch")
        # A statement that begins with the call drops what it returns.
        dropped = re.findall(r"(?:[;{})]|\belse\b)\s*((?:device::)?(?:launch\w*|memset_async))(?:<[^;]*?>)?\(", text)
        wrong += [f"{where}: {call} without a look at its status" for call in dropped]
    return wrong


def without_comments(text: str) -> str:
    """Return C++ without what stands behind // and between /* and */."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
