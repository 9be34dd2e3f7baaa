"""Hand cases, draws, weights, edges and messages of kmeans_seed, and the loop over kmeans_assign that it replaces."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from deepclust_ext import kmeans_assign, kmeans_seed, reference
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import DEVICES, EMULATED, peak_extra_megabytes, results_by_instruction_set

METRICS = ["euclidean", "cosine"]
KINDS = ["random", "clusters", "offset", "collapsed", "far apart", "repeated", "zeros", "short", "large", "unequal"]


def uniform_numbers(clusters: int, candidates: int, seed: int = 0) -> Tensor:
    return torch.rand(clusters, candidates, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_rows(kind: str, count: int, depth: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return rows of one of KINDS, of which bounds on distances tell more, less or nothing."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, depth, generator=generator, dtype=torch.float64)
    if kind == "clusters":
        rows = 0.1 * rows + 5 * torch.randn(8, depth, generator=generator, dtype=torch.float64)[torch.arange(count) % 8]
    elif kind == "offset":
        rows += 100
    elif kind == "collapsed":
        rows = 1 + 1e-4 * rows
    elif kind == "far apart":
        rows[::2] += 1e4
    elif kind == "repeated":
        rows = rows[torch.randint(max(count // 5, 1), (count,), generator=generator)]
    elif kind == "zeros":
        rows[torch.rand(count, generator=generator) < 0.3] = 0
    elif kind == "short":  # norms on both sides of 1e-12
        rows *= 10.0 ** torch.randint(-14, -10, (count, 1), generator=generator)
    elif kind == "large":
        rows *= 1e3 if dtype == torch.float16 else 1e16
    elif kind == "unequal":
        rows *= 10.0 ** torch.randint(-8, 4, (count, 1), generator=generator)
    return rows.to(dtype)


def make_weights(kind: str, count: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(count)
    if kind == "whole":
        return torch.randint(4, (count,), generator=generator).double() + (torch.arange(count) == count // 2)
    return torch.rand(count, generator=generator, dtype=torch.float64) + 1e-9 if kind == "any" else None


def draw(shares: Tensor, uniform: Tensor) -> tuple[Tensor, float]:
    """Return the places that numbers fall on, and the scale by which shares become integers."""
    scale = 2.0 ** (62 - len(shares).bit_length()) / max(float(shares.max()), 1e-280)
    running = (shares * scale).long().cumsum(0)
    exceeding = running > (uniform[:, None] * running[-1]).long()
    return torch.where(exceeding.any(1), exceeding.int().argmax(1), len(shares) - 1), scale


def by_assignments(
    features: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C)
    metric: str = "euclidean",
    weights: Tensor | None = None,  # (N,)
) -> Tensor:
    """Do as the contract says, by a call of kmeans_assign for each candidate."""
    rows = features.to(torch.promote_types(features.dtype, torch.float32))

    def costs_to(place: Tensor) -> Tensor:
        distances = kmeans_assign(rows, rows[place, None], metric=metric)[1].double()
        costs = distances.clamp(min=0) if metric == "cosine" else distances.square()
        return costs if weights is None else weights * costs

    first = uniform[0, 0] * len(rows) if weights is None else draw(weights, uniform[0, :1])[0][0]
    places = [first.long()]
    least = costs_to(places[0])
    for numbers in uniform[1:]:
        candidates, scale = draw(least, numbers)
        left = torch.stack([torch.minimum(costs_to(place), least) for place in candidates])
        best = (left * scale).long().sum(1).argmin()  # the first one of equal sums
        least = left[best]
        places.append(candidates[best])
    return torch.stack(places)


@pytest.mark.usefixtures("backend")
def test_hand_case() -> None:
    """Costs after the first row are 0, 1, 100, 121 and 900, of which 0.05 draws the third and 0.15 the fourth row."""
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    for numbers, expected in (
        ([0.05, 0.15, 0.0], 3),  # rows 2, 3 and 1 leave 402, 363 and 883
        ([0.05, 0.15, 0.5], 4),  # row 4 leaves 222
        ([0.0, 0.0005, 0.0008], 1),
        ([0.0, 0.0005, 0.001], 2),
    ):
        places = kmeans_seed(features, torch.tensor([[0.1, 0.7, 0.9], numbers], dtype=torch.float64))
        assert places.tolist() == [0, expected]
        assert places.dtype == torch.int64


@pytest.mark.usefixtures("backend")
def test_hand_case_of_cosines() -> None:
    """Distances from (2, 0) are 0, 1, 2 and 0.4; rows 1, 2 and 3 as second center leave 1.2, 1.4 and 1.8."""
    features = torch.tensor([[2.0, 0.0], [0.0, 7.0], [-1.0, 0.0], [3.0, 4.0]])
    for numbers, expected in (([0.2], 1), ([0.5], 2), ([0.9], 3), ([0.9, 0.5, 0.2], 1)):
        uniform = torch.zeros(2, len(numbers), dtype=torch.float64)
        uniform[1] = torch.tensor(numbers)
        assert kmeans_seed(features, uniform, metric="cosine").tolist() == [0, expected]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in KINDS
        for dtype in SUPPORTED_DTYPES
        # The device widens half-precision rows once, and goes on as with those of float32.
        if not EMULATED or dtype.itemsize > 2 or kind in ("random", "repeated")
    ],
    ids=str,
)
def test_chooses_as_single_assignments_do(kind: str, dtype: torch.dtype, metric: str, device: str) -> None:
    """Whatever excludes rows early, every distance that counts is that of kmeans_assign."""
    sizes = [(1, 1, 1, 1), (5, 3, 7, 2), (37, 10, 16, 5)]
    for count, depth, clusters, candidates in sizes if EMULATED else [*sizes, (131, 33, 12, 7)]:
        features, uniform = make_rows(kind, count, depth, dtype).to(device), uniform_numbers(clusters, candidates)
        for weighted in ("equal", "whole") if EMULATED else ("equal", "whole", "any"):
            weights = make_weights(weighted, count)
            weights = weights if weights is None else weights.to(device)
            places = kmeans_seed(features, uniform.to(device), metric=metric, weights=weights)
            expected = by_assignments(features, uniform.to(device), metric, weights)
            assert torch.equal(places, expected), f"{count} x {depth}, weights {weighted}"


@given(
    st.integers(1, 80),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(SUPPORTED_DTYPES),
    st.integers(0, 10**6),
)
def test_exact_on_integers_with_many_ties(
    count: int, depth: int, clusters: int, candidates: int, weighted: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-2, 3, (count, depth), generator=generator).to(dtype)
    weights = make_weights("whole", count) if weighted else None
    uniform = uniform_numbers(clusters, candidates, seed)
    expected = reference.kmeans_seed(features, uniform, weights=weights)
    assert torch.equal(kmeans_seed(features, uniform, weights=weights), expected)
    assert torch.equal(by_assignments(features, uniform, weights=weights), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_one_row_of_each_of_clusters_far_apart(dtype: torch.dtype, metric: str, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(8, (300,), generator=generator)
    features = 0.01 * torch.randn(300, 8, generator=generator, dtype=torch.float64) + torch.eye(8)[groups]
    features, uniform = features.to(dtype).to(device), uniform_numbers(8, 4).to(device)
    places = kmeans_seed(features, uniform, metric=metric)
    assert sorted(groups[places.cpu()].tolist()) == [*range(8)]
    assert torch.equal(places, reference.kmeans_seed(features.double(), uniform, metric=metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("candidates", [1, 2, 7, 24])
def test_same_places_on_any_number_of_threads(candidates: int, metric: str) -> None:
    count = 700 if EMULATED else 5000
    features, uniform = make_rows("random", count, 20).float(), uniform_numbers(5 if EMULATED else 12, candidates)
    for weights in (None, make_weights("any", count)):
        threads, results = torch.get_num_threads(), []
        try:
            for number in (1, 2) if EMULATED else (1, 2, 3, 7):
                torch.set_num_threads(number)
                results.append(kmeans_seed(features, uniform, metric=metric, weights=weights))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(other, results[0]) for other in results[1:])
        assert torch.equal(results[0], by_assignments(features, uniform, metric, weights))


@pytest.mark.usefixtures("backend")
def test_one_row_is_chosen_again_and_again() -> None:
    for weights in (None, torch.full((1,), 0.3).double()):
        assert kmeans_seed(torch.randn(1, 3), uniform_numbers(4, 3), weights=weights).tolist() == [0] * 4


@pytest.mark.parametrize("metric", METRICS)
def test_more_centers_than_distinct_rows(metric: str) -> None:
    """First one of each, then, where all costs are 0, the last row."""
    features = make_rows("random", 5, 3).float().repeat(20, 1)
    places = kmeans_seed(features, uniform_numbers(9, 3), metric=metric).tolist()
    assert sorted(place % 5 for place in places[:5]) == [*range(5)]
    assert places[5:] == [99] * 4


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7])
def test_rows_that_are_all_equal(value: float) -> None:
    features, uniform = torch.full((40, 6), value), torch.full((3, 2), 0.3).double()
    for weights in (None, torch.ones(40).double()):
        assert kmeans_seed(features, uniform, weights=weights).tolist() == [12, 39, 39]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 700, 1299])
def test_a_row_that_is_not_finite_spoils_everything(where: int, value: float, metric: str) -> None:
    features, weights = torch.randn(1300, 6), torch.ones(1300).double()
    features[where, 5] = value
    weights[where] = 0
    for given_weights in (None, weights):
        places = kmeans_seed(features, uniform_numbers(4, 3), metric=metric, weights=given_weights)
        assert places.tolist() == [-1] * 4


@pytest.mark.parametrize("metric", METRICS)
def test_layout_of_numbers_and_weights_does_not_matter(metric: str) -> None:
    features, uniform, weights = make_rows("random", 70, 5).float(), uniform_numbers(8, 3), make_weights("any", 70)
    assert weights is not None
    places = kmeans_seed(features, uniform, metric=metric, weights=weights)
    strided = torch.stack([weights, torch.zeros(70).double()], dim=1)[:, 0]
    every_second = torch.stack([uniform, torch.ones_like(uniform)], dim=2)[..., 0]
    for numbers in (uniform.T.contiguous().T, every_second):
        assert torch.equal(kmeans_seed(features, numbers, metric=metric, weights=strided), places)
    equal = torch.ones(1).double().expand(70)
    alone = kmeans_seed(features, uniform, metric=metric, weights=equal.contiguous())
    assert torch.equal(kmeans_seed(features, uniform, metric=metric, weights=equal), alone)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["uniform", "weights"])
def test_numbers_and_weights_have_no_derivatives(name: str) -> None:
    features, uniform, weights = torch.randn(9, 3), uniform_numbers(3, 2), torch.rand(9).double()
    arguments: dict[str, Any] = {"features": features, "uniform": uniform, "weights": weights}
    places = kmeans_seed(**arguments)
    leaf = arguments[name].clone().requires_grad_()
    assert torch.equal(kmeans_seed(**arguments | {name: leaf}), places)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
        with pytest.raises(NotImplementedError, match="^kmeans_seed: has no forward-mode derivative"):
            kmeans_seed(**arguments | {name: dual})


FEATURES, UNIFORM = torch.ones(5, 3), torch.zeros(2, 4).double()
GOOD_CALL: dict[str, Any] = {"features": FEATURES, "uniform": UNIFORM}
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": [1.0]}, TypeError, "features: expected a tensor, got list"),
    ({"features": torch.ones(3)}, ValueError, r"features: expected shape \(N, D\) with N > 0 and D > 0, got \(3,\)"),
    ({"features": torch.ones(0, 3)}, ValueError, r"features: expected shape \(N, D\) with N > 0 .*, got \(0, 3\)"),
    ({"features": torch.ones(3, 0)}, ValueError, r"features: expected shape \(N, D\) with N > 0 .*, got \(3, 0\)"),
    ({"features": FEATURES.int()}, TypeError, "features: expected dtype float16, .*float64, got torch.int32"),
    ({"uniform": None}, TypeError, "uniform: expected a tensor, got NoneType"),
    ({"uniform": UNIFORM.float()}, TypeError, "uniform: expected dtype torch.float64, got torch.float32"),
    ({"uniform": UNIFORM[0]}, ValueError, r"uniform: expected shape \(K, C\) with K > 0 and C > 0, got \(4,\)"),
    ({"uniform": UNIFORM[:0]}, ValueError, r"uniform: expected shape \(K, C\) with K > 0 and C > 0, got \(0, 4\)"),
    ({"uniform": UNIFORM[:, :0]}, ValueError, r"uniform: expected shape \(K, C\) with K > 0 .*, got \(2, 0\)"),
    ({"uniform": UNIFORM.to("meta")}, ValueError, "uniform: expected device cpu like features, got meta"),
    ({"metric": "dot"}, ValueError, "metric: expected 'euclidean' or 'cosine', got 'dot'"),
    ({"weights": [1.0]}, TypeError, "weights: expected a tensor, got list"),
    ({"weights": torch.ones(5)}, TypeError, "weights: expected dtype torch.float64, got torch.float32"),
    (
        {"weights": torch.ones(4).double()},
        ValueError,
        r"weights: expected shape \(5,\), one for each row of features, got \(4,\)",
    ),
    ({"weights": torch.ones(5, 1).double()}, ValueError, r"weights: expected shape \(5,\), one .*, got \(5, 1\)"),
    (
        {"weights": torch.ones(5, device="meta").double()},
        ValueError,
        "weights: expected device cpu like features, got meta",
    ),
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        kmeans_seed(**(GOOD_CALL | arguments))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (arguments, error)
        for arguments, error, message in BAD_CALLS
        if not message.endswith(("list", "NoneType"))  # refused by the schema
    ],
)
def test_bad_arguments_are_named_by_the_op_too(arguments: dict[str, Any], error: type[Exception]) -> None:
    (name,) = arguments
    with pytest.raises(error, match=f"^{name}: expected "):
        torch.ops.deepclust_ext.kmeans_seed(**(GOOD_CALL | arguments))


def test_meta_tensors_give_shapes() -> None:
    places = kmeans_seed(FEATURES.half().to("meta"), UNIFORM.to("meta"), weights=torch.ones(5, device="meta").double())
    assert (places.shape, places.dtype, places.device.type) == ((2,), torch.int64, "meta")


@pytest.mark.skipif(EMULATED, reason="the emulated device has one instruction set")
def test_instruction_sets_agree() -> None:
    script = (
        "import torch\n"
        "from tests.ops.test_kmeans_seed import KINDS, METRICS, by_assignments, make_rows, uniform_numbers\n"
        "for kind in KINDS:\n"
        "  for dtype in (torch.float32, torch.float64):\n"
        "    features, uniform = make_rows(kind, 300, 45, dtype), uniform_numbers(12, 7)\n"
        "    for metric in METRICS:\n"
        "      places = deepclust_ext.kmeans_seed(features, uniform, metric=metric)\n"
        "      assert torch.equal(places, by_assignments(features, uniform, metric))\n"
        "      print(*(float(x).hex() for x in places))\n"
    )
    # Without fused multiply-adds a draw that falls near a border, or nearly a tie, may go the other way.
    lines = list(zip(*results_by_instruction_set(script), strict=True))
    assert sum(ours != other for ours, other in lines) <= 1


@pytest.mark.skipif(EMULATED, reason="the emulated device takes minutes for so many elements")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer multiplies memory")
def test_memory_does_not_grow_with_rows_times_centers() -> None:
    """40000 rows take 3 MB, normalized, as integers and what is known of each; N x K would be 80 MB."""
    extra = peak_extra_megabytes(
        "x, u = torch.randn(40000, 8), torch.rand(500, 8, dtype=torch.float64)",
        "deepclust_ext.kmeans_seed(x[:100], u[:9], metric='cosine')",
        "deepclust_ext.kmeans_seed(x, u, metric='cosine')",
    )
    assert extra < 5
