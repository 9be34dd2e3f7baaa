"""A default recipe for frozen features: heads on rows and their neighbors, by the number of rows and clusters."""

import math
from collections.abc import Callable
from typing import Any

from deepclust_ext.backbones.rows import ROWS_NETWORK
from deepclust_ext.data import Features
from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.ops._checks import check_integer, check_type, counted
from deepclust_ext.recipes.files import method_class
from deepclust_ext.recipes.schema import Backbone, Data, Recipe
from deepclust_ext.training import KMeansSettings, LearningRate, Phase
from deepclust_ext.training.phases import scaled

#: Rows up to which all pairs are compared for neighbors: a minute or two on two cores.
EXACT_ROWS = 200_000
#: Of the authors of TEMI. Fewer where clusters are small: half of the rows of a cluster of average size.
NEIGHBORS, FEWEST_NEIGHBORS = 50, 5
LARGEST_BATCH = 1024
#: Steps of a run, and how often a row is seen at least and at most.
STEPS, EPOCHS = 2000, (20, 200)
#: Of TURTLE, whose loss has the entropy of a mean: rows of a batch for each cluster, and at most its authors' batch.
TURTLE_ROWS, TURTLE_LARGEST = 8, 10_000
#: Of TURTLE: more sharpen its classifiers until they separate any clusters.
TURTLE_STEPS = 500
#: Starts of k-means, up to so many products of rows, clusters and columns.
STARTS = ((1e10, 10), (1e11, 3), (math.inf, 1))


def features_recipe(features: Features, num_clusters: int, *, method: str | None = None) -> tuple[Recipe, list[str]]:
    """Return a recipe chosen by the number of rows and clusters, and the reasons, a line for each choice.

    The last two lines are for batch and epochs.

    Args:
        features: The features to cluster; values and labels are not read.
        num_clusters: K.
        method: "NeighborHead", "HaDis", "CLC" or "TURTLE"; None for NeighborHead.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there are fewer than two rows, fewer rows than clusters, or the method is none for features.
    """
    check_type(features, "features", Features, "features of deepclust_ext.data.load_features")
    count, columns = len(features), features.channels
    if count < 2:
        raise ValueError(f"features: expected at least 2 rows, got {count}")
    num_clusters = check_integer(num_clusters, "num_clusters", 1)
    if num_clusters > count:
        raise ValueError(f"num_clusters: expected 1 to {count}, the number of rows, got {num_clusters}")
    method = "NeighborHead" if method is None else method
    num_views = method_class(method, "features_recipe").num_views
    if method not in _PHASES:
        raise ValueError(f"method: expected one of {', '.join(_PHASES)} for features, got {method!r}")
    neighbors = max(min(NEIGHBORS, count // (2 * num_clusters)), FEWEST_NEIGHBORS)
    cells = 0 if count <= EXACT_ROWS else math.isqrt(count)
    batch_size = max(min(LARGEST_BATCH, 1 << int(math.log2(max(count // 8, 2)))), 2)
    steps = STEPS
    if method == "TURTLE":
        steps = TURTLE_STEPS
        batch_size = max(batch_size, min(TURTLE_ROWS * num_clusters, TURTLE_LARGEST, count))
    epochs = min(max(steps * batch_size // count, EPOCHS[0]), EPOCHS[1])
    starts = next(starts for most, starts in STARTS if count * num_clusters * columns <= most)
    recipe = Recipe(
        method=method,
        data=Data("features", "all", count, num_clusters, 1, columns),
        backbone=Backbone(_BACKBONES.get(method, "flatten")),
        views=({"name": "identity"}, {"name": "neighbor", "num_neighbors": neighbors, "cells": cells})[:num_views],
        batch_size=batch_size,
        phases=_PHASES[method](epochs),
        model=_model(method, count // batch_size, batch_size),
        optimizer=OptimizerSettings("adam", lr=1e-3 if method in _BACKBONES else 1e-2),
        learning_rate=LearningRate("warmup_cosine", warmup=min(2, epochs / 10)),
        kmeans=KMeansSettings(n_init=min(starts, 3), final_n_init=starts),
        name=f"{method.lower()}-features",
    )
    searched = "of all pairs" if not cells else f"within {cells} cells, since comparing all pairs would take long"
    reasons = [f"{count:,} rows of {counted(columns, 'feature')}, {features.kind}"]
    if num_views > 1:
        reasons.append(f"{neighbors} neighbors of each row, found {searched}")
    return recipe, [*reasons, f"batches of {batch_size}", f"{epochs} epochs"]


def _model(method: str, steps: int, batch_size: int) -> dict[str, Any]:
    """Return the arguments of a method by the number of steps of an epoch: averages must not lag behind by epochs."""
    widths = {"hidden_dim": 128, "embedding_dim": 32}
    if method == "HaDis":
        return {**widths, "prototype_weight": 1.0, "momentum": round(min(max(1 - 0.3 / steps, 0.9), 0.996), 4)}
    if method == "CLC":
        momentum = round(min(max(1 - 3 / steps, 0.5), 0.999), 4)
        return {**widths, "queue_size": 8 * batch_size, "momentum": momentum, "epsilon": 0.9}
    if method == "TURTLE":
        return {"gamma": 1.2, "inner_steps": 10, "temperature": 0.2}
    # With beta below 1 large clusters are split; heads of one prototype for each cluster keep what k-means began.
    return {"num_heads": 2, "hidden_dim": 0, "momentum": 0.9, "beta": 1.0, "temperature": 0.05}


def _from_labels(epochs: int, share: int) -> tuple[Phase, ...]:
    """Return a phase that starts clusters with those of k-means, and one that is ``share`` times as long."""
    return scaled((Phase("labels", 1, {"images": "labels"}, "once"), Phase("main", share, {"images": "all"})), epochs)


_BACKBONES = dict.fromkeys(("HaDis", "CLC"), ROWS_NETWORK)
_PHASES: dict[str, Callable[[int], tuple[Phase, ...]]] = {
    "NeighborHead": lambda epochs: _from_labels(epochs, 9),
    "HaDis": lambda epochs: (Phase("main", epochs, {"images": "all"}, pseudo_labels=5),),
    "CLC": lambda epochs: _from_labels(epochs, 9),
    "TURTLE": lambda epochs: _from_labels(epochs, 9),
}
