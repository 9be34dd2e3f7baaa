"""Compiles every CUDA kernel for the default architectures and checks what ptxas and the launch code say about it.

    python -m tests.cuda.check_cuda

It needs nvcc and no GPU. It fails on a warning, a spilled register, a block that asks for more registers, threads or
shared memory than the architecture has, a grid out of range, and a kernel that tests/cuda/launches never launches.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.emulator.build import COMPILERS_AT_ONCE, ROOT, gencode_flags, load_setup, toolkit

LAUNCHES = ROOT / "tests" / "cuda_launches"
REGISTERS_PER_BLOCK = 65536
REGISTER_UNIT = 8  # per thread, in which the hardware hands them out
STATIC_SHARED_LIMIT = 48 << 10
SHARED_LIMITS = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10}  # static and dynamic, of one block
GRID_LIMITS = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Kernel:
    """What ptxas says about one kernel on one architecture; its name is the mangled one."""

    name: str
    architecture: str
    registers: int
    spill_bytes: int
    static_shared: int


@dataclass(frozen=True)
class Launch:
    """One launch, as tests/cuda/launches/recorder.cpp prints it."""

    name: str
    grid: tuple[int, int, int]
    threads: int
    dynamic_shared: int


def parse_ptxas(text: str) -> list[Kernel]:
    """Return the kernels in what `nvcc -Xptxas -v` prints; a kernel answers for the functions that it calls."""
    kernels = []
    name = architecture = ""
    spill_bytes = 0
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, architecture, spill_bytes = entry[1], entry[2], 0
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spill_bytes += int(spills[1]) + int(spills[2])
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels.append(Kernel(name, architecture, int(used[1]), spill_bytes, int(shared[1]) if shared else 0))
    return kernels


def parse_launch_bounds(ptx: str) -> dict[str, int]:
    """Return the most threads of a block that the kernels in a PTX file allow, of those that say it."""
    bounds = re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", ptx)
    return {name: int(x) * int(y or 1) * int(z or 1) for name, x, y, z in bounds}


def parse_launches(text: str) -> list[Launch]:
    """Return the launches that the recorder printed."""
    launches = []
    for line in text.splitlines():
        name, *numbers = line.split()
        x, y, z, threads, dynamic_shared = map(int, numbers)
        launches.append(Launch(name, (x, y, z), threads, dynamic_shared))
    return launches


def find_problems(kernel: Kernel, launches: Sequence[Launch], launch_bound: int | None) -> list[str]:
    """Return what is wrong with one kernel on one architecture.

    Args:
        kernel: What ptxas said.
        launches: All launches of this kernel.
        launch_bound: The threads of its __launch_bounds__; None if it has none.
    """
    problems = []
    if kernel.spill_bytes:
        problems.append(f"spills {kernel.spill_bytes} bytes")
    if kernel.static_shared > STATIC_SHARED_LIMIT:
        problems.append(f"{kernel.static_shared} bytes of static shared memory, limit {STATIC_SHARED_LIMIT}")
    if launch_bound is None:
        problems.append("no __launch_bounds__")
    if not launches:
        problems.append("never launched by tests/cuda/launches/main.cu")
    for launch in launches:
        registers = -(-kernel.registers // REGISTER_UNIT) * REGISTER_UNIT * launch.threads
        if registers > REGISTERS_PER_BLOCK:
            problems.append(f"{launch.threads} threads take {registers} registers, limit {REGISTERS_PER_BLOCK}")
        if launch_bound is not None and launch.threads > launch_bound:
            problems.append(f"launched with {launch.threads} threads, __launch_bounds__ says {launch_bound}")
        shared = kernel.static_shared + launch.dynamic_shared
        if shared > SHARED_LIMITS[kernel.architecture]:
            problems.append(f"{shared} bytes of shared memory, limit {SHARED_LIMITS[kernel.architecture]}")
        if not all(1 <= blocks <= limit for blocks, limit in zip(launch.grid, GRID_LIMITS, strict=True)):
            problems.append(f"launched with grid {launch.grid}, limit {GRID_LIMITS}")
    return [f"{kernel.architecture}: {problem}" for problem in dict.fromkeys(problems)]


def short_name(demangled: str) -> str:
    """Return a kernel's name and template arguments, without namespaces, result and parameters."""
    name = re.sub(r"(\(anonymous namespace\)|\w+)::|^void ", "", demangled)
    return name.partition("(")[0]


def demangle(names: Iterable[str]) -> list[str]:
    """Return the C++ names of mangled ones."""
    return subprocess.run(
        ["c++filt", "--no-params", *names], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def run(command: Sequence[str | Path]) -> str:
    """Run a command and return what it prints; on failure show that and stop."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}")
    return result.stdout


def compile_kernels(sources: Sequence[Path], folder: Path) -> list[str]:
    """Compile with the flags of the real build; PTX and objects go to the folder. Return what ptxas said of each."""
    setup_py = load_setup()
    nvcc = toolkit() / "bin" / "nvcc"
    flags = ["-std=c++17", f"-I{ROOT / 'csrc'}", *setup_py.nvcc_flags({"DEEPCLUST_EXT_WERROR": "1"})]
    flags += [*gencode_flags(setup_py.DEFAULT_CUDA_ARCHITECTURES), "-Xptxas=-v", "--keep", "--keep-dir", str(folder)]
    with ThreadPoolExecutor(COMPILERS_AT_ONCE) as pool:
        commands = [[nvcc, *flags, "-c", source, "-o", folder / f"{source.stem}.o"] for source in sources]
        return list(pool.map(run, commands))


def record_launches(folder: Path) -> str:
    """Link the compiled kernels' host code with a runtime that only takes notes, and return these."""
    compiler = os.environ.get("CXX", "g++")
    objects = [*sorted(folder.glob("*.o")), folder / "recorder.o"]
    run([compiler, f"-isystem{toolkit() / 'include'}", "-c", LAUNCHES / "recorder.cpp", "-o", folder / "recorder.o"])
    run([compiler, *objects, "-o", folder / "launches"])
    return run([folder / "launches"])


def main() -> None:
    """Compile, print the table, and fail if anything is wrong."""
    folder = ROOT / "build" / "check-cuda"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        leftover.unlink()
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), LAUNCHES / "main.cu"]
    kernels = [kernel for text in compile_kernels(sources, folder) for kernel in parse_ptxas(text)]
    launches = parse_launches(record_launches(folder))
    bounds: dict[str, int] = {}
    for ptx in folder.glob("*.ptx"):
        bounds |= parse_launch_bounds(ptx.read_text())
    names = sorted({kernel.name for kernel in kernels})
    wrong = []
    print(f"{'kernel':<50} {'registers on ' + ', '.join(SHARED_LIMITS):<30} threads  shared bytes: static, dynamic")
    for name, demangled in zip(names, demangle(names), strict=True):
        compiled = {kernel.architecture: kernel for kernel in kernels if kernel.name == name}
        own = [launch for launch in launches if launch.name == name]
        registers = ", ".join(str(compiled[architecture].registers) for architecture in SHARED_LIMITS)
        threads = max((launch.threads for launch in own), default=0)
        dynamic = max((launch.dynamic_shared for launch in own), default=0)
        static = max(kernel.static_shared for kernel in compiled.values())
        print(f"{short_name(demangled):<50} {registers:<30} {threads:>7}  {static:>21}, {dynamic:>7}")
        for kernel in compiled.values():
            wrong += [f"{short_name(demangled)}, {what}" for what in find_problems(kernel, own, bounds.get(name))]
    if not kernels:
        wrong.append("no kernel was compiled")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
