"""All scores of a run against true labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from deepclust_ext.cluster import KMeans
from deepclust_ext.data.words import item_of
from deepclust_ext.distributed import rank_of
from deepclust_ext.evaluation import knn_accuracy, score_clusters
from deepclust_ext.ops._checks import check_integer, counted
from deepclust_ext.runs.folder import Run
from deepclust_ext.runs.source import labels_of

NEIGHBORS, TEMPERATURE = 20, 0.07


_UNLABELLED = "labels: expected 'folders', 'own' or a CSV file with the columns path and label, got none"


def check_labels(run: Run, data: Sequence[str], labels: str | None) -> None:
    """Require labels of a run's own images, or of others, as far as this is known before they are opened.

    Raises:
        ValueError: If there are none.
    """
    if labels is None and (data or not run.source.is_labelled):
        raise ValueError(_UNLABELLED)


def score_run(
    run: Run, images: Dataset[Any], *, seed: int = 0, num_workers: int = 0, gather_distributed: bool = False
) -> dict[str, Any]:
    """Return the scores of a run's clusters and rows on labeled images, JSON-serializable.

    These are ``acc``, ``nmi``, ``ari``, ``silhouette`` and ``sizes`` of the run's clusters; ``knn_accuracy``, the share
    of images whose class wins the weighted vote of 20 neighbors; ``kmeans``, the scores of k-means on these images'
    rows; and the numbers of ``images``, ``classes`` and ``clusters``. Ranks share the images, and only rank 0 returns
    scores.

    Raises:
        TypeError: If the seed is no integer.
        ValueError: If there are no labels, or fewer than two images, or the seed has more than 64 bits.
    """
    seed = check_integer(seed, "seed", 0, 2**64 - 1)
    labels, classes = labels_of(images)
    if labels is None:
        raise ValueError(_UNLABELLED)
    if len(labels) < 2:
        raise ValueError(f"data: expected at least 2 {item_of(images)}s, got {len(labels)}")
    rows, shares = run.trained.infer(
        images, batch_size=run.recipe.batch_size, num_workers=num_workers, gather_distributed=gather_distributed
    )
    if gather_distributed and rank_of():
        return {}
    clusters = run.recipe.data.num_clusters
    scores: dict[str, Any] = asdict(score_clusters(labels, shares.argmax(1), rows, clusters))
    scores["knn_accuracy"] = knn_accuracy(rows, labels, k=NEIGHBORS, temperature=TEMPERATURE)
    if len(labels) >= clusters:
        kmeans = KMeans(clusters, metric="cosine", n_init=run.recipe.kmeans.final_n_init, random_state=seed)
        scores["kmeans"] = asdict(score_clusters(labels, kmeans.fit_predict(rows), rows, clusters))
    return {**scores, "images": len(labels), "classes": len(classes or labels.unique()), "clusters": clusters}


def format_scores(scores: Mapping[str, Any], item: str) -> str:
    """Return scores as text, in which an image is called ``item``."""
    counts = (("images", item), ("classes", "class"), ("clusters", "cluster"))
    lines = [", ".join(counted(scores[name], noun) for name, noun in counts)]
    named = {"clusters of the run": scores} | ({"k-means on its rows": scores["kmeans"]} if "kmeans" in scores else {})
    lines.append(f"{'':19}    ACC    NMI    ARI  silhouette  smallest and largest cluster")
    for name, found in named.items():
        silhouette = "         -" if found["silhouette"] is None else f"{found['silhouette']:10.4f}"
        numbers = " ".join(f"{found[key]:6.4f}" for key in ("acc", "nmi", "ari"))
        lines.append(f"{name:19} {numbers}  {silhouette}  {min(found['sizes'])}, {max(found['sizes'])}")
    lines.append(f"vote of {NEIGHBORS} nearest neighbors: {scores['knn_accuracy']:.4f}")
    return "\n".join(lines)
