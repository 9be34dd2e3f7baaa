"""Times every provider of an op, all of them in turn within one process.

Why in turn: the speed of a machine drifts (clock, neighbors, page cache), but hardly within one round. A round samples
every provider once, in shuffled order; a ratio is the median over rounds of the two times of the same round.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]
Sample = dict[str, float]  # mode -> seconds of one call
Rounds = dict[tuple[str, str], list[float]]  # (provider, mode) -> seconds of one call in each round

WARM_UPS = 2
MIN_ROUNDS, MAX_ROUNDS = 9, 200
LONG_ROUND = 30.0  # seconds: the first round that takes longer is the only one
# Seconds of a sample at least: events resolve half a microsecond, a queue takes a few to fill, and a short call would
# find the caches as another provider left them.
MIN_STRETCH = 1e-3


def clear_gradients(inputs: tuple[Tensor, ...]) -> None:
    """Forget gradients, so that a backward pass writes a new one, as after `optimizer.zero_grad()`."""
    for x in inputs:
        x.grad = None


def go_backward(output: Tensor) -> None:
    """Call backward on a loss, or on any other result with a gradient that is always the same."""
    output.backward(None if output.dim() == 0 else fixed_gradient(output.shape, output.dtype, output.device))


@cache
def fixed_gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return normal numbers, made when they are first asked for."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def take_host_sample(function: Function, inputs: tuple[Tensor, ...], modes: Sequence[str], *, repeats: int) -> Sample:
    """Time calls, one by one; forward records the graph where a backward follows, and "both" is one stretch of time."""
    forward = backward = 0.0
    for _ in range(repeats):
        clear_gradients(inputs)
        start = time.perf_counter()
        output = function(*inputs)
        middle = time.perf_counter()
        forward += middle - start
        if "backward" in modes:
            go_backward(output)
            backward += time.perf_counter() - middle
    if "backward" not in modes:
        return {"forward": forward / repeats}
    return {"forward": forward / repeats, "backward": backward / repeats, "both": (forward + backward) / repeats}


def time_stretch(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds that one of so many calls takes on the current CUDA stream, waits for the host included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def take_device_sample(function: Function, inputs: tuple[Tensor, ...], modes: Sequence[str], *, repeats: int) -> Sample:
    """Time calls on CUDA, every mode in its own stretch: backward on graphs made before, "both" as in training."""
    if "backward" not in modes:
        return {"forward": time_stretch(lambda: function(*inputs), repeats)}
    outputs: list[Tensor] = []

    def backward(output: Tensor) -> None:
        clear_gradients(inputs)
        go_backward(output)

    return {
        "forward": time_stretch(lambda: outputs.append(function(*inputs)), repeats),
        "backward": time_stretch(lambda: backward(outputs.pop()), repeats),
        "both": time_stretch(lambda: backward(function(*inputs)), repeats),
    }


def find_repeats(take: Callable[..., Sample]) -> int:
    """Return the power of two at which the shortest mode of `take(repeats=...)` fills MIN_STRETCH."""
    repeats = 1
    while True:
        take(repeats=repeats)  # pays for caches and memory
        if repeats * min(take(repeats=repeats).values()) >= MIN_STRETCH:
            return repeats
        repeats *= 2


def time_rounds(
    calls: Mapping[str, Function],
    modes: Mapping[str, Sequence[str]],
    inputs: tuple[Tensor, ...],
    device: str,
    seconds: float,
) -> Rounds:
    """Time every function in its modes once per round, for about so many seconds; no seconds mean 3 rounds."""
    samplers: dict[str, Callable[[], Sample]] = {}
    for name, function in calls.items():
        sampler = take_device_sample if device == "cuda" else take_host_sample
        take = partial(sampler, function, inputs, modes[name])
        samplers[name] = partial(take, repeats=find_repeats(take))
    return sample_rounds(samplers, seconds)


def sample_rounds(samplers: Mapping[str, Callable[[], Sample]], seconds: float) -> Rounds:
    """Take one sample of each per round, for about so many seconds; no seconds mean 3 rounds, LONG_ROUND means one."""

    def run_round(order: list[str]) -> dict[tuple[str, str], float]:
        return {(name, mode): taken for name in order for mode, taken in samplers[name]().items()}

    order = list(samplers)
    for _ in range(WARM_UPS):
        start = time.perf_counter()
        warm_up = run_round(order)
        round_seconds = time.perf_counter() - start
        if round_seconds > LONG_ROUND:
            return {key: [taken] for key, taken in warm_up.items()}
    rounds: Rounds = {key: [] for key in warm_up}
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
