"""Builds the native library deepclust_ext._C; everything else is declared in pyproject.toml.

Environment variables, all optional:
    DEEPCLUST_EXT_CUDA=auto|0|1   CUDA kernels: where torch and the toolkit allow it (default), never, or else fail
    DEEPCLUST_EXT_NATIVE=0        install without the native library; every op then runs its PyTorch reference
    DEEPCLUST_EXT_WERROR=1        treat compiler warnings as errors (CI does)
    DEEPCLUST_EXT_SANITIZE=1      build with AddressSanitizer and UndefinedBehaviorSanitizer
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS   as for every torch extension
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import setup

DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;9.0+PTX"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]  # torch hides the type information of vptr
BYTES_PER_JOB = 2 << 30  # what the compiler takes for one file that includes torch's headers


def decide_cuda(request: str, *, torch_cuda: str | None, nvcc: str | None) -> tuple[bool, str]:
    """Decide from DEEPCLUST_EXT_CUDA and both CUDA versions whether to build the CUDA kernels, and say why.

    Raises:
        ValueError: The request is unknown, or is "1" and cannot be met.
    """
    if request not in ("auto", "0", "1"):
        raise ValueError(f"DEEPCLUST_EXT_CUDA must be auto, 0 or 1, got {request!r}")
    if request == "0":
        return False, "DEEPCLUST_EXT_CUDA=0"
    if torch_cuda is None:
        obstacle = "torch was built without CUDA"
    elif nvcc is None:
        obstacle = "no CUDA toolkit was found (CUDA_HOME, nvcc on PATH, /usr/local/cuda)"
    elif nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        obstacle = f"nvcc is version {nvcc} but torch was built for CUDA {torch_cuda}"
    else:
        return True, f"nvcc {nvcc}, torch built for CUDA {torch_cuda}"
    if request == "1":
        raise ValueError(f"DEEPCLUST_EXT_CUDA=1, but {obstacle}")
    return False, obstacle


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


def compiler_flags(environment: Mapping[str, str], platform: str) -> list[str]:
    """Return the host compiler's flags; the language standard is torch's choice."""
    flags = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi"]  # psabi: wide vectors stay within the library
    if platform != "darwin":  # Apple's compiler has no OpenMP: at::parallel_for is serial there
        flags.append("-fopenmp")  # for compiling only; at run time the symbols come from the OpenMP that torch loaded
    if environment.get("DEEPCLUST_EXT_WERROR") == "1":
        flags.append("-Werror")
    if environment.get("DEEPCLUST_EXT_SANITIZE") == "1":
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *SANITIZERS]
    return flags


def nvcc_flags(environment: Mapping[str, str]) -> list[str]:
    """Return nvcc's flags; lineinfo lets profilers and compute-sanitizer name the line."""
    strict = ["-Werror=all-warnings"] if environment.get("DEEPCLUST_EXT_WERROR") == "1" else []
    return ["-O3", "-lineinfo", "-Xcompiler=-Wall,-Wextra", *strict]


def default_jobs(cores: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return how many compilers to run at once: one per core, fewer where memory is short (and the system tells)."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return max(1, min(cores, (int(available[1]) << 10) // BYTES_PER_JOB if available else cores))


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
    try:
        use_cuda, reason = decide_cuda(request, torch_cuda=torch.version.cuda, nvcc=nvcc)
    except ValueError as error:
        raise SystemExit(f"deepclust_ext: {error}") from None
    print(f"deepclust_ext: building for torch {torch.__version__}, {'CUDA' if use_cuda else 'CPU only'}: {reason}")
    macros = {}
    if use_cuda and toolkit:
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
        macros = {"DEEPCLUST_CUDA_ARCHITECTURES": f'"{architectures}"', "DEEPCLUST_CUDA_VERSION": f'"{toolkit[1]}"'}
        os.environ.update(CUDA_HOME=str(toolkit[0]), TORCH_CUDA_ARCH_LIST=architectures)  # read by torch, on import too
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(default_jobs(cores)))
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths

    headers = (*include_paths("cuda" if use_cuda else "cpu"), sysconfig.get_path("include"))
    cxx_flags = compiler_flags(os.environ, sys.platform) + [f"-isystem{path}" for path in headers]  # no warnings there
    patterns = ["*.cpp", "common/*.cpp", "ops/*.cpp", "cpu/*.cpp", *["cuda/*.cu", "cuda/torch/*.cpp"] * use_cuda]
    make_extension: Any = CUDAExtension if use_cuda else CppExtension
    extension = make_extension(
        "deepclust_ext._C",
        [str(path) for pattern in patterns for path in sorted(Path("csrc").glob(pattern))],
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=list(macros.items()),
        extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags(os.environ)},
        extra_link_args=SANITIZERS if os.environ.get("DEEPCLUST_EXT_SANITIZE") == "1" else [],
    )

    class BuildNative(BuildExtension):
        """Builds the library and leaves a record beside it, by which an unsuitable one is recognised before loading."""

        def run(self) -> None:
            try:
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
