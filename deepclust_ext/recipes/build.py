"""From a recipe to what trains."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from deepclust_ext.backbones import load_backbone
from deepclust_ext.data import make_view
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.recipes.files import method_class
from deepclust_ext.recipes.schema import Recipe
from deepclust_ext.training import TrainConfig, Trainer, seed_everything


def make_method(recipe: Recipe) -> ClusteringMethod:
    """Return the recipe's method with new weights, from torch's global generator, on the CPU."""
    data = recipe.data
    backbone, feature_dim = load_backbone(
        recipe.backbone.name, data.size, channels=data.channels, stem=recipe.backbone.stem
    )
    make: Any = method_class(recipe.method)
    method: ClusteringMethod = make(backbone, feature_dim, data.num_clusters, **recipe.model)
    return method


def make_views(recipe: Recipe) -> list[nn.Module]:
    """Return the views that the method learns from, which work on whole batches."""
    return [make_view(**settings) for settings in recipe.views]


def make_test_view(recipe: Recipe) -> nn.Module | None:
    """Return the view for pseudo-labels, clusters and scores; None where images are taken as they are."""
    return None if recipe.test_view is None else make_view(**recipe.test_view)


def make_config(recipe: Recipe, *, seed: int = 0, num_workers: int = 0) -> TrainConfig:
    """Return the trainer's settings."""
    return TrainConfig(
        phases=recipe.phases,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        optimizer=recipe.optimizer,
        kmeans=recipe.kmeans,
        seed=seed,
        num_workers=num_workers,
    )


def make_trainer(
    recipe: Recipe,
    data: Dataset[Any] | Mapping[str, Dataset[Any]],
    out: Path,
    *,
    seed: int = 0,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Trainer:
    """Return the trainer of a recipe's run.

    Args:
        recipe: All settings.
        data: The images, or several data sets by name, see :class:`deepclust_ext.training.Trainer`.
        out: Folder for checkpoint and history.
        seed: Of everything random, the first weights too.
        num_workers: Processes that load images.
        device: Where to train.

    Raises:
        ImportError: If the backbone needs torchvision and there is none.
        ValueError: If the recipe does not fit the method or the data.
    """
    seed_everything(seed)
    method = make_method(recipe).to(device)
    config = make_config(recipe, seed=seed, num_workers=num_workers)
    views, test_view = make_views(recipe), make_test_view(recipe)
    return Trainer(method, data, views, config, out, test_view=test_view, recipe=asdict(recipe))
