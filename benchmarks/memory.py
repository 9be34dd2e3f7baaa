"""Peak extra memory of one call; on the CPU each in a process of its own.

The process builds the inputs, warms the provider up on 64 rows (on all rows if it is compiled, or if its result is no
loss: neither compiling nor the gradient that backward starts from is part of a call), resets its peak resident memory,
calls forward and, where it is timed so, backward once, and reports how far the peak rose above what was resident
before. The gradient counts, inputs do not.

Processes are forked from a server that has imported everything and computed nothing, so that it has started no threads
and each process begins as a fresh one would, without the seconds that imports take.

Blocks of 64 kB and more are mapped one by one (MALLOC_MMAP_THRESHOLD_), so what a warm-up freed is back with the system
and cannot serve the measured call unseen. Without /proc the peak cannot be reset, and memory is reported only as far as
it exceeds the peak of the warm-up.

On CUDA torch's allocator counts the bytes, exactly, so no process of its own is needed.
"""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import Function, clear_gradients, take_host_sample
from benchmarks.harness import Case, OpBenchmark, cases_of, load_op, modes_of, providers_of

WARM_UP_ROWS = 64
_PROC = Path("/proc/self")

# What the server imports; a package that is not installed is left out.
PRELOADED = (
    "benchmarks.memory",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.utils.cpp_extension",
    "faiss",
    "lightly.loss.ntx_ent_loss",
    "ot.batch",
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
)
# Of the server and its children, read when a process starts. The compiler's own pool would be processes and threads.
SERVER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


@cache
def start_server() -> ForkServerContext:
    """Start the server with its environment, and return the context that forks from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    before = dict(os.environ)
    os.environ.update(SERVER_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def measure_in_fork(op: str, case: str, provider: str, dtype: str, threads: int) -> float:
    """Return the peak extra resident memory of one call on the CPU in MB (10^6 bytes)."""
    arguments = (op, case, provider, dtype, threads)
    return int(received_from_fork(f"memory of {provider} at {op} {case}", send_peak, *arguments)) / 1e6


def received_from_fork(what: str, send: Callable[..., None], *arguments: Any) -> Any:
    """Return what a function sends that runs in a process of its own, given a sender and the arguments.

    Raises:
        RuntimeError: The process ended without a result; the message says of what.
    """
    context = start_server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{what}: its process ended without a result") from None
    finally:
        process.join()


def send_peak(sender: Connection, op: str, case: str, provider: str, dtype: str, threads: int) -> None:
    """Measure in this process and send the bytes."""
    torch.set_num_threads(threads)
    module = load_op(op)
    (found,) = (one for one in cases_of(module, "cpu") if one.name == case)
    sender.send(measure(module, found, provider, getattr(torch, dtype)))


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
    before = reset_peak()
    take_host_sample(function, inputs, modes_of(op, case), repeats=1)
    return peak_resident_bytes() - before


def reset_peak() -> int:
    """Let the peak begin at what is resident now, where the system can, and return it in bytes."""
    if (_PROC / "clear_refs").exists():
        (_PROC / "clear_refs").write_text("5")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the peak since the last reset; not ru_maxrss on Linux, which starts at the parent process's peak."""
    status = _PROC / "status"
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
