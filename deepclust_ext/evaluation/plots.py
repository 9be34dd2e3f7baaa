"""The figure of a run. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import TSNE

from deepclust_ext.evaluation.metrics import contingency

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_overview(
    path: Path,
    rows: NDArray[np.float32],  # (N, D)
    labels_true: NDArray[np.int64],  # (N,)
    labels_pred: NDArray[np.int64],  # (N,)
    history: list[dict[str, float]],
) -> None:
    """Write a PNG: a t-SNE map by cluster and by class, the matched confusion matrix, and the loss curves."""
    from matplotlib.figure import Figure  # optional, so not needed to import this module

    figure = Figure(figsize=(14, 12), layout="constrained")
    maps, below = figure.subplots(2, 2)
    points = TSNE(init="pca", random_state=0).fit_transform(rows)
    # Clusters get the number of the class they match, so that equal colours in both maps mean agreement.
    table, matched = match_clusters(labels_true, labels_pred)
    _draw_map(maps[0], points, matched, "clusters found")
    _draw_map(maps[1], points, np.unique(labels_true, return_inverse=True)[1], "classes, not used for training")
    _draw_confusion(below[0], table)
    _draw_curves(below[1], history)
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


def _draw_curves(axes: Axes, history: list[dict[str, float]]) -> None:
    epochs = [record["epoch"] for record in history]
    names: dict[str, Any] = dict.fromkeys(name for record in history for name in record)
    for name in names:
        if name not in ("epoch", "lr", "seconds", "effective_rank", "effective_clusters"):
            axes.plot(epochs, [record.get(name, np.nan) for record in history], label=name)
    axes.set(title="mean of an epoch", xlabel="epoch")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
