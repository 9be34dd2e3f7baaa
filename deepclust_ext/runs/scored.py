"""A run on labeled images, compared with baselines: a table of scores, and a figure."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from deepclust_ext.evaluation import ClusterScores, Evaluation, evaluate
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.ops._checks import counted
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import make_test_view, make_trainer
from deepclust_ext.runs.folder import Run
from deepclust_ext.runs.probe import Probe
from deepclust_ext.runs.source import Source, labels_of
from deepclust_ext.runs.train import Options, train, write_record
from deepclust_ext.training.files import FIGURE_NAME, replacing


def train_scored(
    recipe: Recipe,
    images: Dataset[Any],
    out: str | os.PathLike[str],
    options: Options,
    *,
    source: Source | None = None,
    baselines: Mapping[str, ClusterScores] | None = None,
) -> Run:
    """Train as :func:`deepclust_ext.runs.train` does, print scores before and after, and with matplotlib draw them.

    Args:
        recipe: All settings.
        images: Map-style, of an image and its class.
        out: The folder.
        options: As of ``train``.
        source: As of ``train``.
        baselines: Scores of other clusterings of these images, for the table, by the name of each.

    Raises:
        FileNotFoundError: As ``train``, like all other errors.
    """
    untrained = _evaluate(make_trainer(recipe, images, out, seed=options.seed).method, images, recipe, options)
    run = train(recipe, images, out, options, source=source)
    trained = _evaluate(run.method, images, recipe, options)
    baselines = dict(baselines or {})
    method = recipe.method.lower()
    ours = f"{method}, {counted(recipe.epochs, 'epoch')}"
    named = {"k-means, untrained network": untrained.kmeans, ours: trained.clusters}
    _print_scores(
        {f"k-means on {name}": scores for name, scores in baselines.items()} | named,
        {"untrained": untrained, "trained": trained},
    )
    figure = _draw(run, images)
    metrics = {name: asdict(scores) for name, scores in baselines.items()}
    metrics |= {"untrained": asdict(untrained), "trained": asdict(trained)}
    write_record(run.path, {**run.record, "metrics": metrics})
    seconds = run.record["seconds"]
    print(f"{seconds['total']:.0f} s, of which training {seconds['training']:.0f} s{figure}")
    return run


def _evaluate(method: ClusteringMethod, images: Dataset[Any], recipe: Recipe, options: Options) -> Evaluation:
    return evaluate(
        method,
        images,
        n_init=recipe.kmeans.final_n_init,
        seed=options.seed,
        test_view=make_test_view(recipe),
        batch_size=recipe.batch_size,
        num_workers=options.num_workers,
    )


def _print_scores(clusters: Mapping[str, ClusterScores], evaluations: Mapping[str, Evaluation]) -> None:
    width = max(map(len, clusters))
    print(f"{'':{width}}    ACC    NMI    ARI  smallest and largest cluster")
    for name, scores in clusters.items():
        numbers = " ".join(f"{score:6.4f}" for score in (scores.acc, scores.nmi, scores.ari))
        print(f"{name:{width}} {numbers}  {min(scores.sizes)}, {max(scores.sizes)}")
    accuracies = ", ".join(f"{name} {evaluation.knn_accuracy:.4f}" for name, evaluation in evaluations.items())
    print(f"vote of 20 nearest neighbors: {accuracies}")


def _draw(run: Run, images: Dataset[Any]) -> str:
    """Draw the figure and return a text about it: its path, or why there is none."""
    from deepclust_ext.evaluation.plots import save_overview

    path = run.path / FIGURE_NAME
    rows, shares = run.trained.infer(images, batch_size=run.recipe.batch_size)
    labels, clusters = labels_of(images)[0].numpy(), shares.argmax(1).numpy()
    try:
        with replacing(path) as unfinished:
            save_overview(unfinished, rows.numpy(), labels, clusters, run.history, axes_of(run.method))
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return "; no figure, because matplotlib is missing: pip install 'deepclust_ext[plot]'"
    return f"; written: {path}"


def axes_of(method: ClusteringMethod) -> dict[str, tuple[str, ...]]:
    """Return which entries of a run's history share an axis: those of its method and of the probe."""
    return {**method.axes, **Probe.axes}
