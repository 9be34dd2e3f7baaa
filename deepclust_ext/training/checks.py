"""Checks before the first step of what would otherwise fail after hours, or leave an empty run behind."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepclust_ext.inference import IndexedImages
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.ops._checks import check_type
from deepclust_ext.training.config import TrainConfig
from deepclust_ext.training.phases import MAIN


def check_types(method: Any, views: Any, config: Any, out: Any, test_view: Any, recipe: Any) -> None:
    """Require arguments of a trainer of the right types, and an ``out`` that is no file.

    Raises:
        TypeError: If one is of another type.
        NotADirectoryError: If ``out`` is a file.
    """
    check_type(method, "method", ClusteringMethod, "a ClusteringMethod")
    check_type(config, "config", TrainConfig, "a TrainConfig")
    check_type(out, "out", str | os.PathLike, "a path")
    for place, view in enumerate(check_type(views, "views", Sequence, f"a list of {method.num_views} functions")):
        check_type(view, f"views.{place}", Callable, "a function of a batch")
    if test_view is not None:
        check_type(test_view, "test_view", Callable, "a function of a batch or None")
    if recipe is not None:
        check_type(recipe, "recipe", Mapping, "a mapping or None")
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"out: expected a folder, got the file {out}")


def check_generators(views: Sequence[Callable[[Any], torch.Tensor]]) -> None:
    """Require views that draw from torch's global generator, whose state a checkpoint holds; ValueError otherwise."""
    for place, view in enumerate(views):
        for part in view.modules() if isinstance(view, nn.Module) else (view,):
            if getattr(part, "generator", None) is not None:
                raise ValueError(
                    f"views, {place}: expected one that draws from torch's global generator, which a checkpoint holds, "
                    f"got {type(part).__name__} with a generator of its own"
                )


def check_sizes(name: str, images: IndexedImages) -> None:
    """Require images of one size if a view needs that, as far as the data set itself tells.

    Raises:
        ValueError: If they differ in size.
    """
    if not images.any_size and getattr(images.data, "image_size", ()) is None:
        raise ValueError(
            f"views: expected views with the attribute any_size, such as 'contrastive', since images of data {name} "
            "differ in size, got one without; or load the images with a size"
        )


def check_as_they_are(images: IndexedImages) -> None:
    """Require images that a network can take without a test view, as far as the first one and the data set tell.

    Raises:
        TypeError: If they are integers.
        ValueError: If they differ in size.
    """
    cure = "pass a test_view, such as deepclust_ext.data.resize_view(size)"
    first = images[0][0]
    if getattr(images.data, "image_size", first.shape) is None:
        raise ValueError(f"data: expected images of one size where there is no test_view, got several; {cure}")
    if not first.is_floating_point():
        raise TypeError(f"{images.name(0)}: expected a floating image, without a test_view, got {first.dtype}; {cure}")


def check_plan(method: type[ClusteringMethod], num_views: int, config: TrainConfig) -> None:
    """Require as many views as the method learns from, and something to do; ValueError otherwise."""
    if num_views != method.num_views:
        raise ValueError(f"views: expected {method.num_views} for {method.__name__}, got {num_views}")
    if config.epochs < 1:
        raise ValueError(f"phases: expected at least one epoch, got {config.epochs}")


def check_fit(
    method: ClusteringMethod,
    images: Mapping[str, IndexedImages],
    num_views: int,
    config: TrainConfig,
    *,
    as_they_are: bool,
) -> None:
    """Require data sets, views and phases that fit the method; without a test view also images that it can take.

    Raises:
        TypeError: As :func:`check_as_they_are`.
        ValueError: If something does not fit.
    """
    if MAIN not in images:
        raise ValueError(f"data: expected a data set named {MAIN!r}, got {', '.join(images) or 'none'}")
    if as_they_are:
        check_as_they_are(images[MAIN])
    check_plan(type(method), num_views, config)
    sizes = {name: len(each) for name, each in images.items()}
    used = {MAIN, *(name for phase in config.phases if phase.epochs for name in phase.passes)}
    method.check_data({name: size for name, size in sizes.items() if name in used})
    for place, phase in enumerate(config.phases):
        phase.check(method, sizes, config.batch_size, f"phases.{place}")


def check_ranks(config: TrainConfig, count: int) -> None:
    """Require enough images in a batch for the ranks; with batch normalization by rank each needs two.

    Raises:
        ValueError: If there are fewer.
    """
    least = count if config.sync_batch_norm or count == 1 else 2 * count
    if config.batch_size < least:
        raise ValueError(f"batch_size: expected at least {least} for {count} ranks, got {config.batch_size}")


def check_trainable(method: nn.Module) -> None:
    """Require that gradients are recorded and that some parameter takes one.

    Raises:
        RuntimeError: If torch records no gradients here.
        ValueError: If all parameters are frozen.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise RuntimeError("fit: expected gradients to be recorded, got a call within torch.no_grad or inference_mode")
    if not any(parameter.requires_grad for parameter in method.parameters()):
        raise ValueError("method: expected a parameter with requires_grad, got none: all are frozen")
