"""The benchmark of KMeans: what it measures agrees, and what is missing or wrong is named."""

from typing import Any

import pytest
from torch import Tensor

from benchmarks import kmeans
from benchmarks.report import Setting

SETTING = Setting("m", "cpu", 1, "2", "c", "float32")


def test_scikit_learn_computes_the_same_and_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_missing() -> Any:
        raise ImportError("No module named 'faiss'")

    monkeypatch.setitem(kmeans.PROVIDERS, "faiss", load_missing)
    rows = kmeans.measure(SETTING, 0, rows=2000, dims=8, clusters=5)
    assert {row.provider: row.status for row in rows} == {
        "ours": "ok",
        "scikit-learn": "ok",
        "faiss": "not installed: No module named 'faiss'",
    }
    assert rows[0].per_ours == 1


def test_faiss_computes_the_same() -> None:
    pytest.importorskip("faiss")
    rows = kmeans.measure(SETTING, 0, rows=2000, dims=8, clusters=5)
    assert {row.status for row in rows} == {"ok"}


def test_a_wrong_inertia_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_wrong() -> Any:
        def fit(rows: Tensor, centers: Tensor) -> float:
            return 2 * kmeans.load_ours()(rows, centers)  # type: ignore[no-any-return]

        return fit

    monkeypatch.setitem(kmeans.PROVIDERS, "faiss", load_wrong)
    rows = kmeans.measure(SETTING, 0, rows=2000, dims=8, clusters=5)
    status = {row.provider: (row.status, row.median_ms) for row in rows}["faiss"]
    assert status[0].startswith("WRONG: inertia is")
    assert status[1] is None
