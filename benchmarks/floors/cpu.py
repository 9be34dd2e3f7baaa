"""What an op has to do on the CPU at least, and how long that takes at rates measured in the same run.

Operations are those of floors/, counted once: products that tensor cores make of several pieces count as one. Bytes
are those of inputs, read once, and of results, written once, as if nothing lay in a cache; where the method needs
several passes over the inputs, each further one reads what is too much for the last cache.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.floors import Work, digits
from benchmarks.harness import Case, OpBenchmark

PRODUCT_ROWS = 1024
COPIED_BYTES = 1 << 27  # more than caches hold
REPEATS = 20


@dataclass(frozen=True)
class Rates:
    """What a processor reaches at some number of threads: the best of REPEATS, since a floor is to be a bound."""

    flops: float  # of a large matrix product, per second
    bytes: float  # of a large copy, read and written, per second

    def __str__(self) -> str:
        """Return both for people."""
        return f"{digits(self.flops / 1e9, 3)} GFLOP/s in products, {digits(self.bytes / 1e9, 3)} GB/s copied"


@dataclass(frozen=True)
class Floor:
    """The least that one mode of an op has to do."""

    flops: int
    bytes: int

    def __add__(self, other: "Floor") -> "Floor":
        return Floor(self.flops + other.flops, self.bytes + other.bytes)

    def milliseconds(self, rates: Rates) -> float:
        """Return how long that takes where operations and memory are busy at the same time."""
        return 1e3 * max(self.flops / rates.flops, self.bytes / rates.bytes)


def measure_rates(dtype: torch.dtype) -> Rates:
    """Measure the rates of this machine at torch's number of threads."""
    factor = torch.randn(PRODUCT_ROWS, PRODUCT_ROWS).to(dtype)
    product = torch.empty_like(factor)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    copy = torch.zeros_like(source)
    return Rates(
        flops=2 * PRODUCT_ROWS**3 / best_seconds(lambda: torch.mm(factor, factor, out=product)),
        bytes=2 * COPIED_BYTES / best_seconds(lambda: copy.copy_(source)),
    )


def best_seconds(call: Callable[[], object]) -> float:
    """Return the shortest time of some calls."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(once() for _ in range(REPEATS))


def tensors_of(output: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a result: one, or those of a tuple."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes some tensors have."""
    return sum(x.numel() * x.element_size() for x in tensors)


def plain_flops(work: Work) -> int:
    """Return the operations of products, each made at once."""
    return sum(flops // arithmetic.pieces for arithmetic, flops in work.flops.items())


def cache_bytes() -> int | None:
    """Return the size of the third cache, None if the system does not tell."""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(size.read_text().removesuffix("K\n")) << 10 if size.exists() else None


def find_floors(op: OpBenchmark, case: Case, inputs: tuple[Tensor, ...], output: Any, dtype: str) -> dict[str, Floor]:
    """Return the floor of every mode; `output` is what ours gives for these inputs.

    Bytes are at most those that the kernels for CUDA move: a bank that is not searched is not read. Backward, the
    incoming gradient has the size of the result; each pass reads the inputs again.
    """
    results = tensors_of(output)
    written = count_bytes(results)
    read = count_bytes(x for x in inputs if all(x is not result for result in results))  # what is only written is not
    cache = cache_bytes()
    again = (case.passes - 1) * max(0, (case.pass_bytes or read) - cache) if cache else 0
    moved = {
        "forward": read + written,
        "backward": read + written + count_bytes(x for x in inputs if x.requires_grad),
    }
    floors = {}
    for mode, work_of in (case.works or op.WORK).items():
        # The models of CUDA have no float64, which changes bytes but not operations.
        work = work_of(case.rows, case.dims, "float32" if dtype == "float64" else dtype)
        least = moved[mode] if dtype == "float64" else min(moved[mode], work.bytes)
        floors[mode] = Floor(plain_flops(work), least + again)
    if "backward" in floors:
        floors["both"] = floors["forward"] + floors["backward"]
    return floors


def cpu_floor_lines(floors: Mapping[str, Floor], rates: Rates, ours_ms: Mapping[str, float]) -> list[str]:
    """Return a line per mode: operations, bytes, the floor, and the measured time of ours over it."""
    lines = []
    for mode, floor in floors.items():
        floor_ms = floor.milliseconds(rates)
        share = f"; ours / floor {digits(ours_ms[mode] / floor_ms, 3)}" if mode in ours_ms else ""
        amounts = f"{digits(floor.flops / 1e9, 4)} GFLOP, {digits(floor.bytes / 1e6, 4)} MB"
        lines.append(f"floor of {mode}: {amounts}, {digits(floor_ms, 4)} ms{share}")
    return lines
