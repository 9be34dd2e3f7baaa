"""The figures of a run and of a sweep. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import TSNE

from deepclust_ext.evaluation.metrics import contingency
from deepclust_ext.evaluation.sweep import SweepScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_overview(
    path: Path,
    rows: NDArray[np.float32],  # (N, D)
    labels_true: NDArray[np.int64],  # (N,)
    labels_pred: NDArray[np.int64],  # (N,)
    history: Sequence[Mapping[str, float]],
    axes: Mapping[str, tuple[str, ...]],
) -> None:
    """Write a PNG: a t-SNE map by cluster and by class, the matched confusion matrix, and the curves of the run.

    Args:
        path: Path of the file.
        rows: The method's rows.
        labels_true: Classes.
        labels_pred: Clusters.
        history: One record of mean terms per epoch.
        axes: Which terms share an axis, by what it shows, see :class:`deepclust_ext.methods.ClusteringMethod`.
    """
    from matplotlib.figure import Figure  # optional, so not needed to import this module

    figure = Figure(figsize=(14, 18), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 1)).flatten()
    maps, middle = above.subplots(2, 2)
    points = TSNE(init="pca", random_state=0).fit_transform(rows)
    # Clusters get the number of the class they match, so that equal colors in both maps mean agreement.
    table, matched = match_clusters(labels_true, labels_pred)
    _draw_map(maps[0], points, matched, "clusters found")
    _draw_map(maps[1], points, np.unique(labels_true, return_inverse=True)[1], "classes, not used for training")
    _draw_confusion(middle[0], table)
    first, *others = axes
    draw_curves(middle[1], history, first, axes[first])
    if others:
        columns = min(len(others), 3)
        panels = below.subplots(-(-len(others) // columns), columns, squeeze=False).flatten()
        for panel, name in zip(panels, others, strict=False):
            draw_curves(panel, history, name, axes[name])
        for panel in panels[len(others) :]:
            panel.set_axis_off()
    figure.savefig(path, dpi=80)


def save_sweep(path: Path, results: Sequence[SweepScores], *, trained: int | None = None) -> None:
    """Write a PNG: silhouette, stability, sizes of clusters and inertia against K.

    Args:
        path: Path of the file.
        results: Scores for each K.
        trained: The K that the rows were learned with, which is marked.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    counts = [scores.clusters for scores in results]
    panels = {
        "silhouette, cosine": ("silhouette",),
        "stability, mean adjusted Rand index": ("stability",),
        "sizes of clusters": ("largest", "smallest"),
        "inertia": ("inertia",),
    }
    for axes, (title, names) in zip(figure.subplots(2, 2).flatten(), panels.items(), strict=True):
        for name in names:
            values = [getattr(scores, name) for scores in results]
            axes.plot(counts, [np.nan if value is None else value for value in values], marker=".", label=name)
        if len(names) > 1:
            axes.set_ylim(bottom=0)
            axes.legend()
        if trained is not None and min(counts) <= trained <= max(counts):
            axes.axvline(trained, color="gray", linestyle=":")
        axes.set(title=title, xlabel="clusters" if trained is None else f"clusters; trained with {trained}")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def match_clusters(
    labels_true: NDArray[np.int64],  # (N,)
    labels_pred: NDArray[np.int64],  # (N,)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the counts (classes, clusters) and the labels (N,), clusters numbered like the classes they match.

    Clusters without a class come after the last class.
    """
    table = contingency(labels_true, labels_pred)
    classes, clusters = linear_sum_assignment(table, maximize=True)
    number = np.full(table.shape[1], -1)
    number[clusters] = classes
    surplus = number < 0
    number[surplus] = len(table) + np.arange(surplus.sum())
    return table[:, np.argsort(number)], number[np.unique(labels_pred, return_inverse=True)[1]]


def _draw_map(axes: Axes, points: NDArray[np.float32], groups: NDArray[np.int64], title: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], c=groups, cmap="tab10" if groups.max() < 10 else "tab20", s=8)
    for group in np.unique(groups):
        axes.annotate(str(group), np.median(points[groups == group], axis=0), weight="bold", size=14)
    axes.set(title=title, xticks=[], yticks=[])


def _draw_confusion(axes: Axes, table: NDArray[np.int64]) -> None:
    axes.imshow(table, cmap="Blues")
    for (row, column), count in np.ndenumerate(table):
        if count:
            color = "white" if count > table.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, size=8)
    axes.set(title="confusion after Hungarian matching", xlabel="cluster", ylabel="class")
    # A number for every class and cluster, as far as they can be read.
    for axis, count in ((axes.xaxis, table.shape[1]), (axes.yaxis, table.shape[0])):
        axis.set_ticks(range(0, count, -(-count // 40)))


def draw_curves(axes: Axes, history: Sequence[Mapping[str, float]], title: str, names: Sequence[str]) -> None:
    """Draw the epochs' means of those names that the history has; an epoch without a term leaves a gap."""
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    for name in names:
        if any(name in record for record in history):
            axes.plot(epochs, [record.get(name, np.nan) for record in history], label=name)
    axes.set(title=f"{title}, mean of an epoch", xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
