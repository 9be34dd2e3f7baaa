"""The batches of an epoch: which images, in which order, from which data set."""

from collections.abc import Generator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust_ext.inference import IndexedImages, Loader
from deepclust_ext.training.phases import MAIN, Phase


class Batch(NamedTuple):
    """Images of one data set, and what a method makes of them."""

    data: str
    terms: str | None
    images: Tensor | list[Tensor]  # (B, C, H, W), of different sizes a list of (C, H, W), on the CPU
    places: Tensor  # (B,), of the images in the data set, on the CPU


def epoch_batches(
    loaders: Mapping[str, Loader],
    images: Mapping[str, IndexedImages],
    phase: Phase,
    batch_size: int,
    seed: int,
    labels: Tensor | None,  # (N,) int64, pseudo-labels of the main data set
    skip: int = 0,  # batches of the epoch that a run has seen before it stopped
) -> Generator[Batch, None, None]:
    """Yield the batches of an epoch, one data set after the other."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, terms in phase.passes.items():
        steps = len(images[name]) // batch_size
        if phase.resample and name == MAIN and labels is not None:
            order = balanced(labels, steps * batch_size, generator)
        else:
            order = torch.randperm(len(images[name]), generator=generator, device="cpu")
        places = order[: steps * batch_size].view(steps, batch_size).tolist()
        rest, skip = places[skip:], max(skip - steps, 0)
        if not rest:
            continue
        batches = loaders[name].batches(rest)
        if len(rest) < steps:  # the number that starting to load takes was taken before the stop
            state = torch.get_rng_state()
            stacked, index = next(batches)
            torch.set_rng_state(state)
            yield Batch(name, terms, stacked, index)
        for stacked, index in batches:
            yield Batch(name, terms, stacked, index)


def balanced(
    labels: Tensor,  # (N,) int64
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Return ``count`` indices drawn with replacement, each with the weight 1 / (size of its cluster)."""
    weights = 1.0 / labels.bincount()[labels].double()
    return torch.multinomial(weights, count, replacement=True, generator=generator)
