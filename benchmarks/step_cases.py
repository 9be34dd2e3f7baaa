"""The training steps that `python -m benchmarks.steps` takes apart: methods, networks, images and phases."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from benchmarks.plain_pici import PlainPICI
from deepclust_ext import recipes
from deepclust_ext.backbones import load_backbone
from deepclust_ext.data import Digits, strong_view, weak_view
from deepclust_ext.methods import PICI
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.recipes.files import method_class
from deepclust_ext.training import Phase, TrainConfig, Trainer, seed_everything

#: Methods with a case for the stem that keeps all pixels, whose steps take some seven times as long.
WITH_FINE_STEM = ("hadis", "sacc")

UNUSED_FOLDER = Path("runs")  # a trainer writes when it fits, and these do not

#: Method -> its recipe for the digits.
DIGITS = {name.removesuffix("-digits"): recipes.load(name) for name in recipes.names("-digits")}

#: Methods that run other networks in other phases -> their terms.
STAGED = {"pici": PICI.terms}


def digits_trainer(name: str, phase: int = -1) -> Trainer:
    """Return the demo's trainer of a method, with one of its phases for all of the run."""
    recipe = DIGITS[name]
    phases = (replace(recipe.phases[phase], epochs=recipe.epochs),)
    return make_trainer(replace(recipe, phases=phases), Digits(), UNUSED_FOLDER)


def photo_trainer(
    name: str,
    batch_size: int = 256,
    size: int = 32,
    terms: str | None = None,
    stem: str = "imagenet",
    precision: str = "fp32",
    **model: Any,
) -> Trainer:
    """Return a trainer of a method with its defaults, and weak and strong views of random RGB images.

    The network is a ResNet-18, for PICI its transformer.

    Raises:
        ImportError: If torchvision is missing or does not fit torch.
    """
    seed_everything(0)
    weak, strong = weak_view(size), strong_view(size)
    make: Any = method_class(DIGITS[name].method)
    network = load_backbone("vit", size) if name == "pici" else load_backbone("resnet18", size, stem=stem)
    method = make(*network, 10, **model)
    views = {"hadis": [weak, weak], "pici": [strong, weak], "clc": [weak, strong]}.get(
        name, [weak] * (method.num_views - 1) + [strong]
    )
    images = TensorDataset(torch.rand(max(4 * batch_size, 16), 3, size, size))
    phase = Phase("main", 1000, {"images": terms}, pseudo_labels=1 if method.labelled_terms else "never")
    config = TrainConfig([phase], batch_size=batch_size, precision=precision)
    return Trainer(method, images, views, config, UNUSED_FOLDER)


def plain_trainer(make: Callable[[], Trainer]) -> Trainer:
    """Return a trainer of PICI whose method is :class:`PlainPICI`, with the same weights."""
    trainer = make()
    assert isinstance(trainer.method, PICI)
    trainer.method = PlainPICI(trainer.method)
    trainer.optimizer = trainer.method.make_optimizer(trainer.config.batch_size, trainer.config.optimizer)
    return trainer


def _cases() -> dict[str, Callable[[], Trainer]]:
    cases: dict[str, Callable[[], Trainer]] = {}
    for name, recipe in DIGITS.items():
        size = f"{recipe.batch_size}x{recipe.data.size}x{recipe.data.size}"
        if name in STAGED:
            for place, phase in enumerate(recipe.phases):
                cases[f"{name}-digits-{phase.name}-{size}"] = partial(digits_trainer, name, place)
        else:
            cases[f"{name}-digits-{size}"] = partial(digits_trainer, name)
    for name in DIGITS:
        if name in STAGED:
            for terms in STAGED[name]:
                cases[f"{name}-vit-{terms}-2x224x224"] = partial(photo_trainer, name, 2, 224, terms)
        else:
            cases[f"{name}-resnet18-256x32x32"] = partial(photo_trainer, name)
    for name in WITH_FINE_STEM:
        cases[f"{name}-resnet18-cifar-256x32x32"] = partial(photo_trainer, name, stem="cifar")
    return cases


#: Name of a case, which begins with its method -> what makes its trainer, the same at every call.
CASES: Mapping[str, Callable[[], Trainer]] = _cases()
