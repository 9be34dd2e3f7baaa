"""A recipe for rows of features instead of images: a perceptron, and views made by noise."""

from typing import Any

from deepclust_ext.backbones.rows import ROWS_NETWORK
from deepclust_ext.methods import OptimizerSettings
from deepclust_ext.recipes.files import method_class
from deepclust_ext.recipes.schema import Backbone, Data, Recipe
from deepclust_ext.training import KMeansSettings, LearningRate, Phase

#: The share of a feature's standard deviation that views differ by.
NOISE = 0.1
MODELS: dict[str, dict[str, Any]] = {
    "HaDis": {"hidden_dim": 128, "embedding_dim": 32, "momentum": 0.95, "prototype_weight": 1.0},
    "SACC": {"hidden_dim": 128, "embedding_dim": 32},
    "CLC": {"hidden_dim": 128, "embedding_dim": 32, "queue_size": 256, "momentum": 0.9, "epsilon": 0.9},
}


def rows_recipe(count: int, columns: int, num_clusters: int, *, method: str) -> Recipe:
    """Return a recipe for standardized rows, as images (``columns``, 1, 1).

    It has not been tuned: if rows are embeddings of a network already, compare it with k-means on them.

    Args:
        count: N.
        columns: D.
        num_clusters: K.
        method: "HaDis", "SACC" or "CLC".

    Raises:
        ValueError: If the method is unknown.
    """
    kind = method_class(method, "rows")
    if method not in MODELS:
        raise ValueError(f"method: expected one of {', '.join(MODELS)}, got {method!r}")
    is_labelled = kind.terms[0] in kind.labelled_terms
    return Recipe(
        method=method,
        data=Data("rows", "all", count, num_clusters, 1, columns),
        backbone=Backbone(ROWS_NETWORK),
        views=({"name": "noise", "std": NOISE},) * kind.num_views,
        batch_size=max(min(64, count), 2),
        phases=(Phase("main", 20, pseudo_labels=1 if is_labelled else "never"),),
        model=MODELS[method],
        optimizer=OptimizerSettings("adam", lr=1e-3),
        learning_rate=LearningRate("warmup_cosine", warmup=2),
        kmeans=KMeansSettings(n_init=3, final_n_init=10),
        name=f"{method.lower()}-rows",
    )
