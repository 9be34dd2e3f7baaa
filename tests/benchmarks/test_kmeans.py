"""The benchmarks of kmeans_assign and KMeans: what they measure agrees, and what is missing or wrong is named."""

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command_line
from benchmarks import kmeans
from benchmarks.floors import BF16, CARDS
from benchmarks.floors import kmeans as kmeans_floors
from benchmarks.floors.cpu import Floor, Rates
from benchmarks.harness import admit, load_op
from benchmarks.report import Setting

SETTING = Setting("m", "AVX2", "cpu", 1, "2", "c", "float32")


def test_scikit_learn_computes_the_same_and_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "flash_kmeans.torch_fallback", None)
    monkeypatch.setitem(sys.modules, "flash_kmeans", ModuleType("flash_kmeans"))
    rows = kmeans.measure(SETTING, 0, None, rows=2000, dims=32, clusters=5)
    assert {row.provider: row.status for row in rows} == {
        "ours": "ok",
        "scikit-learn": "ok",
        "faiss": "not installed: import of faiss halted; None in sys.modules",
        "faiss SuperKmeans": "not installed: import of faiss halted; None in sys.modules",
        "flash-kmeans": "not installed: import of flash_kmeans.torch_fallback halted; None in sys.modules",
    }
    assert rows[0].per_ours == 1


@pytest.mark.parametrize(
    ("package", "name"), [("faiss", "faiss"), ("faiss", "faiss SuperKmeans"), ("flash_kmeans", "flash-kmeans")]
)
def test_a_peer_computes_the_same(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours, name: kmeans.PROVIDERS[name]})
    rows = kmeans.measure(SETTING, 0, None, rows=2000, dims=32, clusters=5)
    assert {row.provider: row.status for row in rows} == {"ours": "ok", name: "ok"}


def test_an_older_faiss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours, "super": kmeans.load_super_kmeans})
    _, rival = kmeans.measure(SETTING, 0, None, rows=500, dims=8, clusters=5)
    assert rival.status == "not installed: faiss with SuperKmeans, 1.15.1 or newer"


def test_all_stop_where_no_label_changes_any_more() -> None:
    """Ours and scikit-learn stop, where faiss would go on."""
    pytest.importorskip("faiss")
    rows = kmeans.measure(SETTING, 0, None, rows=500, dims=32, clusters=250)
    case = {row.case for row in rows if row.provider in ("ours", "scikit-learn", "faiss") and row.status == "ok"}
    assert case < {f"random-500x32-k250-{made}-iterations" for made in range(2, 10)}
    assert len(case) == 1


def test_a_wrong_inertia_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_wrong(iterations: int) -> Any:
        def fit(rows: Tensor, centers: Tensor) -> Tensor:
            return 2 * kmeans.load_ours(iterations)(rows, centers)  # type: ignore[no-any-return]

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
        seeding = kmeans_floors.seed_reads(rows, dims, dtype, clusters=clusters)
        assert seeding.bytes == clusters * (rows * dims * kmeans_floors.ARITHMETICS[dtype][1] + 8)
        assert kmeans_floors.predict_seed(rows, clusters, dims, dtype, CARDS["NVIDIA H200"]) > seeding.seconds(
            CARDS["NVIDIA H200"]
        )


def test_grid_yields_its_rows_case_by_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "GRID", ((500, 3, 8), (400, 2, 8)))
    monkeypatch.setattr(kmeans, "PROVIDERS", {"ours": kmeans.load_ours})
    rows = kmeans.measure_grid(SETTING, 0.01, None)
    assert next(rows).case == "random-500x8-k3-10-iterations"
    assert [row.case for row in rows] == ["random-400x8-k2-10-iterations"]
    assert [row.case for row in kmeans.measure_grid(SETTING, 0, None)] == ["random-400x8-k2-10-iterations"]


def test_the_grid_is_measured_when_it_is_named_alone() -> None:
    assert set(command_line.BEYOND_OPS_ON["cpu"]) >= command_line.BY_NAME_ALONE == {"KMeans_grid"}
