"""Compiles every CUDA kernel for the default architectures and checks what ptxas and the launch code say about it.

    python -m tests.cuda.check_cuda

It needs nvcc and no GPU. It fails on a warning, a spilled register, a block that asks for more registers, threads or
shared memory than the architecture has, a grid out of range, and a kernel that tests/cuda/launches never launches.
From the same objects, the host code for CUDA tensors and what setup.py made for the CPU it links the whole library,
which must load and have a CUDA kernel wherever it has one for the CPU.
"""

import logging
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.emulator.build import (
    ROOT,
    gencode_flags,
    load_setup,
    native_objects,
    run,
    run_counted,
    toolkit,
    torch_flags,
)

LAUNCHES = ROOT / "tests" / "cuda" / "launches"
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


def compile_kernels(sources: Sequence[Path], folder: Path) -> list[str]:
    """Compile with the flags of the real build; PTX and objects go to the folder. Return what ptxas said of each."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    setup_py = load_setup()
    nvcc = toolkit() / "bin" / "nvcc"
    flags = [
        "-std=c++20",  # which torch asks for
        *COMMON_NVCC_FLAGS,
        f"-I{ROOT / 'csrc'}",
        *setup_py.nvcc_flags({"DEEPCLUST_EXT_WERROR": "1"}),
        "-Xcompiler=-fPIC",
    ]
    flags += [*gencode_flags(setup_py.DEFAULT_CUDA_ARCHITECTURES), "-Xptxas=-v", "--keep", "--keep-dir", str(folder)]
    return run_counted((source, [nvcc, *flags, "-c", source, "-o", folder / f"{source.stem}.o"]) for source in sources)


def link_library(kernels: Sequence[Path], folder: Path) -> Path:
    """Link the library for CPU and CUDA as setup.py would, and return its path."""
    setup_py = load_setup()
    home = toolkit()
    compiler = os.environ.get("CXX", "g++")
    headers, libraries = torch_flags()
    macros = [
        f'-DDEEPCLUST_CUDA_ARCHITECTURES="{setup_py.DEFAULT_CUDA_ARCHITECTURES}"',
        f'-DDEEPCLUST_CUDA_VERSION="{setup_py.find_toolkit(os.environ)[1]}"',
    ]
    flags = ["-std=c++20", "-fPIC", f"-I{ROOT / 'csrc'}", *headers, f"-isystem{home / 'include'}", *macros]
    flags += setup_py.compiler_flags({"DEEPCLUST_EXT_WERROR": "1"}, sys.platform)
    sources = [ROOT / "csrc" / "build_info.cpp", ROOT / setup_py.write_unit("cuda")]
    own = [folder / f"{source.stem}.host.o" for source in sources]
    run_counted(
        (source, [compiler, *flags, "-c", source, "-o", path]) for source, path in zip(sources, own, strict=True)
    )
    objects = [*native_objects(setup_py, "*/cpu/*.cpp"), *own, *kernels]
    libraries = [*libraries, "-lc10_cuda", "-ltorch_cuda", f"-L{home / 'lib64'}", "-lcudart"]
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    run([compiler, "-shared", *objects, *libraries, "-o", library])
    return library


# Every op that has a kernel for the CPU has one for CUDA, but for those of the CPU alone: pairs of rows that ranks
# share out, see deepclust_ext/distributed/shared_pairs.py.
PROBE = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
assert library.build_info()["devices"] == ["cpu", "cuda"], library.build_info()
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("deepclust_ext::")]
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
of_the_cpu = {f"deepclust_ext::fused_contrastive_loss{direction}.log_sums" for direction in ("", "_backward")}
missing = {name for name in ops if has_kernel(name, "CPU") and not has_kernel(name, "CUDA")}
assert missing == of_the_cpu, f"expected kernels for CUDA of all but {of_the_cpu}, there are none for {missing}"
"""


def record_launches(folder: Path) -> str:
    """Link the compiled kernels' host code with a runtime that only takes notes, and return these."""
    compiler = os.environ.get("CXX", "g++")
    objects = [*sorted(set(folder.glob("*.o")) - set(folder.glob("*.host.o"))), folder / "recorder.o"]
    run([compiler, f"-isystem{toolkit() / 'include'}", "-c", LAUNCHES / "recorder.cpp", "-o", folder / "recorder.o"])
    run([compiler, *objects, "-o", folder / "launches"])
    return run([folder / "launches"])


def main() -> None:
    """Compile, print the table, and fail if anything is wrong."""
    folder = ROOT / "build" / "check-cuda"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        leftover.unlink()
    sources = [*sorted((ROOT / "csrc").glob("*/cuda/*.cu")), LAUNCHES / "main.cu"]
    print(
        "Compiling the CUDA kernels for every architecture; all of it takes about 4 minutes of two cores.", flush=True
    )
    kernels = [kernel for text in compile_kernels(sources, folder) for kernel in parse_ptxas(text)]
    print("Linking the library for CPU and CUDA, and loading it.", flush=True)
    library = link_library([folder / f"{source.stem}.o" for source in sources if source.parent != LAUNCHES], folder)
    run([sys.executable, "-c", PROBE, library])
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
    try:
        main()
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
