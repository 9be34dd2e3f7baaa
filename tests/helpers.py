"""Devices and comparisons that many tests share."""

import ctypes
import re
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepclust_ext import _extension
from tests.forks import run_python

#: Whether this library runs the CUDA kernels on the emulated device, which then serves CPU tensors.
EMULATED = False

#: The instruction sets of the CPU kernels that this processor can run, the best last.
INSTRUCTION_SETS: list[str] = []

#: What ATEN_CPU_CAPABILITY calls them.
CAPABILITY_VARIABLE = {"baseline": "default", "AVX2": "avx2", "AVX512": "avx512"}

if _extension.NATIVE_DEVICES:
    from deepclust_ext import _C

    EMULATED = _C.build_info()["cpu_capability"] == "emulated CUDA device"
    INSTRUCTION_SETS = _C.build_info()["processor_capabilities"]

#: Whether the kernels alone are under test, as the reference and the CPU's own kernels have been in the default suite.
KERNELS_ALONE = EMULATED or hasattr(ctypes.CDLL(None), "__asan_init")

#: Devices for pytest.mark.parametrize("device", DEVICES).
DEVICES = [pytest.param("cpu", id="emulated-cuda" if EMULATED else "cpu")]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", id="cuda"))

#: What the float64 reference itself may err, relative: its distances come from a matrix product and cancel.
TRUTH_ERROR = 1e-12


def suite_minutes(processes: int) -> float:
    """Return how long the whole default suite takes in so many processes, by the CPU seconds in CONTRIBUTING.md."""
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    (seconds,) = re.findall(r"^\| `make test`, [\d,]+ tests \| about (\d+) \|", page, flags=re.MULTILINE)
    return int(seconds) / 60 / processes


def assert_error_budget(ours: Tensor, naive: Tensor, truth: Tensor, what: str = "result", amplified: float = 1) -> None:
    """Require that `ours` errs at most twice as much as `naive`, the reference in the same dtype, plus a rounding.

    `truth` is the reference in float64 on the same inputs. Errors are compared as maximum and as root mean square, so
    that one bad element does not hide and many slightly bad ones do not either. Where the naive form overflows or is
    NaN, it allows nothing: ours must then be right to rounding, which the function may have `amplified`.
    """
    assert ours.shape == naive.shape == truth.shape
    assert ours.dtype == naive.dtype
    error, naive_error = (ours.double() - truth).abs(), (naive.double() - truth).abs().nan_to_num(0, 0, 0)
    assert bool(ours.isfinite().all()) or not bool(truth.isfinite().all()), f"{what}: not finite"
    if not truth.numel():
        return
    scale = max(1.0, float(truth.abs().max()))
    rounding = amplified * (4 * torch.finfo(ours.dtype).eps + TRUTH_ERROR) * scale
    for name, got, allowed in (
        ("maximum", error.max(), naive_error.max()),
        ("root mean square", error.square().mean().sqrt(), naive_error.square().mean().sqrt()),
    ):
        budget = 2 * float(allowed) + rounding
        assert float(got) <= budget, f"{what}: {name} error {float(got):.3g}, budget {budget:.3g}"


def peak_extra_megabytes(setup: str, warm_up: str, call: str) -> float:
    """Return by how much `call` raises the peak memory of a process of its own, all three being statements."""
    script = f"""
import resource, torch, deepclust_ext
{setup}
{warm_up}  # loads libraries, starts threads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{call}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = run_python(script)
    assert output.returncode == 0, output.stderr
    kilobytes_per_unit = 1 if sys.platform == "linux" else 1 / 1024
    return int(output.stdout) * kilobytes_per_unit / 1024


def loading_processes() -> set[int]:
    """Return the processes that load data: all that this one has started, but for the ranks that tests share."""
    return {child.pid for child in active_children() if child.pid and not child.name.startswith("rank ")}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same values in every bit that a value has (NaN equals NaN)."""
    return first.dtype == second.dtype and torch.equal(first.nan_to_num(12345.0), second.nan_to_num(12345.0))


def results_by_instruction_set(script: str) -> tuple[list[list[float]], list[list[float]]]:
    """Return what a script prints with this processor's best instruction set and with none: lines of numbers, in hex.

    Each runs in a process where no kernel ran before. AVX-512 and AVX2, where there are both, must agree to the bit.
    """
    lines = {}
    for capability in INSTRUCTION_SETS:
        whole = f"import deepclust_ext.ops\nprint(deepclust_ext._C.build_info()['cpu_capability'])\n{script}"
        output = run_python(whole, ATEN_CPU_CAPABILITY=CAPABILITY_VARIABLE[capability])
        assert output.returncode == 0, output.stderr
        ran, *lines[capability] = output.stdout.splitlines()
        assert ran == capability
    if len(lines) < 2:
        pytest.skip("this processor has no instruction sets to compare")
    if "AVX512" in lines:
        assert lines["AVX512"] == lines["AVX2"]
    best_numbers, baseline_numbers = (
        [[float.fromhex(word) for word in line.split()] for line in lines[capability]]
        for capability in (INSTRUCTION_SETS[-1], "baseline")
    )
    return best_numbers, baseline_numbers
