"""The benchmark of kmeans_seed: its rivals choose as it does or as well, and long rounds are not repeated."""

from functools import partial

import pytest
import torch

from benchmarks import clock
from benchmarks.floors.cpu import Floor, find_floors
from benchmarks.harness import Case, admit, cases_of, load_op
from benchmarks.ops.kmeans_seed import check_inertia
from deepclust_ext import kmeans_seed


def seeding_case(name: str) -> Case:
    (case,) = (case for case in cases_of(load_op("kmeans_seed"), "cpu") if case.name == name)
    return case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rivals_of_kmeans_seed_choose_as_ours_does(dtype: torch.dtype) -> None:
    case = seeding_case("random-k40-20000x64")
    fit, excluded = admit(load_op("kmeans_seed"), case, case.inputs(dtype, "cpu", rows=1000))
    assert set(fit) == {"ours", "loop over kmeans_assign", "scikit-learn", "reference"}, excluded


def test_numbers_to_draw_with_stay_in_float64() -> None:
    case = seeding_case("random-k40-20000x64")
    for dtype in (torch.float32, torch.float16, torch.float64):
        features, uniform = case.inputs(dtype, "cpu", rows=100)
        assert (features.dtype, uniform.dtype) == (dtype, torch.float64)
        assert uniform.shape == (40, 5)
    assert case.inputs(torch.float32, "cpu", rows=7)[1].shape == (7, 5)  # scikit-learn refuses more centers than rows


def test_check_of_seeding_finds_what_is_wrong() -> None:
    inputs = seeding_case("random-k40-20000x64").inputs(torch.float32, "cpu", rows=1000)
    places = kmeans_seed(*inputs)
    assert check_inertia(places, inputs, {}) is None
    assert "inertia is" in str(check_inertia(places[:9].repeat(5)[:40], inputs, {}))
    assert check_inertia(places[:9], inputs, {}) == "WRONG: (9,) places"


def test_large_cases_of_kmeans_seed_are_checked_on_fewer_rows() -> None:
    op = load_op("kmeans_seed")
    assert {case.name: case.checked_rows for case in cases_of(op, "cpu")} == {
        "random-k10-2000x64": None,
        "random-k40-20000x64": None,
        "random-k1000-100000x128": 2000,
        "random-k40-5000x64": None,
        "random-k40-80000x64": 2000,
    }
    assert [case.skip for case in op.CUDA_CASES] == [
        {"scikit-learn": "skipped: on the CPU"},
        {"scikit-learn": "skipped: on the CPU", "reference": "skipped: takes minutes"},
    ]


def test_floor_of_seeding(monkeypatch: pytest.MonkeyPatch) -> None:
    """39 centers have 5 candidates each, and each of these reads what no cache holds of the rows as 16-bit integers."""
    op, case = load_op("kmeans_seed"), seeding_case("random-k40-5000x64")
    inputs = case.inputs(torch.float32, "cpu")
    read, written, integers = 5000 * 64 * 4 + 40 * 5 * 8, 40 * 8, 5000 * 64 * 2
    for cache, again in ((integers, 0), (integers - 1000, 39 * 1000)):
        monkeypatch.setattr("benchmarks.floors.cpu.cache_bytes", lambda cache=cache: cache)
        floor = find_floors(op, case, inputs, torch.zeros(40).long(), "float32")["forward"]
        assert floor == Floor(2 * 5000 * 64 * 39 * 5, read + written + again)
        assert floor.flops == case.bind(op.YARDSTICK.flops)(*inputs)


def test_a_round_that_is_long_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def sample(name: str) -> dict[str, float]:
        calls.append(name)
        return {"forward": float(len(calls))}

    samplers = {name: partial(sample, name) for name in ("ours", "loop")}
    assert clock.sample_rounds(samplers, 0)["ours", "forward"][2:]
    calls.clear()
    monkeypatch.setattr(clock, "LONG_ROUND", 0.0)
    assert clock.sample_rounds(samplers, 10) == {("ours", "forward"): [1.0], ("loop", "forward"): [2.0]}
    assert calls == ["ours", "loop"]
