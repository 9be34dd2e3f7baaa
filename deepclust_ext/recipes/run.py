"""A whole run of a recipe on labelled images: train, score, draw, and write down what happened."""

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset

import deepclust_ext
from deepclust_ext.evaluation import ClusterScores, Evaluation, evaluate
from deepclust_ext.inference import map_images
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.recipes.schema import Recipe
from deepclust_ext.training import Trainer
from deepclust_ext.training.files import FIGURE_NAME, RECORD_NAME, replacing, without_nan, write_text
from deepclust_ext.training.trainer import STAGES


def run_recipe(
    recipe: Recipe,
    data: Dataset[Any],  # of (image (C, H, W), class)
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    profiled: bool = False,
    baselines: Mapping[str, ClusterScores] | None = None,
) -> None:
    """Train a method, print its scores, and write run.json and, with matplotlib, overview.png.

    Args:
        recipe: All settings.
        data: Map-style, of an image and its class, which scores and figure alone read.
        out: Folder for checkpoint, history and results.
        seed: Of everything random.
        resume: Continue the run that ``out`` holds.
        overwrite: Replace the run that ``out`` holds.
        profiled: Print where the time of an epoch goes.
        baselines: Scores of other clusters of these images, for the table, by the name of what gave them.

    Raises:
        FileNotFoundError: If there is nothing to resume.
        FileExistsError: If ``out`` holds a run that is neither to be resumed nor to be overwritten.
        RuntimeError: If another run uses ``out``.
        FloatingPointError: If a loss or a weight is not finite.
        ImportError: If the recipe needs torchvision and there is none.
        ValueError: If the recipe does not fit the data, or the run to resume was another.
    """
    start = time.perf_counter()
    trainer = make_trainer(recipe, data, out, seed=seed)
    with trainer.folder as folder:  # no other run comes in before the results are written
        folder.check(resume=resume, overwrite=overwrite)
        untrained = _evaluate(trainer)
        training_start = time.perf_counter()
        if profiled:
            print(_profiled_fit(trainer, resume=resume, overwrite=overwrite))
        else:
            trainer.fit(resume=resume, overwrite=overwrite)
        training_seconds = time.perf_counter() - training_start
        trained = _evaluate(trainer)
        baselines = baselines or {}
        method = recipe.method.lower()
        named = {"k-means, untrained network": untrained.kmeans, f"{method}, {recipe.epochs} epochs": trained.clusters}
        _print_scores(
            {f"k-means on {name}": scores for name, scores in baselines.items()} | named,
            {"untrained": untrained, "trained": trained},
        )
        figure = _draw(trainer)
        seconds = time.perf_counter() - start
        evaluations = {"untrained": asdict(untrained), "trained": asdict(trained)}
        settings = {"method": method, "seed": seed, "epochs": recipe.epochs, "batch_size": recipe.batch_size}
        record = {
            "config": settings | {"resume": resume, "recipe": asdict(recipe)},
            "versions": _versions(),
            "threads": torch.get_num_threads(),
            "metrics": {name: asdict(scores) for name, scores in baselines.items()} | evaluations,
            "seconds": {"training": training_seconds, "total": seconds},
            "history": trainer.history,
        }
        path = folder.path / RECORD_NAME
        write_text(path, json.dumps(without_nan(record), indent=2, allow_nan=False) + "\n")
    print(f"{seconds:.0f} s, of which training {training_seconds:.0f} s; written: {path}{figure}")


def _evaluate(trainer: Trainer) -> Evaluation:
    return evaluate(
        trainer.method,
        trainer.data["images"],
        n_init=trainer.config.kmeans.final_n_init,
        seed=trainer.config.seed,
        test_view=trainer.test_view,
        batch_size=trainer.config.batch_size,
    )


def _profiled_fit(trainer: Trainer, **options: Any) -> str:
    """Train under torch's profiler and return a table of the labelled stages of an epoch."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        history = trainer.fit(**options)
    total = sum(record["seconds"] for record in history)
    spent = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages() if event.key in STAGES}
    spent["rest"] = total - sum(spent.values())
    rows = [f"{name:<12}{1e3 * spent[name] / len(history):8.0f} ms {spent[name] / total:6.0%}" for name in spent]
    return "\n".join([f"an epoch, mean of {len(history)}", *rows])


def _print_scores(clusters: Mapping[str, ClusterScores], evaluations: Mapping[str, Evaluation]) -> None:
    width = max(map(len, clusters))
    print(f"{'':{width}}    ACC    NMI    ARI  smallest and largest cluster")
    for name, scores in clusters.items():
        numbers = " ".join(f"{score:6.4f}" for score in (scores.acc, scores.nmi, scores.ari))
        print(f"{name:{width}} {numbers}  {min(scores.sizes)}, {max(scores.sizes)}")
    accuracies = ", ".join(f"{name} {evaluation.knn_accuracy:.4f}" for name, evaluation in evaluations.items())
    print(f"vote of 20 nearest neighbors: {accuracies}")


def _draw(trainer: Trainer) -> str:
    """Draw the figure and return how to mention it: its path, or why there is none."""
    from deepclust_ext.evaluation.plots import save_overview

    path = trainer.folder.path / FIGURE_NAME
    labels = _labels(trainer.data["images"])
    rows, clusters = trainer.embed().cpu().numpy(), trainer.cluster().numpy()
    try:
        with replacing(path) as unfinished:
            save_overview(unfinished, rows, labels.numpy(), clusters, trainer.history, trainer.method.axes)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return "; no figure, because matplotlib is missing: pip install 'deepclust_ext[plot]'"
    return f" and {path}"


def _labels(data: Dataset[Any]) -> Tensor:
    (labels,) = map_images(lambda images: (), data, with_labels=True)
    return labels


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {"deepclust_ext": deepclust_ext.__version__, "python": platform.python_version(), **packages}
