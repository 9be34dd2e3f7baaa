"""Peak extra memory of one call; on the CPU each in a process of its own (`python -m benchmarks.memory`).

The process builds the inputs, warms the provider up on 64 rows (on all rows if it is compiled, or if its result is no
loss: neither compiling nor the gradient that backward starts from is part of a call), resets its peak resident memory,
calls forward and, where it is timed so, backward once, and reports how far the peak rose above what was resident
before. The gradient counts, inputs do not.

Blocks of 64 kB and more are mapped one by one (MALLOC_MMAP_THRESHOLD_), so what a warm-up freed is back with the system
and cannot serve the measured call unseen. Without /proc the peak cannot be reset, and memory is reported only as far as
it exceeds the peak of the warm-up.

On CUDA torch's allocator counts the bytes, exactly, so no process of its own is needed.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clock import Function, clear_gradients, take_host_sample
from benchmarks.harness import Case, OpBenchmark, load_op, modes_of, providers_of

WARM_UP_ROWS = 64
_PROC = Path("/proc/self")


def measure_in_subprocess(op: str, case: str, provider: str, dtype: str, threads: int) -> float:
    """Return the peak extra resident memory of one call on the CPU in MB (10^6 bytes)."""
    command = [sys.executable, "-m", "benchmarks.memory", op, case, provider, dtype, str(threads)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    printed = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(printed.split()[-1]) / 1e6


def measure_allocated(function: Function, inputs: tuple[Tensor, ...], modes: Sequence[str]) -> float:
    """Return the peak extra memory of one call on CUDA in MB (10^6 bytes); it has been called before."""
    clear_gradients(inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    take_host_sample(function, inputs, modes, repeats=1)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(op: OpBenchmark, case: Case, provider: str, dtype: torch.dtype) -> int:
    """Return the peak extra memory of one call in this process, on the CPU, in bytes."""
    inputs = case.inputs(dtype, "cpu")
    chosen = providers_of(op, case)[provider]
    function = chosen.load()
    warm_up = inputs if chosen.compiled or case.modes else case.inputs(dtype, "cpu", min(WARM_UP_ROWS, case.rows))
    take_host_sample(function, warm_up, modes_of(op, case), repeats=1)
    clear_gradients(inputs)
    if (_PROC / "clear_refs").exists():
        (_PROC / "clear_refs").write_text("5")
    before = peak_resident_bytes()
    take_host_sample(function, inputs, modes_of(op, case), repeats=1)
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """Return the peak since the last reset; not ru_maxrss on Linux, which starts at the parent process's peak."""
    status = _PROC / "status"
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure one provider on one case and print the bytes."""
    parser = argparse.ArgumentParser()
    for name in ("op", "case", "provider", "dtype"):
        parser.add_argument(name)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    op = load_op(arguments.op)
    (case,) = (case for case in op.CASES if case.name == arguments.case)
    print(measure(op, case, arguments.provider, getattr(torch, arguments.dtype)))


if __name__ == "__main__":
    main()
