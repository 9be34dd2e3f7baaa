"""KMeans with rows that are shared out against one process with all rows."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust_ext.cluster import KMeans
from deepclust_ext.cluster.ranks import fill_empty_over_ranks
from deepclust_ext.cluster.steps import fill_empty
from tests.distributed.pool import PerRank, Pool

SHARDS = [(1, [60]), (2, [30, 30]), (3, [41, 0, 19]), ("odd", [1, 59]), (4, [3, 3, 50, 4])]
shards = pytest.mark.parametrize(("ranks", "sizes"), SHARDS, ids=str)

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cosine": {"metric": "cosine"},
    "parallel": {"init": "k-means||"},
    "random": {"init": "random", "n_init": 2},
    "batches": {"batch_size": 16, "max_iter": 4},
    "many": {"n_clusters": 30},  # of which some lose all their rows
}


def blobs(rows: int = 60) -> Tensor:
    centers = 5 * torch.randn(6, 8)
    return centers[torch.arange(rows) % 6] + torch.randn(rows, 8)


def fitted(group: Any, rows: Tensor, weights: Tensor | None, options: dict[str, Any]) -> list[Any]:
    kmeans = KMeans(**{"n_clusters": 6, "random_state": 3, **options, "process_group": group})
    kmeans.fit(rows, sample_weight=weights)
    score = kmeans.score(rows, sample_weight=weights)
    return [kmeans.labels_, kmeans.cluster_centers_, kmeans.inertia_, kmeans.n_iter_, score, kmeans.predict(rows)]


def compare(answers: list[list[Any]], expected: list[Any], rtol: float) -> None:
    assert torch.equal(torch.cat([answer[0] for answer in answers]), expected[0])
    assert torch.equal(torch.cat([answer[5] for answer in answers]), expected[5])
    for answer in answers:
        assert torch.equal(answer[1], answers[0][1])
        torch.testing.assert_close(answer[1], expected[1], rtol=rtol, atol=rtol)
        assert answer[2] == answers[0][2] == pytest.approx(expected[2], rel=10 * rtol)
        assert answer[3] == expected[3]
        assert answer[4] == pytest.approx(expected[4], rel=10 * rtol)


@shards
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_labels_and_centers_are_those_of_one_process(
    pool: Pool, ranks: int | str, sizes: list[int], case: str, weighted: bool
) -> None:
    rows = blobs()
    weights = torch.randint(0, 4, (60,)).double() if weighted else None
    expected = fitted(None, rows, weights, CASES[case])
    of_ranks = None if weights is None else PerRank(weights.split(sizes))
    compare(pool.run(fitted, PerRank(rows.split(sizes)), of_ranks, CASES[case], ranks=ranks), expected, 1e-6)


def test_bfloat16_rows_are_counted_beyond_256(pool: Pool) -> None:
    rows = torch.cat([torch.full((700, 2), 2.0), torch.full((900, 2), -3.0)]).bfloat16()[torch.randperm(1600)]
    expected = fitted(None, rows, None, {"n_clusters": 2})
    compare(pool.run(fitted, PerRank(rows.split([1000, 600])), None, {"n_clusters": 2}, ranks=2), expected, 1e-6)


def test_weights_of_one_rank_alone(pool: Pool) -> None:
    rows, weights = blobs(), torch.ones(60, dtype=torch.float64)
    weights[40:] = 2
    expected = fitted(None, rows, weights, {})
    compare(pool.run(fitted, PerRank(rows.split(30)), PerRank(weights.split(30)), {}, ranks=2), expected, 1e-6)


def streamed(group: Any, batches: tuple[Tensor, ...]) -> list[Any]:
    kmeans = KMeans(4, random_state=1, process_group=group)
    for batch in batches:
        kmeans.partial_fit(batch)
    return [kmeans.labels_, kmeans.cluster_centers_, kmeans.inertia_, 0, 0.0, kmeans.predict(batches[0])]


def test_streams(pool: Pool) -> None:
    batches = blobs(90).split(30)
    shares = [(17, 13), (0, 30), (29, 1)]
    parts = [batch.split(sizes) for batch, sizes in zip(batches, shares, strict=True)]
    answers = pool.run(streamed, PerRank([part[rank] for part in parts] for rank in range(2)), ranks=2)
    compare(answers, streamed(None, batches), 1e-6)


def filled(group: Any, labels: Tensor, distances: Tensor, counts: Tensor) -> Tensor:
    return fill_empty_over_ranks(labels, distances, counts, group)


@shards
def test_empty_clusters_take_the_rows_that_they_do_in_one_process(
    pool: Pool, ranks: int | str, sizes: list[int]
) -> None:
    labels = torch.randint(2, 7, (60,))
    distances = torch.randint(1, 5, (60,)).float()  # many ties
    counts = labels.bincount(minlength=70)  # every row but the one that a cluster keeps is taken
    expected = fill_empty(labels, distances, counts)
    answers = pool.run(filled, PerRank(labels.split(sizes)), PerRank(distances.split(sizes)), counts, ranks=ranks)
    assert not torch.equal(expected, labels)
    assert torch.equal(torch.cat(answers), expected)


def drawn(group: Any, rows: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    before = torch.get_rng_state()
    centers = KMeans(6, init="random", max_iter=1, random_state=state, process_group=group).fit(rows).cluster_centers_
    return centers, (torch.get_rng_state() != before).any()


@pytest.mark.parametrize("kind", ["none", "numpy", "torch"])
def test_random_numbers_are_those_of_the_first_rank(pool: Pool, kind: str) -> None:
    rows = blobs().split(30)
    states: dict[str, Any] = {
        "none": [None, None],
        "numpy": [np.random.RandomState(rank) for rank in range(2)],
        "torch": [7, 8],
    }
    (first, moved), (second, _) = pool.run(drawn, PerRank(rows), PerRank(states[kind]), ranks=2)
    assert torch.equal(first, second)
    if kind == "torch":
        torch.testing.assert_close(first, drawn(None, torch.cat(rows), 7)[0], rtol=1e-6, atol=1e-6)
        assert not moved


def errors(group: Any, rows: Tensor, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        KMeans(**{"n_clusters": 3, **options, "process_group": group}).fit(rows)


@pytest.mark.parametrize(
    ("fault", "message", "options"),
    [
        ("nan", "features: expected finite numbers", {}),
        ("nan", "features: expected finite numbers", {"batch_size": 4}),
        ("few", "n_clusters: expected at most 2, the number of rows, got 3", {}),
        ("none", "features: expected at least 3 rows", {}),
        ("plain", "init: expected a name or centers, because process_group is given", {"init": "function"}),
    ],
)
def test_all_ranks_say_what_is_wrong_on_one(pool: Pool, fault: str, message: str, options: dict[str, Any]) -> None:
    rows = torch.randn({"few": 2, "none": 0}.get(fault, 8), 2)
    if fault == "nan":
        rows[-1, 0] = torch.nan
    if options.get("init"):
        options = {"init": max}
    sizes = [len(rows) // 2, len(rows) - len(rows) // 2]
    pool.run(errors, PerRank(rows.split(sizes)), message, options, ranks=2)
