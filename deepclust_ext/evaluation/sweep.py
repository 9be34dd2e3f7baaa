"""Clusterings of the same rows for a range of K: how separate and how stable their clusters are."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO

import torch
from torch import Tensor
from tqdm import tqdm

from deepclust_ext.cluster import KMeans
from deepclust_ext.cluster.steps import seed_centers
from deepclust_ext.evaluation.metrics import adjusted_rand
from deepclust_ext.evaluation.scores import cosine_silhouette
from deepclust_ext.ops._checks import check_integer
from deepclust_ext.reference.normalize import l2_normalize

#: Of all rows, those that a clustering for the stability sees, and at most how many.
SHARE, MOST_ROWS = 0.8, 20_000
#: Starts of k-means on each part; one alone often misses the best clustering of clusters that are there.
STARTS = 3


@dataclass(frozen=True)
class SweepScores:
    """Scores of spherical k-means on rows for one K.

    Attributes:
        clusters: K.
        silhouette: Mean silhouette by cosine distance, between -1 and 1; None for one cluster, or one for each row.
        stability: Mean adjusted Rand index between clusterings of random parts of the rows: 1 if all are equal, 0 for
            chance; None for one seed.
        smallest: Number of rows in the smallest cluster; 0 with fewer distinct rows than clusters.
        largest: Number of rows in the largest cluster.
        inertia: Sum of the cosine distances of all rows to their centers; it falls with K for any rows.
    """

    clusters: int
    silhouette: float | None
    stability: float | None
    smallest: int
    largest: int
    inertia: float


def sweep(
    rows: Tensor,  # (N, D)
    counts: Sequence[int],
    *,
    seeds: int = 5,
    seed: int = 0,
) -> list[SweepScores]:
    """Cluster rows by spherical k-means for several numbers of clusters, and score each without labels.

    For every seed a random part of the rows, 80 percent but at most 20,000, is clustered by the best of three starts.
    Then all rows are assigned to the nearest of its centers. The stability of K is the mean adjusted Rand index over
    all pairs of these clusterings: real clusters are found again with other data and other starts. The first centers of
    k-means++ are drawn once for each start, and each K takes the first K of them. The best clustering is continued with
    all rows, and gives the other scores.

    Args:
        rows: Floating; only their directions count.
        counts: The numbers of clusters K, each from 1 to N.
        seeds: Number of random parts of the rows.
        seed: Seed of everything random; the same seed gives the same scores.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is out of range, or a row is not finite.

    Source: Ben-Hur, Elisseeff and Guyon, "A stability based method for discovering structure in clustered data", 2002;
    von Luxburg, "Clustering stability: an overview", 2010, which says when to believe it.
    """
    if rows.dim() != 2 or not len(rows):
        raise ValueError(f"rows: expected shape (N, D) with at least one row, got {tuple(rows.shape)}")
    check_counts(counts, len(rows))
    check_integer(seeds, "seeds", 1)
    seed = check_integer(seed, "seed", 0, 2**64 - seeds)  # each part has the next seed
    if not rows.isfinite().all():
        raise ValueError("rows: expected finite numbers, got NaN or infinity")
    unit = l2_normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
    size = max(min(round(SHARE * len(rows)), MOST_ROWS), max(counts))
    parts = []
    for number in range(seeds):
        generator = torch.Generator("cpu").manual_seed(seed + number)
        some = torch.randperm(len(rows), generator=generator, device="cpu")[:size].to(rows.device)
        part = unit[some]
        parts.append((part, [seed_centers(part, max(counts), "cosine", generator) for _ in range(STARTS)]))
    return [_scores(unit, parts, count) for count in tqdm(counts, desc="clustering", leave=False, disable=None)]


def check_counts(counts: Sequence[int], num_rows: int) -> None:
    """Require numbers of clusters from 1 to the number of rows.

    Raises:
        TypeError: If one is no integer.
        ValueError: If there is none, or one is out of range.
    """
    if not len(counts):
        raise ValueError("clusters: expected at least one number, got none")
    for count in counts:
        check_integer(count, "clusters", 1)
    if max(counts) > num_rows:
        raise ValueError(f"clusters: expected at most {num_rows}, as many as there are rows, got {max(counts)}")


def format_sweep(results: Sequence[SweepScores]) -> str:
    """Return the scores of each K as a table to print."""
    lines = ["clusters  silhouette  stability  smallest  largest    inertia"]
    decimals = 1 if any(scores.inertia >= 10 for scores in results) else 4
    for scores in results:
        silhouette, stability = (
            "-" if value is None else f"{value:.4f}" for value in (scores.silhouette, scores.stability)
        )
        numbers = f"{scores.smallest:9} {scores.largest:8} {scores.inertia:10.{decimals}f}"
        lines.append(f"{scores.clusters:8}  {silhouette:>10}  {stability:>9} {numbers}")
    for name in ("silhouette", "stability"):
        # One cluster is as stable as can be, and says nothing.
        known = [scores for scores in results if scores.clusters > 1 and getattr(scores, name) is not None]
        if known:
            best = max(known, key=lambda scores: float(getattr(scores, name)))
            lines.append(f"highest {name}: {best.clusters} clusters")
    return "\n".join(lines)


def csv_of(results: Sequence[SweepScores]) -> str:
    """Return the scores of each K as CSV, with an empty field for what is unknown."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(SweepScores)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(scores) for scores in results)
    return text.getvalue()


def _scores(
    unit: Tensor,  # (N, D)
    parts: Sequence[tuple[Tensor, list[Tensor]]],  # of rows (M, D), and first centers (max K, D) for each start
    count: int,
) -> SweepScores:
    fits = [
        min((_fit(part, first[:count]) for first in starts), key=lambda kmeans: kmeans.inertia_)
        for part, starts in parts
    ]
    found = [kmeans.predict(unit) for kmeans in fits]
    agreements = [adjusted_rand(one, other) for one, other in itertools.combinations(found, 2)]
    best = max(fits, key=lambda kmeans: kmeans.score(unit))
    final = _fit(unit, best.cluster_centers_)
    sizes = final.labels_.bincount(minlength=count)
    return SweepScores(
        clusters=count,
        silhouette=cosine_silhouette(unit, final.labels_),
        stability=sum(agreements) / len(agreements) if agreements else None,
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        inertia=final.inertia_,
    )


def _fit(
    rows: Tensor,  # (N, D)
    first: Tensor,  # (K, D)
) -> KMeans:
    return KMeans(len(first), metric="cosine", init=first).fit(rows)
