"""Draws of kmeans_seed, by weights and by costs, and what weights mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import kmeans_assign, kmeans_seed
from tests.helpers import EMULATED
from tests.ops.test_kmeans_seed import METRICS, make_rows, make_weights, uniform_numbers

BELOW_ONE = 1 - 2.0**-53  # the largest number that a draw can be


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("numbers", "place"), [([0.1, 0.9], 1), ([0.9, 0.1], 3), ([0.5, 0.9, 0.1], 3), ([0.5, 0.1, 0.9], 1)]
)
def test_ties_go_to_the_first_candidate(numbers: list[float], place: int) -> None:
    """Rows 1 and 3 both leave 1, row 2, drawn by 0.5, leaves 2."""
    features = torch.tensor([[0.0], [1.0], [-1.0], [1.0]])
    uniform = torch.tensor([[0.0] * len(numbers), numbers], dtype=torch.float64)
    assert kmeans_seed(features, uniform).tolist() == [0, place]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("number", "place", "weighted"), [(0.0, 0, 1), (0.25, 1, 1), (0.75, 3, 3), (BELOW_ONE, 3, 3)], ids=str
)
def test_ends_and_borders_of_the_first_draw(number: float, place: int, weighted: int) -> None:
    uniform, weights = torch.tensor([[number]], dtype=torch.float64), torch.tensor([0.0, 3, 0, 1]).double()
    assert kmeans_seed(torch.randn(4, 3), uniform).tolist() == [place]
    assert kmeans_seed(torch.randn(4, 3), uniform, weights=weights).tolist() == [weighted]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("number", "place"), [(0.0, 2), (0.25 - 2.0**-40, 2), (0.25, 3), (0.75 - 2.0**-40, 4), (0.75, 5), (BELOW_ONE, 5)]
)
def test_ends_and_borders_of_a_further_draw(number: float, place: int) -> None:
    """Costs are 0, 0, 1, 1, 1, 1 and 0: the rows at both ends are never drawn."""
    features = torch.tensor([[0.0], [0], [1], [-1], [1], [-1], [0]])
    uniform = torch.tensor([[0.0], [number]], dtype=torch.float64)
    assert kmeans_seed(features, uniform).tolist() == [0, place]


@pytest.mark.parametrize(("count", "places"), [(1, {0}), (4000, {0, 1023, 1024, 3999})])
def test_numbers_below_one_draw_the_last_row_of_any_count(count: int, places: set[int]) -> None:
    uniform = (torch.tensor([*places]).double() + 0.5) / count
    found = {int(kmeans_seed(torch.randn(count, 1), number.view(1, 1))) for number in uniform}
    assert found == places
    assert kmeans_seed(torch.randn(count, 1), torch.full((1, 1), BELOW_ONE).double()).tolist() == [count - 1]


def chi_square(places: Tensor, shares: Tensor) -> float:
    """Return how far counts of places are from what shares say, in the statistic of Pearson."""
    expected = len(places) * shares / shares.sum()
    counts = places.bincount(minlength=len(shares))
    assert int(counts[shares == 0].sum()) == 0
    present = shares > 0
    return float(((counts - expected).square() / expected)[present].sum())


@pytest.mark.parametrize("metric", METRICS)
def test_draws_follow_weights_and_costs(metric: str) -> None:
    """With seven shares above 0, a statistic above 22.5 comes once in a thousand."""
    features, weights = make_rows("random", 9, 3), torch.tensor([0.0, 1, 2, 3, 4, 5, 0, 6, 7]).double()
    uniform = uniform_numbers(600 if EMULATED else 3000, 2)
    first = torch.cat([kmeans_seed(features, number.view(1, 1), weights=weights) for number in uniform[:, 0]])
    assert chi_square(first, weights) < 22.5
    pairs = torch.stack([kmeans_seed(features, row[:, None], metric=metric, weights=weights) for row in uniform])
    assert torch.equal(pairs[:, 0], first)
    # Of the second row the shares depend on the first one.
    place = int(first.mode().values)
    distances = kmeans_assign(features, features[place, None], metric=metric)[1]
    costs = weights * (distances.square() if metric == "euclidean" else distances)
    assert chi_square(pairs[first == place, 1], costs) < 22.5


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 5), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_rows_without_weight_are_not_there(count: int, clusters: int, candidates: int, metric: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 7, generator=generator)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    weights[torch.rand(count, generator=generator) < 0.6] = 0
    weights[count // 2] = 1
    kept = weights.nonzero().squeeze(1)
    uniform = uniform_numbers(min(clusters, len(kept)), candidates, seed)
    places = kmeans_seed(features, uniform, metric=metric, weights=weights)
    assert len(set(places.tolist())) == len(places)
    assert torch.equal(places, kept[kmeans_seed(features[kept], uniform, metric=metric, weights=weights[kept])])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_whole_weights_choose_what_copies_would(
    count: int, clusters: int, candidates: int, metric: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 7, generator=generator)
    weights = torch.randint(5, (count,), generator=generator)
    weights[count // 2] += 1
    distinct = int((weights > 0).sum())
    copies = torch.arange(count).repeat_interleave(weights)
    uniform = uniform_numbers(min(clusters, distinct), candidates, seed)
    places = kmeans_seed(features, uniform, metric=metric, weights=weights.double())
    assert torch.equal(places, copies[kmeans_seed(features[copies], uniform, metric=metric)])


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_only_proportions_of_weights_matter(scale: float) -> None:
    features, uniform = make_rows("random", 60, 5).float(), uniform_numbers(9, 4)
    weights = make_weights("any", 60)
    assert weights is not None
    places = kmeans_seed(features, uniform, weights=weights)
    assert torch.equal(kmeans_seed(features, uniform, weights=scale * weights), places)
