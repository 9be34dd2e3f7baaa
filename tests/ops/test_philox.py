"""The random numbers of diffused_neighbor_gather: the generator's published vectors, distributions, independence."""

import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import diffused_neighbor_gather, reference
from deepclust_ext.reference.philox import normal, philox

ROOT = Path(__file__).parents[2]

# counter, seed, words: from kat_vectors of Random123
VECTORS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(rows: int, samples: int, count: int, seed: int = 0) -> Tensor:
    """Return the noise (rows, samples, count) of one call."""
    return diffused_neighbor_gather(
        torch.zeros(rows, count),
        torch.zeros(0),
        num_neighbors=0,
        noise_std=1.0,
        num_samples=samples,
        generator=seeded(seed),
    )[0]


@pytest.mark.parametrize(("counter", "seed", "expected"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], seed: int, expected: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox((a, b, c, d), torch.tensor(seed))) == expected


def test_published_vectors_in_the_header_of_the_kernels() -> None:
    compiler = os.environ.get("CXX", "g++")
    source = ROOT / "tests" / "ops" / "philox_vectors.cpp"
    subprocess.run([compiler, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", source], check=True)


def test_noise_of_a_published_vector() -> None:
    """Counter 0 under seed 0 belongs to the first four elements of the first sample of the first query."""
    words = VECTORS[0][2]
    expected = []
    for first, second in (words[:2], words[2:]):
        radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
        angle = 2 * math.pi * second / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    query = torch.zeros(1, 4, dtype=torch.float64)
    samples, _, _ = torch.ops.deepclust_ext.diffused_neighbor_gather(
        query, query, torch.tensor(0), num_neighbors=0, noise_std=1.0
    )
    torch.testing.assert_close(samples.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 123456789])
@pytest.mark.parametrize("count", [1, 3, 4, 30, 67, 130])
def test_noise_is_that_of_the_reference(seed: int, count: int) -> None:
    query = torch.zeros(11, count, dtype=torch.float64)
    samples, _, _ = torch.ops.deepclust_ext.diffused_neighbor_gather(
        query, query, torch.tensor(seed), num_neighbors=0, noise_std=1.0, num_samples=3
    )
    expected = normal(torch.tensor(seed), 11, 3, count, query.device)
    torch.testing.assert_close(samples, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("backend")
def test_noise_is_normal() -> None:
    """Kolmogorov-Smirnov at 1 in 1000, and four moments within four of their standard deviations."""
    noise = noise_of(200, 5, 200).double().flatten()
    count = len(noise)
    ordered = noise.sort().values
    steps = torch.arange(count + 1).double() / count
    distance = torch.maximum(
        (torch.special.ndtr(ordered) - steps[:-1]).abs(), (torch.special.ndtr(ordered) - steps[1:]).abs()
    ).max()
    assert float(distance) * math.sqrt(count) < 1.95
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((noise**power).mean()) - moment) < 4 * math.sqrt(variance / count)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("noise_std", [0.001, 2.0])
def test_noise_has_the_deviation_asked_for(noise_std: float) -> None:
    query = torch.zeros(50, 400, dtype=torch.float64)
    samples, _ = diffused_neighbor_gather(query, query, num_neighbors=0, noise_std=noise_std)
    assert abs(float(samples.std()) / noise_std - 1) < 4 / math.sqrt(2 * samples.numel())


@pytest.mark.usefixtures("backend")
def test_noise_of_queries_samples_and_elements_is_uncorrelated() -> None:
    noise = noise_of(12, 12, 4000)
    for rows in (
        noise[:, 0],
        noise[0],
        noise[0, 0].view(-1, 10).T,
        torch.stack([noise_of(1, 1, 4000, 1)[0, 0], noise[0, 0]]),
    ):
        correlations = torch.corrcoef(rows.double()).fill_diagonal_(0)
        assert float(correlations.abs().max()) < 5 / math.sqrt(rows.shape[1])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("temperature", "num_neighbors"), [(0.3, 4), (0.3, 10), (1.0, 6), (0.1, 6)])
def test_draws_follow_the_softmax(temperature: float, num_neighbors: int) -> None:
    """Chi-square at 1 in 1000, for each of three queries."""
    query, bank = torch.randn(3, 6, generator=seeded()), torch.randn(10, 6, generator=seeded(1))
    _, indices = diffused_neighbor_gather(
        query, bank, temperature=temperature, num_neighbors=num_neighbors, num_samples=20000, generator=seeded(2)
    )
    cosines = torch.cosine_similarity(query.unsqueeze(1), bank, dim=2).double()
    nearest = cosines.topk(num_neighbors)
    expected = torch.zeros_like(cosines).scatter(1, nearest.indices, (nearest.values / temperature).softmax(1)) * 20000
    for drawn, frequencies in zip(indices, expected, strict=True):
        counts = torch.bincount(drawn, minlength=10)
        common = frequencies > 5
        assert (counts[frequencies == 0] == 0).all()
        statistic = ((counts - frequencies).square() / frequencies)[common].sum()
        freedom = torch.tensor((int(common.sum()) - 1) / 2, dtype=torch.float64)
        assert float(torch.special.gammaincc(freedom, statistic / 2)) > 0.001


@pytest.mark.usefixtures("backend")
def test_draws_of_queries_samples_and_steps_are_uncorrelated() -> None:
    """Rows that are all alike to each other are drawn with equal probability, whatever was drawn before."""
    bank, query = torch.eye(4), torch.full((800, 4), 0.5)
    options: dict[str, Any] = {"num_samples": 4, "noise_std": 0.0}
    one, two = (
        diffused_neighbor_gather(query, bank, num_steps=num_steps, generator=seeded(), **options)[1]
        for num_steps in (1, 2)
    )
    columns = [*one.T, one[:, 0].roll(1), one.T[0] * 0 + one[:, 0].roll(7), *((two - one) % 4).T]
    correlations = torch.corrcoef(torch.stack(columns).double()).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 5 / math.sqrt(800)
    assert (two != one).all()
    moves = torch.bincount(((two - one) % 4).flatten(), minlength=4)[1:]
    expected = one.numel() / 3
    assert float((moves / expected - 1).abs().max()) < 5 / math.sqrt(expected)


def test_same_seed_draws_the_same_with_and_without_kernels() -> None:
    query, bank = (torch.randn(200, 16, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    for options in ({}, {"num_steps": 3, "num_samples": 4}, {"num_neighbors": 200, "exclude": torch.arange(200)}):
        ours = diffused_neighbor_gather(query, bank, **options, generator=seeded(5))
        theirs = reference.diffused_neighbor_gather(query, bank, **options, generator=seeded(5))
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("backend")
def test_generator_moves_on_and_can_be_set_back() -> None:
    query, bank = torch.randn(50, 8, generator=seeded(1)), torch.randn(60, 8, generator=seeded(2))
    generator = seeded(3)
    first = diffused_neighbor_gather(query, bank, generator=generator)
    second = diffused_neighbor_gather(query, bank, generator=generator)
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[0] - bank[first[1]], second[0] - bank[second[1]])
    again = diffused_neighbor_gather(query, bank, generator=seeded(3))
    assert torch.equal(again[0], first[0])
    torch.manual_seed(3)
    assert torch.equal(diffused_neighbor_gather(query, bank)[0], first[0])
    assert torch.equal(diffused_neighbor_gather(query, bank)[0], second[0])


@pytest.mark.usefixtures("backend")
def test_what_a_query_draws_does_not_depend_on_the_batch() -> None:
    query, bank = torch.randn(70, 9, generator=seeded(1)), torch.randn(40, 9, generator=seeded(2))
    options: dict[str, Any] = {"num_steps": 2, "noise_std": 0.5}
    samples, indices = diffused_neighbor_gather(query, bank, num_samples=5, generator=seeded(), **options)
    for rows, count in ((1, 5), (70, 1), (33, 2)):
        part = diffused_neighbor_gather(query[:rows], bank, num_samples=count, generator=seeded(), **options)
        assert torch.equal(part[1], indices[:rows, :count])
        assert torch.equal(part[0], samples[:rows, :count])
