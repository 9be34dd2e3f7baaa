"""The baseline for heads on frozen features: spherical k-means on the same rows."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from deepclust_ext.cluster import KMeans
from deepclust_ext.data import Features
from deepclust_ext.data.kept import free_memory
from deepclust_ext.evaluation import normalized_mutual_info, score_clusters
from deepclust_ext.recipes import Recipe

#: Rows at a time where the rows in float32 and their unit rows would take more than half of the free memory.
BATCH_ROWS = 65_536


def kmeans_baseline(
    features: Features,
    recipe: Recipe,
    clusters: Tensor,  # (N,) of the run
    *,
    seed: int,
) -> dict[str, Any]:
    """Return results of spherical k-means on features, the best of the recipe's starts for final clusters.

    These are ``starts``; ``agreement``, the normalized mutual information with the run's clusters; and, if there are
    labels, ``scores`` like those of the run.
    """
    rows = features.stored()
    settings = recipe.kmeans
    kmeans = KMeans(
        recipe.data.num_clusters,
        metric="cosine",
        n_init=settings.final_n_init,
        max_iter=settings.max_iter,
        tol=settings.tol,
        batch_size=None if 8 * rows.numel() <= free_memory() / 2 else BATCH_ROWS,
        random_state=seed,
    )
    found = kmeans.fit_predict(rows)
    result: dict[str, Any] = {
        "starts": settings.final_n_init,
        "agreement": normalized_mutual_info(clusters, found),
    }
    if features.labels is not None:
        result["scores"] = asdict(score_clusters(features.labels, found, rows.float(), recipe.data.num_clusters))
    return result


def in_words(baseline: Mapping[str, Any]) -> str:
    """Return a line of text for the user."""
    starts = baseline["starts"]
    text = f"spherical k-means on the features, {'one start' if starts == 1 else f'best of {starts} starts'}: "
    if "scores" in baseline:
        text += ", ".join(f"{name.upper()} {baseline['scores'][name]:.4f}" for name in ("acc", "nmi", "ari")) + "; "
    return text + f"NMI {baseline['agreement']:.4f} with the clusters of the run"
