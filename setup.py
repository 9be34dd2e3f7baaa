"""Builds the native library deepclust_ext._C; everything else is declared in pyproject.toml.

Environment variables, all optional:
    DEEPCLUST_EXT_CUDA=auto|visible|0|1   CUDA kernels: where torch and the toolkit allow it (default), where a GPU is
                                  visible too, never, or else fail. A visible GPU's architecture alone is built for
    DEEPCLUST_EXT_NATIVE=0        install without the native library; every op then runs its PyTorch reference
    DEEPCLUST_EXT_WERROR=1        treat compiler warnings as errors (CI does)
    DEEPCLUST_EXT_DEBUG=1         build for a debugger: every line and variable, and checked indices of the C++ library
    DEEPCLUST_EXT_SANITIZE=1      build with AddressSanitizer and UndefinedBehaviorSanitizer
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS   as for every torch extension
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import setup

DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;9.0+PTX"
OLDEST_GPU = (8, 0)  # compute capability
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]  # torch hides the type information of vptr
CPUINFO = Path("/proc/cpuinfo")
BYTES_PER_JOB = 2 << 30  # what the compiler takes for one file that includes torch's headers

# Sources compiled as one file each, since to read torch's headers takes longer than to compile what stands below them.
# Names in anonymous namespaces of one unit must differ.
UNITS = {"bindings": ("module.cpp", "*/*.cpp"), "cuda": ("*/cuda/torch/*.cpp",)}
UNITS_FOLDER = Path("build/units")
ALONE, CUDA_ALONE = ("build_info.cpp", "*/cpu/*.cpp"), ("*/cuda/*.cu",)

# Seconds of one core of a Zen 3 EPYC: the CPU library, what CUDA adds on the host, and its kernels by architecture.
CPU_SECONDS = 430 if os.environ.get("DEEPCLUST_EXT_SANITIZE") == "1" else 250
CUDA_SECONDS, ARCHITECTURE_SECONDS, LONGEST_FILE = 40, 120, 50


def decide_cuda(request: str, *, torch_cuda: str | None, nvcc: str | None, gpus: Sequence[str]) -> tuple[bool, str]:
    """Decide from DEEPCLUST_EXT_CUDA, both CUDA versions and the GPUs whether to build the CUDA kernels, and say why.

    Raises:
        ValueError: The request is unknown, or is "1" and cannot be met.
    """
    if request not in ("auto", "visible", "0", "1"):
        raise ValueError(f"DEEPCLUST_EXT_CUDA must be auto, visible, 0 or 1, got {request!r}")
    if request == "0":
        return False, "DEEPCLUST_EXT_CUDA=0"
    if torch_cuda is None:
        obstacle = "torch was built without CUDA"
    elif nvcc is None:
        obstacle = "no CUDA toolkit was found (CUDA_HOME, nvcc on PATH, /usr/local/cuda)"
    elif nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        obstacle = f"nvcc is version {nvcc} but torch was built for CUDA {torch_cuda}"
    elif request == "visible" and not gpus:
        oldest = ".".join(map(str, OLDEST_GPU))
        return (
            False,
            f"no GPU of compute capability {oldest} or newer is visible; DEEPCLUST_EXT_CUDA=1 builds all the same",
        )
    else:
        return True, f"nvcc {nvcc}, torch built for CUDA {torch_cuda}"
    if request == "1":
        raise ValueError(f"DEEPCLUST_EXT_CUDA=1, but {obstacle}")
    return False, obstacle


def visible_gpus() -> list[str]:
    """Return the architectures of the GPUs that torch sees and the kernels run on, in torch's notation."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capabilities = {torch.cuda.get_device_capability(index) for index in range(count)}
    return [f"{major}.{minor}" for major, minor in sorted(capabilities) if (major, minor) >= OLDEST_GPU]


def supported_architectures(request: str) -> tuple[str, list[str]]:
    """Return what the kernels run on of architectures in torch's notation, and those that are too old for them.

    Raises:
        ValueError: All are too old.
    """
    names = {"Kepler": "3.5", "Maxwell": "5.0", "Pascal": "6.0", "Volta": "7.0", "Turing": "7.5"}  # older ones by name
    asked = request.replace(" ", ";").replace(",", ";").split(";")
    numbers = {entry: re.match(r"(\d+)\.(\d+)", names.get(entry.split("+")[0], entry)) for entry in asked if entry}
    old = [entry for entry, number in numbers.items() if number and (int(number[1]), int(number[2])) < OLDEST_GPU]
    if len(old) == len(numbers):
        raise ValueError(f"TORCH_CUDA_ARCH_LIST: expected an architecture of 8.0 or newer, got {request!r}")
    return ";".join(entry for entry in numbers if entry not in old), old


def expected_time(architectures: Sequence[str], jobs: int) -> str:
    """Return for people how long a whole build takes, for no architecture that of the CPU library alone."""
    cuda = CUDA_SECONDS + ARCHITECTURE_SECONDS * len(architectures) if architectures else 0
    minutes = max((CPU_SECONDS + cuda) / jobs, LONGEST_FILE) / 60
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"


def find_toolkit(environment: Mapping[str, str], system: Path = Path("/usr/local")) -> tuple[Path, str] | None:
    """Return folder and version of the first CUDA toolkit with nvcc and headers, so never a wrapper script's folder."""
    nvcc = shutil.which("nvcc", path=environment.get("PATH", ""))
    named = [environment.get("CUDA_HOME"), environment.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1]]
    usual = [system / "cuda", *sorted(system.glob("cuda-*"), reverse=True)]
    for home in [Path(home) for home in named if home] + usual:
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            answer = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False)
            if release := re.search(r"release (\d+\.\d+)", answer.stdout):
                return home, release[1]
    return None


def compiler_flags(environment: Mapping[str, str], platform: str, processor: str = "avx512f") -> list[str]:
    """Return the host compiler's flags; the language standard is torch's choice, and `processor` names what it has."""
    flags = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi"]  # psabi: wide vectors stay within the library
    if platform != "darwin":  # Apple's compiler has no OpenMP: at::parallel_for is serial there
        flags.append("-fopenmp")  # for compiling only; at run time the symbols come from the OpenMP that torch loaded
    if environment.get("DEEPCLUST_EXT_WERROR") == "1":
        flags.append("-Werror")
    if environment.get("DEEPCLUST_EXT_DEBUG") == "1":
        flags += ["-Og", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
    if environment.get("DEEPCLUST_EXT_SANITIZE") == "1":
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *SANITIZERS]
        if "avx512f" not in processor:  # tests run here, so kernels that cannot are not worth compiling
            flags.append("-DDEEPCLUST_AVX512=0")
    return flags


def nvcc_flags(environment: Mapping[str, str]) -> list[str]:
    """Return nvcc's flags; lineinfo lets profilers and compute-sanitizer name the line."""
    strict = ["-Werror=all-warnings"] if environment.get("DEEPCLUST_EXT_WERROR") == "1" else []
    return ["-O3", "-lineinfo", "-Xcompiler=-Wall,-Wextra", *strict]


def default_jobs(cores: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return how many compilers to run at once: one per core, fewer where memory is short (and the system tells)."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return max(1, min(cores, (int(available[1]) << 10) // BYTES_PER_JOB if available else cores))


def objects_folder(torch_version: str) -> Path:
    """Return where object files go: one folder for each torch, whose headers no build system watches."""
    return Path(f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}-torch-{torch_version}")


def find_sources(*patterns: str) -> list[Path]:
    """Return the sources in csrc/ that the patterns name."""
    return [path for pattern in patterns for path in sorted(Path("csrc").glob(pattern))]


def write_unit(name: str) -> Path:
    """Write the file that includes all sources of a unit, unless it is there already, and return its path."""
    path = UNITS_FOLDER / f"{name}.cpp"
    text = "".join(f'#include "{source.relative_to("csrc")}"\n' for source in find_sources(*UNITS[name]))
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


@contextmanager
def counted_files() -> Iterator[None]:
    """Turn ninja's lines of finished files into a count: no commands but the one that failed, and what compilers say.

    ninja writes to file descriptor 1, whatever Python's sys.stdout is.
    """
    sys.stdout.flush()
    shown, (reading, writing) = os.dup(1), os.pipe()

    def relay() -> None:
        with os.fdopen(reading, errors="replace") as lines, os.fdopen(shown, "w", closefd=False) as terminal:
            for line in lines:
                if step := re.match(r"\[(\d+)/(\d+)\] .* -c (\S+)", line):
                    path = os.path.relpath(step[3])
                    terminal.write(f"  {step[1]:>{len(step[2])}}/{step[2]} {path}\n")
                elif "no work to do" not in line:
                    terminal.write(line)
                terminal.flush()

    relaying = threading.Thread(target=relay)
    os.dup2(writing, 1)
    os.close(writing)
    relaying.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(shown, 1)
        relaying.join()
        os.close(shown)


def native_library() -> dict[str, Any]:
    """Return the arguments of setup() that build the native library."""
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"deepclust_ext: the build needs torch, which does not import here ({error}). "
            "Install torch, then run: pip install --no-build-isolation -e ."
        ) from None
    toolkit = find_toolkit(os.environ)
    request, nvcc = os.environ.get("DEEPCLUST_EXT_CUDA", "auto"), toolkit[1] if toolkit else None
    gpus = visible_gpus()
    try:
        use_cuda, reason = decide_cuda(request, torch_cuda=torch.version.cuda, nvcc=nvcc, gpus=gpus)
    except ValueError as error:
        raise SystemExit(f"deepclust_ext: {error}") from None
    macros = {}
    architectures = ""
    too_old: list[str] = []
    if use_cuda and toolkit:
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(gpus) or DEFAULT_CUDA_ARCHITECTURES
        try:
            architectures, too_old = supported_architectures(architectures)
        except ValueError as error:
            raise SystemExit(f"deepclust_ext: {error}; DEEPCLUST_EXT_CUDA=0 builds without CUDA") from None
        macros = {"DEEPCLUST_CUDA_ARCHITECTURES": f'"{architectures}"', "DEEPCLUST_CUDA_VERSION": f'"{toolkit[1]}"'}
        os.environ.update(CUDA_HOME=str(toolkit[0]), TORCH_CUDA_ARCH_LIST=architectures)  # read by torch, on import too
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(default_jobs(cores)))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths, is_ninja_available

    headers = (*include_paths("cuda" if use_cuda else "cpu"), sysconfig.get_path("include"))
    processor = CPUINFO.read_text() if CPUINFO.is_file() else ""
    cxx_flags = compiler_flags(os.environ, sys.platform, processor)
    cxx_flags += [f"-isystem{path}" for path in headers]  # no warnings there
    units = ["bindings", *["cuda"] * use_cuda]
    alone = [*ALONE, *CUDA_ALONE * use_cuda]
    make_extension: Any = CUDAExtension if use_cuda else CppExtension
    extension = make_extension(
        "deepclust_ext._C",
        [str(path) for path in find_sources(*[pattern for unit in units for pattern in UNITS[unit]], *alone)],
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=list(macros.items()),
        extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags(os.environ)},
        extra_link_args=SANITIZERS if os.environ.get("DEEPCLUST_EXT_SANITIZE") == "1" else [],
    )

    class BuildNative(BuildExtension):
        """Builds the library and leaves a record beside it, by which an unsuitable one is recognized before loading."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = str(objects_folder(torch.__version__))  # for editable installs too

        def run(self) -> None:
            jobs = int(os.environ["MAX_JOBS"]) if is_ninja_available() else 1
            target = f"CPU and CUDA for {architectures}" if use_cuda else "CPU alone"
            duration = expected_time(architectures.split(";") if use_cuda else [], jobs)
            print(f"deepclust_ext: building the native library for torch {torch.__version__}, {target}: {reason}.")
            if too_old:
                print(
                    f"deepclust_ext: of TORCH_CUDA_ARCH_LIST is left out what is older than 8.0: {', '.join(too_old)}."
                )
            if not is_ninja_available():
                print("deepclust_ext: without ninja, files are compiled one by one, all of them; pip install ninja.")
            print(f"deepclust_ext: all of it takes about {duration} with {jobs} compilers at once.", flush=True)
            self.extensions[0].sources = [str(path) for path in (*map(write_unit, units), *find_sources(*alone))]
            try:
                with counted_files():
                    super().run()
            except Exception as error:
                raise SystemExit(
                    f"deepclust_ext: the native library did not build ({error}); the compiler's message is above. "
                    "It needs a C++ compiler; DEEPCLUST_EXT_NATIVE=0 installs without it, with slower ops."
                ) from error
            record = {"torch_version": torch.__version__, "cuda": use_cuda, "cuda_reason": reason}
            path = Path(self.get_ext_fullpath("deepclust_ext._C")).with_name("_build.json")
            path.write_text(json.dumps(record) + "\n")

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


if __name__ == "__main__":
    setup(**({} if os.environ.get("DEEPCLUST_EXT_NATIVE") == "0" else native_library()))
