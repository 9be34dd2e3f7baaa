"""Checks, then times, every provider of an op, all of them in turn within one process.

Why in turn: the speed of a machine drifts (clock, neighbours, page cache), but hardly within one round. A round calls
every provider once, in shuffled order; a ratio is the median over rounds of the two times of the same round.
"""

import gc
import importlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]

WARM_UPS = 2
MIN_ROUNDS, MAX_ROUNDS = 9, 200


@dataclass(frozen=True)
class Provider:
    """One implementation. `load` imports or compiles it; ImportError there means that it is not installed."""

    load: Callable[[], Function]
    compiled: bool = False


@dataclass(frozen=True, eq=False)  # a case is itself: hashable whatever its fields
class Case:
    """Inputs of one size; `make(rows, dims)` returns them in float32 on the CPU, the same for the same arguments."""

    distribution: str
    rows: int
    dims: int
    make: Callable[[int, int], tuple[Tensor, ...]]
    rivals: Mapping[str, Provider] = field(default_factory=dict)  # providers that this case has beyond PROVIDERS
    skip: Mapping[str, str] = field(default_factory=dict)  # provider -> status that says why
    memory_only: bool = False  # too large for a check in float64

    @property
    def name(self) -> str:
        """Return what the case is called in tables and on the command line."""
        return f"{self.distribution}-{self.rows}x{self.dims}"

    def inputs(self, dtype: torch.dtype, device: str, rows: int | None = None) -> tuple[Tensor, ...]:
        """Return the inputs as leaf tensors; other `rows` make a smaller copy of the case."""
        made = self.make(rows or self.rows, self.dims)
        return tuple(x.detach().to(device, dtype).requires_grad_(x.requires_grad) for x in made)


@dataclass(frozen=True)
class Yardstick:
    """A computation that is no rival but a known floor, and the floating-point operations it takes."""

    name: str
    function: Function
    flops: Callable[..., int]


class OpBenchmark(Protocol):
    """What benchmarks/ops/OP.py defines. PROVIDERS has "ours", from which ratios are taken."""

    MODES: Sequence[str]  # ("forward",) or ("forward", "backward", "both")
    TRUTH: Function  # from deepclust_ext.reference
    YARDSTICK: Yardstick
    PROVIDERS: Mapping[str, Provider]
    CASES: Sequence[Case]


def op_names() -> list[str]:
    """Return the ops that have a benchmark."""
    return sorted(path.stem for path in (Path(__file__).parent / "ops").glob("[!_]*.py"))


def load_op(name: str) -> OpBenchmark:
    """Import the benchmark of an op."""
    return cast(OpBenchmark, importlib.import_module(f"benchmarks.ops.{name}"))


def providers_of(op: OpBenchmark, case: Case) -> dict[str, Provider]:
    """Return all providers of a case, skipped ones included."""
    return {**op.PROVIDERS, **case.rivals}


# The gate


def named_results(op: OpBenchmark, function: Function, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Call a provider and return all that is compared: its outputs and, if the op is timed backward, its gradients."""
    clear_gradients(inputs)
    output = function(*inputs)
    results = {"output": output} if isinstance(output, Tensor) else dict(output._asdict())
    if "backward" in op.MODES:
        if output.requires_grad:
            output.backward()
        for i, x in enumerate(inputs):
            if x.requires_grad:  # a provider without gradient fails by NaN
                results[f"gradient of input {i}"] = torch.full_like(x, torch.nan) if x.grad is None else x.grad
    return {name: value.detach().clone() for name, value in results.items()}


def error(result: Tensor, truth: Tensor) -> float:
    """Return how far a result is from the truth, relative to the norm of the truth; integers are equal or not.

    The worst rows are left out, one in 500 and two more: where two candidates are equal up to rounding, either is right
    but changes its row altogether. A NaN or Inf anywhere makes the error infinite.
    """
    if result.shape != truth.shape or not result.isfinite().all():
        return float("inf")
    if truth.is_floating_point():
        difference, scale = result.double() - truth, float(truth.norm()) or 1.0
    else:
        difference, scale = (result != truth).double(), float(truth.numel()) ** 0.5
    if truth.dim() == 0:
        return float(difference.abs()) / scale
    by_row = difference.flatten(1).norm(dim=1) if truth.dim() > 1 else difference.abs()
    kept = by_row.sort().values[: len(by_row) - 2 - len(by_row) // 500]
    return float(kept.norm()) / scale


def find_fault(results: dict[str, Tensor], naive: dict[str, Tensor], truth: dict[str, Tensor]) -> str | None:
    """Return what is wrong with a provider's results, or None.

    The rule of the error budget: at most twice the error of the reference in the tested dtype, and a little more
    because that error can be 0 by luck.
    """
    for name, result in results.items():
        off = error(result, truth[name])
        slack = 100 * torch.finfo(result.dtype).eps if result.is_floating_point() else 0.0
        allowed = 2 * error(naive[name], truth[name]) + slack
        if off > allowed:
            return f"WRONG: {name} is off by {off:.1e}, allowed {allowed:.1e}"
    return None


def admit(op: OpBenchmark, case: Case, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Function], dict[str, str]]:
    """Load and check every provider; return those fit to be timed and, for the others, a status that says why."""
    torch.compiler.reset()  # else the recompilation limit, reached after a few sizes, would silently mean eager
    exact = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in inputs)
    truth = named_results(op, op.TRUTH, exact)
    naive = named_results(op, op.TRUTH, inputs)
    fit, excluded = {}, {}
    for name, provider in providers_of(op, case).items():
        if name in case.skip:
            excluded[name] = case.skip[name]
            continue
        try:
            function = provider.load()
        except ImportError as missing:
            excluded[name] = f"not installed: {missing}"
            continue
        fault = find_fault(named_results(op, function, inputs), naive, truth)
        if fault:
            excluded[name] = fault
        else:
            fit[name] = function
    return fit, excluded


# The clock


def clear_gradients(inputs: tuple[Tensor, ...]) -> None:
    """Forget gradients, so that a backward pass writes a new one, as after `optimizer.zero_grad()`."""
    for x in inputs:
        x.grad = None


def read_clock(device: str) -> float:
    """Return the time in seconds, after all queued work is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def take_sample(function: Function, inputs: tuple[Tensor, ...], modes: Sequence[str], device: str) -> dict[str, float]:
    """Time one call; forward records the graph where a backward follows, and "both" is one stretch of time."""
    clear_gradients(inputs)
    start = read_clock(device)
    output = function(*inputs)
    middle = read_clock(device)
    if "backward" not in modes:
        return {"forward": middle - start}
    output.backward()
    end = read_clock(device)
    return {"forward": middle - start, "backward": end - middle, "both": end - start}


Rounds = dict[tuple[str, str], list[float]]  # (provider, mode) -> seconds in each round


def time_rounds(
    op: OpBenchmark, functions: Mapping[str, Function], inputs: tuple[Tensor, ...], device: str, seconds: float
) -> Rounds:
    """Time the yardstick and every function once per round, for about so many seconds; no seconds mean 3 rounds."""
    calls = {op.YARDSTICK.name: op.YARDSTICK.function, **functions}
    modes = {name: ("forward",) if name == op.YARDSTICK.name else op.MODES for name in calls}
    rounds: Rounds = {(name, mode): [] for name in calls for mode in modes[name]}

    def run_round(order: list[str]) -> dict[tuple[str, str], float]:
        return {
            (name, mode): taken
            for name in order
            for mode, taken in take_sample(calls[name], inputs, modes[name], device).items()
        }

    order = list(calls)
    for _ in range(WARM_UPS):
        start = time.perf_counter()
        run_round(order)
        round_seconds = time.perf_counter() - start
    count = min(max(int(seconds / round_seconds), MIN_ROUNDS), MAX_ROUNDS) if seconds else 3
    shuffler = random.Random(0)  # nobody always finds the caches as the same other one left them
    gc.disable()
    try:
        for _ in range(count):
            shuffler.shuffle(order)
            for key, taken in run_round(order).items():
                rounds[key].append(taken)
    finally:
        gc.enable()
    return rounds


@dataclass(frozen=True)
class Summary:
    """Median and spread of some times, in milliseconds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def summarize(seconds: Sequence[float]) -> Summary:
    """Return median, 20th and 80th percentile."""
    p20, median, p80 = 1e3 * np.quantile(seconds, [0.2, 0.5, 0.8])
    return Summary(float(median), float(p20), float(p80))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of times that were taken in the same round."""
    return float(np.median(np.divide(numerator, denominator)))
