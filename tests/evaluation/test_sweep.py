"""Sweeps: planted clusters stand out, edges are no numbers out of nothing, the same seed gives the same scores."""

import csv
import io
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.cluster import KMeans
from deepclust_ext.evaluation.scores import cosine_silhouette
from deepclust_ext.evaluation.sweep import SweepScores, csv_of, format_sweep, sweep


def planted(clusters: int = 6, each: int = 40, noise: float = 0.15) -> Tensor:
    """Return rows (N, 16) around random directions."""
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(clusters, 16, generator=generator), dim=1).repeat_interleave(each, dim=0)
    return centers + noise * torch.randn(len(centers), 16, generator=generator)


def test_planted_clusters_stand_out() -> None:
    results = {scores.clusters: scores for scores in sweep(planted(), range(2, 12))}
    assert max(results.values(), key=lambda scores: scores.silhouette or 0).clusters == 6
    assert results[6].stability == 1
    assert (results[6].smallest, results[6].largest) == (40, 40)
    # More clusters are cut out of real ones by chance, each time elsewhere.
    assert all(scores.stability is not None and scores.stability < 0.97 for K, scores in results.items() if K > 6)
    inertias = [scores.inertia for scores in results.values()]
    assert inertias == sorted(inertias, reverse=True)
    falls = [before - after for before, after in itertools.pairwise(inertias)]
    assert min(falls[:4]) > 5 * max(falls[4:])  # the bend is at 6


def test_rows_without_clusters_have_no_stable_k() -> None:
    results = sweep(torch.randn(300, 16, generator=torch.Generator().manual_seed(1)), range(4, 12))
    assert all(scores.stability is not None and scores.stability < 0.5 for scores in results)
    assert all(scores.silhouette is not None and scores.silhouette < 0.2 for scores in results)


def test_scores_are_those_of_the_clusters_found() -> None:
    rows = planted()
    (scores,) = sweep(rows, [6])
    kmeans = KMeans(6, metric="cosine", n_init=10, random_state=0).fit(rows)
    assert scores.inertia == pytest.approx(kmeans.inertia_, rel=1e-6)
    assert scores.silhouette == pytest.approx(cosine_silhouette(rows, kmeans.labels_))


def test_a_seed_decides_all_and_length_does_not_count() -> None:
    rows = planted(noise=0.6)
    first = sweep(rows, [3, 9], seed=4)
    assert sweep(rows, [3, 9], seed=4) == first
    assert sweep(rows, [3, 9], seed=5) != first
    lengths = 2.0 ** torch.arange(len(rows)).remainder(5).unsqueeze(1)
    assert sweep(rows * lengths, [3, 9], seed=4) == first


def finite(results: list[SweepScores]) -> bool:
    return all(value is None or math.isfinite(value) for scores in results for value in asdict(scores).values())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_one_cluster_and_one_for_each_row(count: int) -> None:
    rows = torch.randn(count, 4)
    results = sweep(rows, sorted({1, count}))
    assert finite(results)
    assert results[0].clusters == 1
    assert results[0].silhouette is None
    assert (results[0].stability, results[0].smallest) == (1, count)
    assert results[-1].silhouette is None
    assert results[-1].largest == (count if count == 1 else 1)
    assert results[-1].inertia == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "rows",
    [torch.ones(20, 3), torch.zeros(20, 3), torch.eye(3).repeat(7, 1), torch.randn(20, 3).bfloat16()],
    ids=["equal", "blank", "three directions", "half precision"],
)
def test_rows_that_hold_fewer_clusters_than_asked_for(rows: Tensor) -> None:
    results = sweep(rows, range(1, len(rows)))
    assert finite(results)
    assert all(scores.smallest <= len(rows) / scores.clusters <= scores.largest for scores in results)


def test_one_seed_has_no_stability() -> None:
    assert [scores.stability for scores in sweep(planted(), [3, 6], seeds=1)] == [None, None]


def test_many_rows_are_clustered_in_parts_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = KMeans.fit

    def spy(self: KMeans, features: Tensor, y: object = None) -> KMeans:
        seen.append(len(features))
        return right(self, features, y)

    monkeypatch.setattr("deepclust_ext.evaluation.sweep.MOST_ROWS", 100)
    monkeypatch.setattr(KMeans, "fit", spy)
    (scores,) = sweep(planted(), [6])
    assert (set(seen[:-1]), seen[-1]) == ({100}, 240)
    assert scores.stability == 1


@pytest.mark.parametrize(
    ("rows", "counts", "settings", "error", "message"),
    [
        (torch.zeros(0, 3), [1], {}, ValueError, r"rows: expected shape \(N, D\) with at least one row, got \(0, 3\)"),
        (torch.ones(5), [1], {}, ValueError, r"rows: expected shape \(N, D\) with at least one row, got \(5,\)"),
        (torch.tensor([[1.0, torch.nan]]), [1], {}, ValueError, "rows: expected finite numbers, got NaN or infinity"),
        (torch.ones(5, 2), [], {}, ValueError, "clusters: expected at least one number, got none"),
        (torch.ones(5, 2), [2, 6], {}, ValueError, "clusters: expected at most 5, as many as there are rows, got 6"),
        (torch.ones(5, 2), [0], {}, ValueError, "clusters: expected at least 1, got 0"),
        (torch.ones(5, 2), [2.5], {}, TypeError, "clusters: expected an integer, got 2.5"),
        (torch.ones(5, 2), [2], {"seeds": 0}, ValueError, "seeds: expected at least 1, got 0"),
        (torch.ones(5, 2), [2], {"seed": -1}, ValueError, "seed: expected 0 to 18446744073709551611, got -1"),
        (torch.ones(5, 2), [2], {"seed": 2**64 - 4}, ValueError, "seed: expected 0 to 18446744073709551611, got 18"),
    ],
)
def test_errors_name_the_argument(
    rows: Tensor, counts: Any, settings: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sweep(rows, counts, **settings)


RESULTS = [SweepScores(1, None, 1.0, 240, 240, 210.5), SweepScores(6, 0.75, 0.98765, 39, 41, 20.25)]


def test_table_and_csv() -> None:
    assert format_sweep(RESULTS).splitlines() == [
        "clusters  silhouette  stability  smallest  largest    inertia",
        "       1           -     1.0000       240      240      210.5",
        "       6      0.7500     0.9877        39       41       20.2",
        "highest silhouette: 6 clusters",
        "highest stability: 6 clusters",
    ]
    assert format_sweep([SweepScores(1, None, None, 2, 2, 0.5)]).count("\n") == 1
    assert "    0.0213" in format_sweep([SweepScores(2, 0.5, 0.5, 2, 2, 0.02128)])  # of rows that lie close together
    rows = list(csv.DictReader(io.StringIO(csv_of(RESULTS))))
    assert rows[0] == {
        "clusters": "1",
        "silhouette": "",
        "stability": "1.0",
        "smallest": "240",
        "largest": "240",
        "inertia": "210.5",
    }
    assert [json.loads(row["clusters"]) for row in rows] == [1, 6]


@pytest.mark.parametrize("trained", [None, 6, 60])
def test_the_figure_has_a_panel_for_each_score(trained: int | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from deepclust_ext.evaluation.plots import save_sweep

    save_sweep(tmp_path / "sweep.png", RESULTS, trained=trained)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
