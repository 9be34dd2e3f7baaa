"""Prepares a run from the user's arguments: images, a recipe for them, and the reasons for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepclust_ext import recipes
from deepclust_ext.backbones.load import check_backbone
from deepclust_ext.data import Features, Images, load_dataset, load_features, load_images
from deepclust_ext.data.words import item_of
from deepclust_ext.inference import takes_any_size
from deepclust_ext.ops._checks import counted
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import make_config, make_test_view, make_views
from deepclust_ext.recipes.defaults import default_recipe
from deepclust_ext.recipes.features import features_recipe
from deepclust_ext.recipes.files import method_class, method_named
from deepclust_ext.runs.embedded import EmbeddedImages
from deepclust_ext.runs.folder import move_weights, own_images, read_record, recorded_source
from deepclust_ext.runs.source import Source, check_labels, check_root, hint_of_labels
from deepclust_ext.training.checks import check_plan
from deepclust_ext.training.files import RECIPE_NAME, RECORD_NAME


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of a recipe; None leaves it to the defaults.

    Attributes:
        num_clusters: K.
        method: Name of the method, in upper or lower case.
        recipe: Name of a bundled recipe, or the path of a file.
        epochs: Epochs of all phases together; their proportions stay.
        overrides: New values by dotted keys.
    """

    num_clusters: int | None = None
    method: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Arguments for :func:`deepclust_ext.runs.train`."""

    recipe: Recipe
    images: Dataset[Any]
    source: Source
    reasons: tuple[str, ...]


def prepare(
    source: Source,
    wishes: Wishes,
    *,
    cache_folder: Path | None = None,
    score_every: int = 0,
    device: str = "cpu",
    num_workers: int = 0,
) -> Prepared:
    """Return images and a recipe for them.

    Args:
        source: Where the images are.
        wishes: What the user asks of the recipe.
        cache_folder: Where rows of a network are kept, and decoded images that are too many for memory.
        score_every: Epochs between two scores, for which labels are needed; 0 for none.
        device: Where a network embeds images.
        num_workers: Processes that load images for it.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there is no image, a wish cannot be met, K is missing, or there are no labels for scores.
    """
    check_labels(source, score_every)
    check_root(source)
    if wishes.recipe is None and wishes.num_clusters is None:
        raise ValueError("clusters: expected how many, since no recipe says so, got none")
    if wishes.recipe is None and source.is_bundled and source.network is None:
        raise ValueError(f"recipe: expected one for the data set {source.name}, such as hadis-digits, got none")
    named, any_size = _checked(source, wishes)
    kept = _cached(source, cache_folder)
    # Images that may have to be resized are not kept before.
    images = source.open(device=device, num_workers=num_workers, **kept | ({} if any_size else {"cache": "none"}))
    if isinstance(images, EmbeddedImages):
        source = replace(source, network=images.network)
    if named is None:
        recipe, reasons = _default(source, images, wishes)
    else:
        recipe, reasons = _fitted(named, source, images, wishes), []
    reasons += hint_of_labels(source, images)
    reasons += [f"{key}: {value}, as asked for" for key, value in wishes.overrides.items()]
    if wishes.epochs is not None:
        recipe = recipe.with_epochs(wishes.epochs)
        reasons.append(f"{counted(wishes.epochs, 'epoch')}, as asked for")
    size = recipe.data.size
    if not takes_any_size(*make_views(recipe)) and isinstance(images, Images):
        if images.image_size != (size, size):
            source = replace(source, size=size)
            reasons.append(f"images resized to {size} x {size}, as the views need them")
        images = source.open(**kept)
    return Prepared(recipe, with_unlabelled(recipe, source, images), source, tuple(reasons))


def prepare_to_resume(
    path: Path,
    wishes: Wishes,
    given: Source,
    *,
    weights: str | None = None,
    score_every: int = 0,
    device: str = "cpu",
    num_workers: int = 0,
) -> Prepared:
    """Return images and recipe of the run in a folder, whose last phase may get more epochs.

    Args:
        path: The folder.
        wishes: What the user asks of the recipe: only epochs and overrides.
        given: Where the images are now, if they have moved, and labels; all else stays as it was.
        weights: Where the weights of the run's frozen network are now, if they have moved.
        score_every: Epochs between two scores, for which labels are needed; 0 for none.
        device: Where a network embeds images, if their rows are gone.
        num_workers: Processes that load images for it.

    Raises:
        FileNotFoundError: If the folder holds no run, or its images are missing.
        ValueError: If a wish would make it another run, its images were only in memory, there are no labels, or weights
            are given and the run has no network that reads weights.
    """
    if not (path / RECIPE_NAME).is_file():
        raise FileNotFoundError(f"resume: expected a run in {path}, got a folder without {RECIPE_NAME}")
    recipe, record = recipes.load(path / RECIPE_NAME), read_record(path)
    for name in ("num_clusters", "method", "recipe"):
        if getattr(wishes, name) is not None:
            given = getattr(wishes, name)
            raise ValueError(f"{name}: expected none with --resume, which goes by {path / RECIPE_NAME}, got {given}")
    recipe = recipes.changed(recipe, wishes.overrides, "set")
    if wishes.epochs is not None:
        last = replace(recipe.phases[-1], epochs=recipe.phases[-1].epochs + wishes.epochs - recipe.epochs)
        recipe = replace(recipe, phases=(*recipe.phases[:-1], last))
    if given.network is not None:
        known = path / RECORD_NAME
        raise ValueError(f"backbone: expected none with --resume, which goes by {known}, got {given.network.name}")
    if weights is not None:
        move_weights(path, record, weights)
    source = recorded_source(path, record)
    if given.scale != "type" and given.scale != source.scale:
        raise ValueError(f"scale: expected {source.scale!r}, as {path} has it, got {given.scale!r}")
    if given.data:
        source = replace(source, data=given.data, root=given.root)
    if given.labels is not None:
        source = replace(source, labels=given.labels)
    check_labels(source, score_every)
    check_parts(recipe)
    images = own_images(path, source, device=device, num_workers=num_workers, **_cached(source, path))
    count = len(images)  # type: ignore[arg-type]
    if count != recipe.data.images:
        raise ValueError(
            f"data: expected {counted(recipe.data.images, item_of(images))}, with which the run in {path} began, "
            f"got {count}; others need a run of their own"
        )
    return Prepared(recipe, with_unlabelled(recipe, source, images), source, ())


def with_unlabelled(recipe: Recipe, source: Source, images: Dataset[Any]) -> Any:
    """Return the images; if the recipe also has images without labels, return both by name.

    Raises:
        ValueError: If these images belong to no data set that has such images.
    """
    if not recipe.data.unlabelled:
        return images
    if source.root is None:
        raise ValueError(
            f"data: expected the data set {recipe.data.dataset} and a root, whose images without labels "
            f"{recipe.title} needs, got {', '.join(source.data)}; data.unlabelled=0 and phases of your own do without"
        )
    name = f"{source.data[0]}-unlabelled"
    scale = getattr(images, "range", None) or source.scale
    return {"images": images, "unlabelled": load_dataset(name, source.root, size=source.size, scale=scale)}


def _cached(source: Source, folder: Path | None) -> dict[str, Any]:
    return {} if source.is_bundled else {"cache_folder": folder}


def _check_count(images: Any, num_clusters: int) -> None:
    """Require at least two images, and as many as clusters; ValueError otherwise, which says what was skipped."""
    count, item, skipped = len(images), item_of(images), getattr(images, "skipped", ())
    noun = "row" if item == "row" else "file"
    without = f"; skipped {counted(len(skipped), noun)}, first {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if count < 2:
        raise ValueError(f"data: expected at least 2 {item}s, got {count}{without}")
    if num_clusters > count:
        raise ValueError(f"num_clusters: expected 1 to {count}, the number of {item}s, got {num_clusters}{without}")


def _checked(source: Source, wishes: Wishes) -> tuple[Recipe | None, bool]:
    """Require wishes that a recipe can follow, before images are read.

    Whether there are enough images for the clusters cannot be checked here.

    Returns:
        The named recipe, or None for a default one, and whether its views take images of any size.
    """
    named = None if wishes.recipe is None else _named(wishes)
    if named is None:
        assert wishes.num_clusters is not None
        if not (source.is_named or source.holds_features or all(Path(path).is_dir() for path in source.data)):
            return None, True  # what file it is, if any, is to be told first
        count = wishes.num_clusters + 1
        blank: Any = (
            load_features(np.zeros((count, 1), np.float32))
            if source.holds_features
            else load_images(np.zeros((count, 1, 1), np.uint8), cache="none")
        )
        recipe, _ = _default(source, blank, wishes)
    else:
        recipe = recipes.changed(named, {**_integers(named), **_told(wishes)}, "set")
    check_parts(recipe)
    return named, takes_any_size(*make_views(recipe))


def check_parts(recipe: Recipe) -> None:
    """Require that settings, views and network exist."""
    make_test_view(recipe)
    check_plan(method_class(recipe.method), len(make_views(recipe)), make_config(recipe))
    check_backbone(recipe.backbone.name, recipe.backbone.stem)


def _default(source: Source, images: Any, wishes: Wishes) -> tuple[Recipe, list[str]]:
    assert wishes.num_clusters is not None
    _check_count(images, wishes.num_clusters)
    method = None if wishes.method is None else method_named(wishes.method)
    choose = features_recipe if isinstance(images, Features) else default_recipe
    recipe, [*reasons, batch, epochs] = choose(images, wishes.num_clusters, method=method)
    reasons += [batch] if "batch_size" not in wishes.overrides else []
    reasons += [epochs] if wishes.epochs is None else []
    return recipes.changed(recipe, {"data.dataset": source.name, **wishes.overrides}, "set"), reasons


def _named(wishes: Wishes) -> Recipe:
    """Return a recipe by its name or file."""
    name = str(wishes.recipe)
    recipe = recipes.load(Path(name) if name.endswith(".yaml") else name)
    if wishes.method is not None and wishes.method.lower() != recipe.method.lower():
        raise ValueError(f"method: expected {recipe.method.lower()}, as the recipe {name} has it, got {wishes.method}")
    return recipe


def _fitted(recipe: Recipe, source: Source, images: Any, wishes: Wishes) -> Recipe:
    """Return a named recipe for these images; for another data set than its own, it takes their number and channels."""
    own = {} if source.is_named and recipe.data.dataset == source.data[0] else _facts(source, images)
    if not images[0][0].is_floating_point():
        own |= _integers(recipe)
    fitted = recipes.changed(recipe, {**own, **_told(wishes)}, "set")
    _check_count(images, fitted.data.num_clusters)
    return fitted


def _integers(recipe: Recipe) -> dict[str, Any]:
    """Return the view that a recipe without a test view needs for integer images: it scales them to 0 to 1."""
    return {} if recipe.test_view is not None else {"test_view": {"name": "resize", "size": recipe.data.size}}


def _told(wishes: Wishes) -> dict[str, Any]:
    clusters = {} if wishes.num_clusters is None else {"data.num_clusters": wishes.num_clusters}
    return {**clusters, **wishes.overrides}


def _facts(source: Source, images: Any) -> dict[str, Any]:
    facts = {"data.dataset": source.name, "data.protocol": "all images", "data.images": len(images), "published": {}}
    return {**facts, "data.channels": getattr(images, "channels", images[0][0].shape[0])}
