"""diffused_neighbor_gather against its composition of torch's functions, eager and compiled.

Rows and dims of a case are queries and features; bank, neighbors, samples and steps stand in its name. Ours and the
reference draw the same and are compared as they are. The composition draws numbers of its own: its indices have to be
among the neighbors, the mean cosine of what it drew that of the softmax, and its noise as wide as asked for.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.floors import WorkOf
from benchmarks.floors.gather import CUDA_GATHERS, sampling_work
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import diffused_neighbor_gather, reference

MODES = ("forward",)
TRUTH = reference.diffused_neighbor_gather
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own

TEMPERATURE, NOISE_STD = 0.1, 0.001  # the defaults of our op
DEVIATIONS = 5  # of their own, by which a mean of what was drawn may be off


def composition(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    num_neighbors: int,
    num_samples: int = 1,
    num_steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Do what everybody writes: product, topk, multinomial, indexing, randn."""
    if num_neighbors == 0:
        samples = query.unsqueeze(1).expand(-1, num_samples, -1)
        indices = torch.full((len(query), num_samples), -1, device=query.device)
        return samples + NOISE_STD * torch.randn_like(samples), indices
    directions = normalize(bank, dim=1)
    cosines, candidates = (normalize(query, dim=1) @ directions.T).topk(num_neighbors, dim=1)
    chosen = torch.multinomial((cosines / TEMPERATURE).softmax(dim=1), num_samples, replacement=True)
    indices = candidates.gather(1, chosen)
    for _ in range(num_steps - 1):
        standing = indices.flatten()
        scores = directions[standing] @ directions.T
        scores.scatter_(1, standing.unsqueeze(1), -math.inf)
        cosines, candidates = scores.topk(num_neighbors, dim=1)
        chosen = torch.multinomial((cosines / TEMPERATURE).softmax(dim=1), 1)
        indices = candidates.gather(1, chosen).view_as(indices)
    samples = bank[indices]
    return samples + NOISE_STD * torch.randn_like(samples), indices


def check_composition(
    results: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...], options: Mapping[str, Any]
) -> str | None:
    """Return what is wrong with results that were drawn with other random numbers, or None."""
    samples, indices = results
    query, bank = (x.double() for x in inputs)
    neighbors = options["num_neighbors"]
    stood = bank[indices] if neighbors else query.unsqueeze(1)
    rounding = torch.finfo(samples.dtype).eps * float(stood.abs().max())
    noise = (samples - stood) / NOISE_STD
    width = float(noise.std())
    if abs(width - 1) > DEVIATIONS / math.sqrt(noise.numel()) + rounding / NOISE_STD:
        return f"WRONG: noise of {width:.3g} standard deviations"
    if neighbors == 0:
        return None if bool((indices == -1).all()) else "WRONG: indices of rows that were not asked for"
    if options.get("num_steps", 1) > 1:  # where a walk came from is not known any more
        return None
    cosines = normalize(query, dim=1) @ normalize(bank, dim=1).T
    nearest = cosines.topk(neighbors, dim=1).values
    drawn = cosines.gather(1, indices)
    if not bool((drawn >= nearest[:, -1:] - 100 * torch.finfo(samples.dtype).eps).all()):
        return "WRONG: an index that is no neighbor's"
    weights = (nearest / TEMPERATURE).softmax(dim=1)
    mean = (weights * nearest).sum(dim=1)
    variance = (weights * nearest.square()).sum(dim=1) - mean.square()
    off = float((drawn.mean(dim=1) - mean).sum() / (variance / drawn.shape[1]).sum().sqrt())
    return None if abs(off) < DEVIATIONS else f"WRONG: cosines off by {off:.1f} standard deviations"


PROVIDERS = {
    "ours": Provider(lambda: diffused_neighbor_gather),
    "composition": Provider(lambda: composition, check=check_composition),
    "compiled composition": Provider(
        lambda: torch.compile(composition, dynamic=False), compiled=True, check=check_composition
    ),
    "reference": Provider(lambda: reference.diffused_neighbor_gather),
}

YARDSTICK = Yardstick(
    "one product",
    lambda query, bank, **_: query @ bank.T,
    lambda query, bank, **_: 2 * query.shape[0] * bank.shape[0] * query.shape[1],
)


def query_and_bank(candidates: int, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return rows in random directions; without candidates the bank is the query."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, dims, generator=generator)
    return query, torch.randn(candidates, dims, generator=generator) if candidates else query


def make_case(
    rows: int, candidates: int, dims: int, neighbors: int, samples: int = 1, num_steps: int = 1, **changes: Any
) -> Case:
    """Return a case, named by what differs from the next simpler one."""
    name = f"bank{candidates}-k{neighbors}" if neighbors else "self"
    work = partial(sampling_work, candidates=candidates, neighbors=neighbors, samples=samples, num_steps=num_steps)
    return Case(
        name + (f"-s{samples}" if samples > 1 else "") + (f"-t{num_steps}" if num_steps > 1 else ""),
        rows,
        dims,
        partial(query_and_bank, candidates),
        keywords=("bank",),
        options={"num_neighbors": neighbors, "num_samples": samples, "num_steps": num_steps},
        works={"forward": work},
        **changes,
    )


CASES = [
    make_case(256, 0, 256, 0),
    make_case(4096, 0, 256, 0),
    make_case(256, 10_000, 128, 10),
    make_case(256, 10_000, 128, 10, samples=16),
    make_case(256, 10_000, 128, 10, num_steps=2),
    make_case(256, 100_000, 128, 50),
]
SERIES = [make_case(rows, 10_000, 128, 10) for rows in (64, 256, 1024)]
CHECKED_PAIRS = 1 << 27  # a float64 matrix of 1 GB, which the reference holds several times and sorts


def cuda_case(rows: int, candidates: int, dims: int, neighbors: int, samples: int) -> Case:
    """Return a case for CUDA."""
    checked = CHECKED_PAIRS // candidates if candidates else rows
    return make_case(rows, candidates, dims, neighbors, samples, checked_rows=checked if checked < rows else None)


CUDA_CASES = [cuda_case(*gather) for gather in CUDA_GATHERS]
