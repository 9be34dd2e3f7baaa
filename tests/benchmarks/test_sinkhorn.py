"""The benchmark of sinkhorn_knopp and its proof table. No time is ever asserted."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import sinkhorn_proof as proof
from benchmarks.clock import fixed_gradient, go_backward
from benchmarks.floors import CARDS, Work
from benchmarks.floors import sinkhorn as sinkhorn
from benchmarks.floors.cpu import find_floors
from benchmarks.harness import Case, admit, load_op
from benchmarks.memory import measure_in_fork
from benchmarks.ops.sinkhorn_knopp import PROVIDERS, make_case, swav_loop
from benchmarks.report import ROOT
from deepclust_ext import sinkhorn_knopp
from tests.benchmarks.test_harness import read_rows

H200 = CARDS["NVIDIA H200"]
LOOPS = {"SwAV loop", "compiled SwAV loop"}

Outcomes = dict[tuple[torch.dtype, float], list[tuple[proof.Outcome, proof.Outcome]]]

# The largest epsilon at which SwAV's loop overflows, and what bounds our errors in results that are at most 1.
FIRST_FAILURE = {torch.float16: 0.1, torch.bfloat16: 0.01, torch.float32: 0.01, torch.float64: 0.001}
LARGEST_ERROR = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2e-5, torch.float64: 1e-12}


def small_case(form: str, **changes: Any) -> Case:
    return dataclasses.replace(make_case(form, 64, 24), **changes)


def without_compiler() -> dict[str, Any]:
    return {name: provider for name, provider in PROVIDERS.items() if not provider.compiled}


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_op("sinkhorn_knopp"), "PROVIDERS", without_compiler())


@pytest.mark.parametrize("form", ["t3", "t50", "out", "batch", "gradient", "sharp"])
def test_every_form_is_what_the_reference_computes(form: str) -> None:
    case = small_case(form)
    fit, excluded = admit(load_op("sinkhorn_knopp"), case, case.inputs(torch.float32, "cpu"))
    assert set(without_compiler()) == set(fit) | set(excluded)
    for name, status in excluded.items():
        is_skipped = name in LOOPS or (name == "POT" and form == "out")
        assert status.startswith("skipped: " if is_skipped else "not installed: "), name
    assert ("SwAV loop" in fit) == (form != "sharp")
    assert {"ours", "reference"} <= set(fit)


def test_memory_for_the_result_is_not_read_and_not_replaced() -> None:
    case = small_case("out")
    scores, out = case.inputs(torch.float32, "cpu")
    found = find_floors(load_op("sinkhorn_knopp"), case, (scores, out), out, "float32")
    assert found["forward"].bytes == 2 * 64 * 24 * 4
    for name in ("ours", "SwAV loop"):
        result = case.bind(PROVIDERS[name].load())(scores, out.zero_())
        assert result.data_ptr() == out.data_ptr()
        torch.testing.assert_close(out, sinkhorn_knopp(scores))


def test_loop_is_the_iteration_step_by_step() -> None:
    (scores,) = make_case("batch", 32, 8).inputs(torch.float64, "cpu")
    for num_iters in (1, 2, 5):
        expected = sinkhorn_knopp(scores, num_iters=num_iters)
        torch.testing.assert_close(swav_loop(scores, num_iters=num_iters), expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(swav_loop(scores[0], num_iters=num_iters), expected[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loop_of_the_benchmark_survives_half_precision(dtype: torch.dtype) -> None:
    case = small_case("t3")
    fit, _ = admit(load_op("sinkhorn_knopp"), case, case.inputs(dtype, "cpu"))
    assert {"ours", "SwAV loop"} <= set(fit)


def test_gradient_is_timed_in_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_op("sinkhorn_knopp"), "CASES", [small_case("t3"), small_case("gradient")])
    for name in ("t3", "gradient"):
        arguments = ["--op", "sinkhorn_knopp", "--quick", "--cases", name, "--out", str(tmp_path)]
        assert command_line.main(arguments) == 0
    (path,) = tmp_path.iterdir()
    modes = {(line["case"], line["mode"]) for line in read_rows(path) if line["provider"] == "SwAV loop"}
    assert modes == {("t3-64x24", "forward"), *(("gradient-64x24", m) for m in ("forward", "backward", "both"))}
    assert {line["status"] for line in read_rows(path) if line["provider"] in ("ours", "SwAV loop")} == {"ok"}


def test_what_is_no_loss_goes_backward_from_a_fixed_gradient() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    go_backward(2 * x)
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * fixed_gradient(x.shape, x.dtype, x.device))
    assert x.grad.unique().numel() == 6
    y = torch.ones(3, 2, requires_grad=True)
    go_backward((2 * y).sum())
    assert y.grad is not None
    assert torch.equal(y.grad, torch.full((3, 2), 2.0))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak through /proc")
def test_memory_is_measured_without_the_incoming_gradient() -> None:
    """At 4096 x 1000 a matrix has 16.4 MB: ours has its kernel, result and gradient, and the loop one for each step."""
    ours, loop = (
        measure_in_fork("sinkhorn_knopp", "gradient-4096x1000", name, "float32", 1) for name in ("ours", "SwAV loop")
    )
    assert ours < 5 * 16.4
    assert loop > 10 * 16.4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="as above, whose server of processes this uses")
def test_memory_of_a_process_that_fails_is_an_error_with_its_name() -> None:
    with pytest.raises(RuntimeError, match="memory of nobody at sinkhorn_knopp t3-256x10: its process ended without"):
        measure_in_fork("sinkhorn_knopp", "t3-256x10", "nobody", "float32", 1)


# The proof table


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """What comes of the loop and of ours, at every number of iterations."""
    return {
        (dtype, epsilon): [proof.compare(dtype, epsilon, num_iters) for num_iters in proof.NUM_ITERS]
        for dtype in proof.DTYPES
        for epsilon in proof.EPSILONS
    }


def lines_of_the_page() -> Iterator[list[str]]:
    """Yield the cells of every line of the proof table."""
    page = (ROOT / "docs" / "performance" / "sinkhorn.md").read_text()
    names = "|".join(str(dtype).removeprefix("torch.") for dtype in proof.DTYPES)
    for line in re.findall(rf"^\| ((?:{names}) \| 0\.\d+ \| .*) \|$", page, re.MULTILINE):
        yield [cell.strip() for cell in line.split("|")]


def test_ours_never_fails_where_the_loop_does(outcomes: Outcomes) -> None:
    for (dtype, epsilon), runs in outcomes.items():
        overflows = epsilon <= FIRST_FAILURE[dtype]
        for loop, ours in runs:
            assert loop.lost == overflows, (dtype, epsilon)
            assert ours.lost == 0, (dtype, epsilon)
            assert ours.error < LARGEST_ERROR[dtype], (dtype, epsilon)
            if dtype == torch.float32 and not overflows:
                assert loop.error < 1e-6


def test_performance_page_has_the_proof_table(outcomes: Outcomes) -> None:
    """Its shares exactly; its errors, which the processor's order of additions changes, to a factor of 4."""
    lines = list(lines_of_the_page())
    assert [(line[0], line[1]) for line in lines] == [(str(d).removeprefix("torch."), str(e)) for d, e in outcomes]
    for line, runs in zip(lines, outcomes.values(), strict=True):
        for column, outcome_of_run in zip((2, 4), zip(*runs, strict=True), strict=True):
            assert line[column] == ", ".join(outcome.cells()[0] for outcome in outcome_of_run)
            for stated, outcome in zip(line[column + 1].split(", "), outcome_of_run, strict=True):
                if outcome.lost == 1:
                    assert stated == "none finite"
                else:
                    assert outcome.error / 4 < float(stated) < outcome.error * 4


def test_a_few_lost_entries_are_not_shown_as_none_or_all() -> None:
    truth = torch.zeros(1000, dtype=torch.float64)
    result = truth.float()
    result[0], result[1] = torch.nan, 0.25
    assert proof.Outcome.of(result, truth).cells() == ("1 %", "2e-01")
    result[1:] = torch.inf
    result[7] = 0.0
    assert proof.Outcome.of(result, truth).cells() == ("99 %", "0e+00")


# Floors and predictions for CUDA


def test_floor_of_sinkhorn_is_bytes() -> None:
    size = {"problems": 1, "num_iters": 3}
    scores = 4096 * 1000 * 4  # bytes; they stay on the chip, so are read once
    assert sinkhorn.assignment_work(4096, 1000, "float32", **size) == Work({}, 2 * scores)
    assert sinkhorn.gradient_work(4096, 1000, "float32", **size) == Work({}, 3 * scores)
    assert sinkhorn.assignment_work(4096, 1000, "float32", **size).seconds(H200) == pytest.approx(7.62e-6, rel=1e-3)
    # read in three iterations and once more, and written
    assert sinkhorn.assignment_work(65536, 1000, "bfloat16", **size) == Work({}, 5 * 65536 * 1000 * 2)


@pytest.mark.parametrize(
    ("plan", "launches", "blocks"),
    [
        (sinkhorn.Plan(64, 256, 16, 50), 1, 64),  # a block for every problem
        (sinkhorn.Plan(1, 4096, 1000, 3), 8, 128),  # 32 tiles of columns for 16 warps: blocks of one slice
        (sinkhorn.Plan(2, 4096, 100, 50), 102, 2 * 32),  # four tiles: blocks of four slices
    ],
)
def test_launches_of_sinkhorn(plan: sinkhorn.Plan, launches: int, blocks: int) -> None:
    assert (plan.launches, plan.blocks) == (launches, blocks)
    for dtype in sinkhorn.ELEMENT_BYTES:
        size = {"problems": plan.problems, "num_iters": plan.num_iters}
        for work_of, predict in (
            (sinkhorn.assignment_work, sinkhorn.predict_forward),
            (sinkhorn.gradient_work, sinkhorn.predict_backward),
        ):
            seconds, limit = predict(plan, dtype, H200)
            assert seconds > work_of(plan.samples, plan.clusters, dtype, **size).seconds(H200)
            assert limit in ("instructions", "latency", "L2", "memory")
