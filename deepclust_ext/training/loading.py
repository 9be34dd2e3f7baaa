"""The batches of an epoch: which images, in which order, from which data set."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust_ext.data.draws import draws_by_image, part_of_batch
from deepclust_ext.data.views import seen_by
from deepclust_ext.inference import IndexedImages, Loader
from deepclust_ext.inference.loop import View
from deepclust_ext.training.phases import MAIN, Phase
from deepclust_ext.training.ranks import Ranks


class Batch(NamedTuple):
    """This rank's images of a step, from one data set, and the terms to train them with."""

    data: str
    terms: str | None
    images: Tensor | list[Tensor]  # (b, C, H, W), of different sizes a list of (C, H, W), on the CPU
    places: Tensor  # (b,), of the images in the data set, on the CPU
    all_places: Tensor  # (B,), of the images of all ranks
    start: int  # place of the first image among these


def epoch_batches(
    loaders: Mapping[str, Loader],
    images: Mapping[str, IndexedImages],
    phase: Phase,
    batch_size: int,
    seed: int,
    labels: Tensor | None,  # (N,) int64, pseudo-labels of the main data set
    skip: int = 0,  # batches of the epoch that a run has seen before it stopped
    part: slice = slice(None),  # of each batch, that this rank has
) -> Generator[Batch, None, None]:
    """Yield the batches of an epoch, one data set after the other.

    The order is drawn for the batches of all ranks. So it is the same for any number of ranks, and no image comes
    twice.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, terms in phase.passes.items():
        steps = len(images[name]) // batch_size
        if phase.resample and name == MAIN and labels is not None:
            order = balanced(labels, steps * batch_size, generator)
        else:
            order = torch.randperm(len(images[name]), generator=generator, device="cpu")
        rest = order[: steps * batch_size].view(steps, batch_size)[skip:]
        skip = max(skip - steps, 0)
        if not len(rest):
            continue
        batches = loaders[name].batches(rest[:, part].tolist())
        state = torch.get_rng_state() if len(rest) < steps else None
        for places, (stacked, index) in zip(rest, batches, strict=True):
            if state is not None:  # the number that starting to load takes was taken before the stop
                torch.set_rng_state(state)
                state = None
            yield Batch(name, terms, stacked, index, places, part.start or 0)


def views_of(
    batch: Batch,
    images: Tensor | list[Tensor],  # of the batch, where views are made
    views: Sequence[View],
    ranks: Ranks,
) -> list[Tensor]:
    """Return the views that the images have in the batch of all ranks; views that cannot do this draw for the rank."""
    made = []
    with part_of_batch(batch.start, len(batch.all_places)):
        for view in views:
            with nullcontext() if draws_by_image(view) else ranks.apart():
                made.append(seen_by(view, images, batch.places))
    return made


def balanced(
    labels: Tensor,  # (N,) int64
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Return ``count`` indices drawn with replacement, each with the weight 1 / (size of its cluster)."""
    weights = 1.0 / labels.bincount()[labels].double()
    return torch.multinomial(weights, count, replacement=True, generator=generator)
