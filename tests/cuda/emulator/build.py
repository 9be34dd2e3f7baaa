"""Builds what runs the CUDA kernels: test programs, and an emulated native library whose CPU tensors go through them.

    python tests/cuda/emulator/build.py library FOLDER MODE

A .cu file is kernel code: g++ compiles it as C++ against the emulated device, in one of three modes; the fourth, for
programs alone, is nvcc and a real device.
    plain   optimized
    asan    AddressSanitizer and UndefinedBehaviorSanitizer
    check   every memory access calls the emulator's own checker (hooks.cpp), by way of the calls that -fsanitize=thread
            inserts for libtsan, which is never linked
A .cpp file is host code, the emulator's runtime included: not instrumented, but asan has to know the fibers' stacks.
"""

import argparse
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
OUTPUT = ROOT / "build" / "emulator"
EMULATOR = ROOT / "tests" / "cuda" / "emulator"
COMPILERS_AT_ONCE = 2

MODES = ("plain", "asan", "check", "nvcc")
KERNEL_FLAGS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "check": ["-O1", "-fsanitize=thread,alignment", "--param=tsan-instrument-func-entry-exit=0"],
}
HOST_FLAGS = {"plain": ["-O2"], "asan": ["-O2", "-fsanitize=address"]}
HOST_MODES = {"plain": "plain", "asan": "asan", "check": "plain"}  # of whose objects a mode takes those of host code
LINK_FLAGS = {"plain": [], "asan": ["-fsanitize=address,undefined"], "check": []}
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # unknown pragmas: #pragma unroll is nvcc's


def load_setup() -> ModuleType:
    """Import setup.py, which knows where the toolkit is and which architectures are built, without running setup()."""
    spec = importlib.util.spec_from_file_location("deepclust_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toolkit() -> Path:
    """Return the folder of the CUDA toolkit, whose headers the emulated device needs too."""
    found: tuple[Path, str] | None = load_setup().find_toolkit(os.environ)
    if found is None:
        raise SystemExit("a CUDA toolkit is needed, and none was found (CUDA_HOME, nvcc on PATH, /usr/local/cuda)")
    return found[0]


def gencode_flags(architectures: str) -> list[str]:
    """Return nvcc's flags for torch's notation of architectures, for example "8.0;9.0+PTX"."""
    flags = []
    for name in architectures.split(";"):
        number = name.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if name.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def is_stale(target: Path, inputs: Iterable[Path]) -> bool:
    """Return whether a file is absent, or older than an input or than this recipe."""
    if not target.is_file():
        return True
    made = target.stat().st_mtime_ns
    return any(not path.is_file() or path.stat().st_mtime_ns > made for path in (*inputs, Path(__file__)))


def recorded_inputs(dependencies: Path) -> list[Path]:
    """Return the files that a compiler's -MMD record names; none where there is no record."""
    if not dependencies.is_file():
        return []
    _, _, inputs = dependencies.read_text().replace("\\\n", " ").partition(": ")
    return [Path(path) for path in inputs.split()]


def run(command: Sequence[str | Path]) -> str:
    """Run a compiler or linker and return what it says, which on failure goes into the error, with the command."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}")
    return result.stdout


def precompile(compiler: Sequence[str | Path], flags: Sequence[str], header: Path, folder: Path) -> list[str]:
    """Compile a header that many sources begin with, where it changed; return the flags that include it."""
    prefix = folder / "prefix.h"
    compiled, record = prefix.with_suffix(".h.gch"), prefix.with_suffix(".d")
    if not record.is_file() or is_stale(compiled, recorded_inputs(record)):
        folder.mkdir(parents=True, exist_ok=True)
        prefix.write_text(f'#include "{header}"\n')
        run([*compiler, *flags, "-MMD", "-MF", record, "-x", "c++-header", prefix, "-o", compiled])
    return ["-include", str(prefix), "-fpch-deps", "-Winvalid-pch"]


def compile_all(compiler: Sequence[str | Path], units: Iterable[tuple[Path, list[str]]], folder: Path) -> list[Path]:
    """Compile each source with its flags, where it or a header of it changed; return the object files."""
    commands: list[tuple[Path, list[str | Path]]] = []
    objects = []
    for source, flags in units:
        path = folder.joinpath(*source.resolve().with_suffix(source.suffix + ".o").parts[1:])
        objects.append(path)
        record = path.with_suffix(".d")
        if not record.is_file() or is_stale(path, recorded_inputs(record)):
            path.parent.mkdir(parents=True, exist_ok=True)
            language = ["-x", "c++"] if source.suffix == ".cu" and "-DDEEPCLUST_EMULATED" in compiler else []
            commands.append((source, [*compiler, *flags, "-MMD", "-MF", record, *language, "-c", source, "-o", path]))
    for said in run_counted(commands):
        print(said, end="", file=sys.stderr)
    return objects


def run_counted(commands: Iterable[tuple[Path, Sequence[str | Path]]]) -> list[str]:
    """Run the compilers of some sources, two at once, and print a count; return what each said."""
    commands = list(commands)
    said: dict[int, str] = {}
    with ThreadPoolExecutor(COMPILERS_AT_ONCE) as pool:
        running = {pool.submit(run, command): index for index, (_, command) in enumerate(commands)}
        try:
            for done, finished in enumerate(as_completed(running), 1):
                index = running[finished]
                said[index] = finished.result()
                source = os.path.relpath(commands[index][0], ROOT)
                print(f"  {done:>{len(str(len(commands)))}}/{len(commands)} {source}", flush=True)
        except RuntimeError:
            pool.shutdown(cancel_futures=True)
            raise
    return [said[index] for index in range(len(commands))]


def emulating_compiler() -> list[str | Path]:
    """Return g++ with the flags by which kernel code and the emulator's own code compile."""
    strict = ["-Werror"] if os.environ.get("DEEPCLUST_EXT_WERROR") == "1" else []
    paths = [f"-I{ROOT / 'csrc'}", f"-I{EMULATOR}", f"-isystem{toolkit() / 'include'}"]
    # -g1 is enough for the lines in messages, and a quarter faster to compile than -g
    # nvcc tolerates pointer punning, as in a float4 load from a float array; g++ -O2 does not
    flags = ["-DDEEPCLUST_EMULATED", "-g1", "-fPIC", "-fno-strict-aliasing", *WARNINGS, *strict, *paths]
    # C++20: torch's headers ask for it, and messages and rules know the column of a call
    return [os.environ.get("CXX", "g++"), "-std=c++20", *flags]


def runtime_sources(mode: str) -> list[Path]:
    """Return the emulator's own sources for a mode."""
    left_out = {"torch_memory.cpp"} | ({"hooks.cpp"} if mode != "check" else set())
    return [path for path in sorted(EMULATOR.glob("*.cpp")) if path.name not in left_out]


def emulated_objects(sources: Sequence[Path], mode: str) -> list[Path]:
    """Compile sources and the emulator's runtime for a mode."""
    # Host code first: of an inline function in several objects the linker takes the first, here the unchecked one.
    host = [*runtime_sources(mode), *(source for source in sources if source.suffix != ".cu")]
    kernels = [source for source in sources if source.suffix == ".cu"]
    compiler, host_mode, flags = emulating_compiler(), HOST_MODES[mode], KERNEL_FLAGS[mode]
    objects = compile_all(compiler, [(source, HOST_FLAGS[host_mode]) for source in host], OUTPUT / host_mode)
    flags = [*flags, *precompile(compiler, flags, ROOT / "csrc" / "core" / "cuda" / "device.h", OUTPUT / mode)]
    return objects + compile_all(compiler, [(source, flags) for source in kernels], OUTPUT / mode)


@contextmanager
def one_build_at_a_time() -> Iterator[None]:
    """Let processes that build side by side, such as two of pytest's, wait for each other."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with (OUTPUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_program(name: str, sources: Sequence[Path], mode: str) -> Path:
    """Build an executable from kernel sources (.cu) and host sources (.cpp) and return its path.

    Args:
        name: The executable's name; the modes do not get in each other's way.
        sources: What to compile, beside the emulator's runtime.
        mode: plain, asan or check for the emulated device; nvcc for a real one.
    """
    program = OUTPUT / mode / name
    with one_build_at_a_time():
        if mode == "nvcc":
            linker: list[str | Path] = [toolkit() / "bin" / "nvcc"]
            compiler = [*linker, "-std=c++17", "-O2", "-lineinfo", f"-I{ROOT / 'csrc'}"]
            flags = gencode_flags(load_setup().DEFAULT_CUDA_ARCHITECTURES)
            objects = compile_all(compiler, [(source, flags) for source in sources], OUTPUT / mode)
        else:
            linker = [os.environ.get("CXX", "g++"), *LINK_FLAGS[mode]]
            objects = emulated_objects(sources, mode)
        if is_stale(program, objects):
            run([*linker, *objects, "-o", program])
    return program


def native_objects(setup_py: ModuleType, *patterns: str) -> list[Path]:
    """Return the object files that setup.py has made of the unit "bindings" and of the sources that patterns name."""
    import torch

    build = ROOT / setup_py.objects_folder(torch.__version__)
    unit = setup_py.write_unit("bindings")
    inputs = {unit: setup_py.find_sources(*setup_py.UNITS["bindings"])}
    inputs |= {source: [source] for source in setup_py.find_sources(*patterns)}
    objects = {build / source.with_suffix(".o"): sources for source, sources in inputs.items()}
    for path, sources in objects.items():
        if not path.is_file() or path.stat().st_mtime_ns < max(source.stat().st_mtime_ns for source in sources):
            raise SystemExit(f"{path} is absent or older than its source: run setup.py build_ext --inplace")
    return list(objects)


def torch_flags() -> tuple[list[str], list[str]]:
    """Return the flags by which host code finds torch's headers and its libraries without CUDA."""
    import torch

    home = Path(torch.__file__).parent
    include = home / "include"
    folders = (include, include / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include"))
    libraries = ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    return [f"-isystem{path}" for path in folders], [f"-L{home / 'lib'}", *libraries]


def build_library(folder: Path, mode: str) -> Path:
    """Build the emulated deepclust_ext._C into a copy of the tree and return its path."""
    import torch

    csrc = ROOT / "csrc"
    setup_py = load_setup()
    torch_sources = [csrc / "build_info.cpp", ROOT / setup_py.write_unit("cuda"), EMULATOR / "torch_memory.cpp"]
    headers, torch_libraries = torch_flags()
    torch_objects = OUTPUT / "torch-objects" / f"{torch.__version__}-{sys.implementation.cache_tag}"
    library = folder / "deepclust_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    with one_build_at_a_time():
        print(f"emulated device, mode {mode}: compiling what changed; all of it takes about a minute", flush=True)
        # torch's headers take most of the time, half of it for debugging information; they hold nothing to check, so
        # these objects serve all modes, and what knows no device is taken from the native library's build
        compiler = emulating_compiler()
        objects = compile_all(compiler, [(source, ["-O1", "-g0", *headers]) for source in torch_sources], torch_objects)
        objects += native_objects(setup_py)
        objects += emulated_objects(sorted(csrc.glob("*/cuda/*.cu")), mode)
        if is_stale(library, objects):
            linker = [os.environ.get("CXX", "g++"), "-shared", *LINK_FLAGS[mode]]
            run([*linker, *objects, *torch_libraries, "-o", library])
    record = {"torch_version": torch.__version__, "cuda": False, "cuda_reason": f"emulated device, mode {mode}"}
    library.with_name("_build.json").write_text(json.dumps(record) + "\n")
    return library


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the emulated native library into a copy of the tree.")
    parser.add_argument("what", choices=["library"])
    parser.add_argument("folder", type=Path, help="the copy of the tree")
    parser.add_argument("mode", choices=[mode for mode in MODES if mode != "nvcc"])
    options = parser.parse_args()
    try:
        build_library(options.folder, options.mode)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
