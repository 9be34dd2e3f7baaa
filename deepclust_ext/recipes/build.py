"""Makes method, views and trainer from a recipe."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from deepclust_ext.backbones import load_backbone
from deepclust_ext.backbones.rows import LARGEST, ROWS_NETWORK
from deepclust_ext.data import Features, NeighborView, make_view
from deepclust_ext.data.views import seen_by, takes_places
from deepclust_ext.data.words import item_of
from deepclust_ext.inference import IndexedImages
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.ops._checks import counted
from deepclust_ext.recipes.checks import in_place
from deepclust_ext.recipes.files import method_class
from deepclust_ext.recipes.schema import Recipe
from deepclust_ext.training import TrainConfig, Trainer, seed_everything
from deepclust_ext.training.phases import MAIN

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group


def make_method(recipe: Recipe, **ranks: Any) -> ClusteringMethod:
    """Return the recipe's method on the CPU, with new weights drawn by torch's global generator.

    Args:
        recipe: All settings.
        **ranks: The method's ``gather_distributed`` and ``process_group``.
    """
    data = recipe.data
    backbone, feature_dim = load_backbone(
        recipe.backbone.name, data.size, channels=data.channels, stem=recipe.backbone.stem
    )
    make: Any = method_class(recipe.method)
    try:
        method: ClusteringMethod = make(backbone, feature_dim, data.num_clusters, **recipe.model, **ranks)
    except ValueError as error:
        if not str(error).startswith(tuple(recipe.model)):  # it is of the network, or of the images
            raise
        raise ValueError(in_place(error, "model", recipe.model)) from error
    return method


def make_views(recipe: Recipe) -> list[nn.Module]:
    """Return the views that the method learns from, which work on whole batches."""
    return [_make_view(settings, f"views.{place}") for place, settings in enumerate(recipe.views)]


def fit_neighbors(views: Sequence[nn.Module], data: Dataset[Any]) -> None:
    """Find the neighbors in a data set that views draw from; views with the same settings share them."""
    found: dict[tuple[int, int], NeighborView] = {}
    for part in (part for view in views for part in view.modules()):
        if isinstance(part, NeighborView):
            settings = part.num_neighbors, part.cells
            found[settings] = part.share(found[settings]) if settings in found else part.fit(data)


def make_test_view(recipe: Recipe) -> nn.Module | None:
    """Return the view for pseudo-labels, clusters and scores; None for unchanged images."""
    return None if recipe.test_view is None else _make_view(recipe.test_view, "test_view")


def _make_view(settings: Mapping[str, Any], where: str) -> nn.Module:
    try:
        return make_view(**settings)
    except ValueError as error:
        raise ValueError(in_place(error, where, settings)) from error


def make_config(recipe: Recipe, **settings: Any) -> TrainConfig:
    """Return the trainer's settings: the recipe's, and others of :class:`deepclust_ext.training.TrainConfig`."""
    return TrainConfig(
        phases=recipe.phases,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        optimizer=recipe.optimizer,
        kmeans=recipe.kmeans,
        sync_batch_norm=recipe.sync_batch_norm,
        **settings,
    )


def check_images(recipe: Recipe, data: Dataset[Any] | Mapping[str, Dataset[Any]]) -> None:
    """Require the recipe's number of images and channels, and views that give the size that the network sees.

    Raises:
        ValueError: If something differs; the message names it.
    """
    expected, as_in = recipe.data, f"as {recipe.title} has it"
    if isinstance(data, Mapping) and len(data) > 1 and takes_places(*make_views(recipe)):
        raise ValueError(f"views: expected none of neighbors where {recipe.title} passes through several data sets")
    test_view = make_test_view(recipe)
    views = {"test_view": test_view} if test_view else {"the image itself": torch.nn.Identity()}
    views |= {f"views.{place}": view for place, view in enumerate(make_views(recipe))}
    for name, source in (data if isinstance(data, Mapping) else {MAIN: data}).items():
        images = IndexedImages(source)
        count = {MAIN: expected.images, "unlabelled": expected.unlabelled}.get(name)
        if count is not None and len(images) != count:
            setting = "data.images" if name == MAIN else f"data.{name}"
            own = f"; the setting {setting}={len(images)} is for your own"
            raise ValueError(f"{setting}: expected {counted(count, item_of(source))}, {as_in}, got {len(images)}{own}")
        image = images[0][0].unsqueeze(0)
        if image.shape[1] != expected.channels:
            raise ValueError(f"data.channels: expected {expected.channels}, {as_in}, got {image.shape[1]} in {name}")
        if recipe.backbone.name == ROWS_NETWORK and isinstance(source, Features) and source.largest > LARGEST:
            raise ValueError(
                f"data: expected numbers within {LARGEST:g} for {recipe.method}, whose network adds up their squares, "
                f"got {source.largest:.3g}; divide all of them by one number, or take NeighborHead or TURTLE, which see"
                " directions alone"
            )
        for where, view in views.items():
            fit_neighbors([view], TensorDataset(image))  # itself, for want of others
            size = tuple(seen_by(view, image, torch.zeros(1, dtype=torch.int64, device="cpu")).shape[2:])
            if size != (expected.size, expected.size):
                raise ValueError(f"data.size: expected {expected.size}, {as_in}, got {size} in {name} from {where}")


def make_trainer(
    recipe: Recipe,
    data: Dataset[Any] | Mapping[str, Dataset[Any]],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    gather_distributed: bool = False,
    process_group: "Group" = None,
    **settings: Any,
) -> Trainer:
    """Return the trainer of a recipe's run.

    Args:
        recipe: All settings.
        data: The images, or several data sets by name, see :class:`deepclust_ext.training.Trainer`.
        out: Folder for checkpoint and history.
        seed: Seed of everything random, including the first weights; below 2^32.
        device: Where to train.
        gather_distributed: Whether several ranks train together, see :class:`deepclust_ext.training.Trainer`.
        process_group: The ranks; None for all.
        **settings: Other settings of :class:`deepclust_ext.training.TrainConfig` that are not in a recipe:
            ``num_workers``, ``precision``, ``compile``.

    Raises:
        ImportError: If the backbone needs torchvision and there is none.
        ValueError: If the recipe does not fit the method or the images.
    """
    config = make_config(recipe, seed=seed, **settings)
    check_images(recipe, data)
    seed_everything(seed)
    # A method that knows of no ranks still trains on one.
    ranks = {"gather_distributed": True, "process_group": process_group} if gather_distributed else {}
    method = make_method(recipe, **ranks).to(device)
    views, test_view = make_views(recipe), make_test_view(recipe)
    fit_neighbors(views, data[MAIN] if isinstance(data, Mapping) else data)
    return Trainer(method, data, views, config, out, test_view=test_view, recipe=asdict(recipe))
