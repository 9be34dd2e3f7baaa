"""The benchmarks of k-means and its ops: what they measure agrees, and what is missing or wrong is named."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import clock, kmeans
from benchmarks.floors import BF16, CARDS
from benchmarks.floors import kmeans as kmeans_floors
from benchmarks.floors.cpu import Floor, Rates, find_floors
from benchmarks.harness import Case, admit, cases_of, load_op
from benchmarks.ops.kmeans_seed import check_inertia
from benchmarks.report import Setting
from deepclust_ext import kmeans_seed

SETTING = Setting("m", "AVX2", "cpu", 1, "2", "c", "float32")


def test_scikit_learn_computes_the_same_and_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_missing() -> Any:
        raise ImportError("No module named 'faiss'")

    monkeypatch.setitem(kmeans.PROVIDERS, "faiss", load_missing)
    rows = kmeans.measure(SETTING, 0, None, rows=2000, dims=8, clusters=5)
    assert {row.provider: row.status for row in rows} == {
        "ours": "ok",
        "scikit-learn": "ok",
        "faiss": "not installed: No module named 'faiss'",
    }
    assert rows[0].per_ours == 1


def test_faiss_computes_the_same() -> None:
    pytest.importorskip("faiss")
    rows = kmeans.measure(SETTING, 0, None, rows=2000, dims=8, clusters=5)
    assert {row.status for row in rows} == {"ok"}


def test_a_wrong_inertia_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_wrong() -> Any:
        def fit(rows: Tensor, centers: Tensor) -> Tensor:
            return 2 * kmeans.load_ours()(rows, centers)  # type: ignore[no-any-return]

        return fit

    monkeypatch.setitem(kmeans.PROVIDERS, "faiss", load_wrong)
    rows = kmeans.measure(SETTING, 0, None, rows=2000, dims=8, clusters=5)
    status = {row.provider: (row.status, row.median_ms) for row in rows}["faiss"]
    assert status[0].startswith("WRONG: inertia is")
    assert status[1] is None


def test_series_is_one_case_briefly_and_all_sizes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SERIES", (5000, 6000))
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours})
    cases = [[row.case for row in kmeans.measure_series(SETTING, seconds, None)] for seconds in (0, 0.01)]
    assert cases == [[f"random-{rows}x64-k40-20-iterations" for rows in sizes] for sizes in ((5000,), (5000, 6000))]


def test_floor_of_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 iterations and the labels of the last centers; rows, labels, first and last centers.
    floor = kmeans.find_floor(rows=2000, clusters=5, dims=8)
    assert floor == Floor(21 * 2 * 2000 * 5 * 8, 4 * (2000 * 8 + 2 * 5 * 8) + 8 * 2000)
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours})
    rates = Rates(flops=floor.flops / 2, bytes=floor.bytes)  # two seconds, and one
    (row,) = kmeans.measure(SETTING, 0, rates, rows=2000, dims=8, clusters=5)
    assert row.floor_ms == pytest.approx(2000)
    assert row.per_floor == pytest.approx((row.median_ms or 0) / 2000)


def test_cases_of_kmeans() -> None:
    op = load_op("kmeans_assign")
    small, *_ = op.CUDA_CASES
    assert small.name == "clusters-k40-20000x64"
    assert small.works is not None
    work = small.works["forward"](small.rows, small.dims, "bfloat16")
    assert work.flops == {BF16: small.bind(op.YARDSTICK.flops)(*small.inputs(torch.float32, "cpu"))}
    assert work.bytes == 2 * 64 * (20_000 + 40) + 20_000 * (2 + 8)
    assert {case.name for case in op.CUDA_CASES if case.checked_rows} == {"clusters-k1000-1000000x128"}


@pytest.mark.parametrize("name", ["clusters-k10-2000x64", "random-k100-65536x128"])
def test_rivals_of_kmeans_assign_as_ours_does(name: str) -> None:
    op = load_op("kmeans_assign")
    (found,) = (case for case in op.CASES if case.name == name)
    compiled = {name: "skipped: slow to compile" for name, provider in op.PROVIDERS.items() if provider.compiled}
    case = dataclasses.replace(found, skip=compiled)
    for dtype in (torch.float32, torch.bfloat16):
        fit, excluded = admit(op, case, case.inputs(dtype, "cpu", rows=2000))
        assert set(fit) == {"ours", "cdist, argmin", "product, argmax", "reference"}, excluded


@pytest.mark.parametrize("dtype", kmeans_floors.ARITHMETICS)
def test_kmeans_is_not_predicted_to_beat_its_floors(dtype: str) -> None:
    for rows, clusters, dims in kmeans_floors.CUDA_ASSIGNMENTS:
        seconds, limit = kmeans_floors.predict_assign(rows, clusters, dims, dtype, CARDS["NVIDIA H200"])
        assert seconds > kmeans_floors.assign_work(rows, dims, dtype, clusters=clusters).seconds(CARDS["NVIDIA H200"])
        assert limit in ("warps", "L2", "shared", "memory")
        update = kmeans_floors.update_work(rows, dims, dtype, clusters=clusters)
        assert kmeans_floors.predict_update(rows, clusters, dims, dtype, CARDS["NVIDIA H200"]) > update.seconds(
            CARDS["NVIDIA H200"]
        )


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
