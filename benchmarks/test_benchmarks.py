"""The cases of `python -m benchmarks` under pytest-benchmark, for its comparisons over time and its JSON.

`pytest benchmarks --benchmark-only` runs them, `-k` selects; the default test run does not collect this folder.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.clock import Function, clear_gradients, go_backward
from benchmarks.harness import Case, admit, cases_of, load_op, missing_kernels, modes_of, op_names, providers_of

pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")
if missing := missing_kernels("cpu"):
    raise pytest.UsageError(missing)


@lru_cache(maxsize=1)  # the tests of one case follow each other, and checking it is slow
def admitted(op: str, case: Case) -> tuple[tuple[Tensor, ...], dict[str, Function], dict[str, str]]:
    """Return the inputs of a case, the providers that passed the check, and why others did not."""
    inputs = case.inputs(torch.float32, "cpu")
    return inputs, *admit(load_op(op), case, inputs)


def combinations() -> Iterator[Any]:
    """Yield every op, case, mode and provider to be timed."""
    for name in op_names():
        op = load_op(name)
        for case in cases_of(op, "cpu"):
            for mode in modes_of(op, case) if not case.memory_only else ():
                for provider in providers_of(op, case):
                    yield pytest.param(name, case, mode, provider, id=f"{name}-{case.name}-{mode}-{provider}")


@pytest.mark.parametrize(("op", "case", "mode", "provider"), combinations())
@pytest.mark.filterwarnings("default")  # what torch's compiler warns of is no failure of the benchmark
def test_speed(benchmark: Callable[..., Any], op: str, case: Case, mode: str, provider: str) -> None:
    """Check, then time, one provider in one mode."""
    inputs, functions, excluded = admitted(op, case)
    status = excluded.get(provider, "ok")
    assert not status.startswith("WRONG"), status
    if status != "ok":
        pytest.skip(status)
    function = functions[provider]

    def forward() -> Any:
        clear_gradients(inputs)
        return function(*inputs)

    benchmark.group = f"{op} {case.name} {mode}"  # type: ignore[attr-defined]
    if mode == "forward":
        benchmark(forward)
    elif mode == "both":
        benchmark(lambda: go_backward(forward()))
    else:
        benchmark.pedantic(  # type: ignore[attr-defined]
            go_backward, setup=lambda: ((forward(),), {}), rounds=20, warmup_rounds=2
        )
