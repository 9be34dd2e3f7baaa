"""Hand cases, properties and edges of the two halves of a k-means iteration."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import kmeans_assign, reference
from deepclust_ext.ops import kmeans_step, kmeans_update
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import (
    DEVICES,
    EMULATED,
    assert_error_budget,
    peak_extra_megabytes,
    results_by_instruction_set,
    same_bits,
)

METRICS = ["euclidean", "cosine"]
KINDS = ["random", "clusters", "offset", "collapsed", "far apart"]


def make_batch(kind: str, count: int, clusters: int, depth: int) -> tuple[Tensor, Tensor]:
    """Return features and centroids in float64, in all kinds of which products tell more or less."""
    generator = torch.Generator().manual_seed(count)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, depth, generator=generator, dtype=torch.float64)

    if kind == "random":
        return normal(count), normal(clusters)
    if kind == "clusters":
        centers = normal(clusters)
        return centers[torch.randint(clusters, (count,), generator=generator)] + 0.1 * normal(count), centers
    if kind == "offset":
        return 1000 + normal(count), 1000 + normal(clusters)
    if kind == "collapsed":  # all scores are equal to rounding
        return 1 + 1e-4 * normal(count), 1 + 1e-4 * normal(clusters)
    features = normal(count)  # two groups, far from the mean of all: the rounding of a score is large
    features[::2] += 1e4
    return features, features[torch.arange(clusters) % count] + 0.1 * normal(clusters)


def distances_to(features: Tensor, centroids: Tensor, metric: str) -> Tensor:
    """Return all distances (N, K) in float64, of the values as the op sees them."""
    rows, columns = features.double().cpu(), centroids.double().cpu()
    if metric == "cosine":
        rows, columns = (torch.nn.functional.normalize(x, dim=1) for x in (rows, columns))
        return 1 - rows @ columns.T
    return (rows[:, None] - columns).square().sum(2).sqrt()


@pytest.mark.usefixtures("backend")
def test_hand_case() -> None:
    features = torch.tensor([[0.0, 1.0], [3.0, 4.0], [-2.0, 0.0], [4.0, 3.0]])
    centroids = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 8.0]])
    labels, distances = kmeans_assign(features, centroids)
    assert labels.tolist() == [0, 1, 0, 1]
    assert distances.tolist() == pytest.approx([1, 4, 2, 10**0.5])
    labels, distances = kmeans_assign(features, centroids, metric="cosine")
    assert labels.tolist() == [2, 2, 0, 1]
    assert distances.tolist() == pytest.approx([0, 0.2, 1, 0.2], abs=1e-7)


@pytest.mark.usefixtures("backend")
def test_hand_case_of_update() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 9.0]])
    sums, counts = kmeans_update(features, torch.tensor([2, 0, 2, -1, 3]), 3)
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8]]
    assert counts.tolist() == [1, 0, 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_nearest(kind: str, dtype: torch.dtype, metric: str, device: str) -> None:
    features, centroids = (x.to(dtype).to(device) for x in make_batch(kind, 257, 70, 24))
    labels, distances = kmeans_assign(features, centroids, metric=metric)
    exact = distances_to(features, centroids, metric)
    chosen = exact.gather(1, labels.cpu()[:, None]).squeeze(1)
    # Rows are normalized in their own dtype, which moves them by its rounding; differences are exact to theirs.
    rounding = torch.finfo(dtype).eps * (4 if metric == "cosine" else 2) + 1e-15
    absolute = rounding if metric == "cosine" else 0
    torch.testing.assert_close(chosen, exact.amin(1), rtol=rounding, atol=absolute)
    torch.testing.assert_close(distances.double().cpu(), chosen, rtol=10 * rounding, atol=absolute)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 20), st.integers(0, 10**6))
def test_exact_on_integers_with_many_ties(count: int, clusters: int, depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, centroids = (torch.randint(-2, 3, (n, depth), generator=generator).float() for n in (count, clusters))
    labels, distances = kmeans_assign(features, centroids)
    squared = (features[:, None] - centroids).square().sum(2)
    assert torch.equal(labels, squared.argmin(1))
    assert torch.equal(distances, squared.amin(1).double().sqrt().float())


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_permuting_the_centroids_permutes_the_labels(count: int, clusters: int, metric: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, centroids = (torch.randn(n, 12, generator=generator) for n in (count, clusters))
    order = torch.randperm(clusters, generator=generator)
    labels, distances = kmeans_assign(features, centroids, metric=metric)
    permuted, same = kmeans_assign(features, centroids[order], metric=metric)
    assert torch.equal(order[permuted], labels)
    assert torch.equal(same, distances)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_equal_centroids_give_the_lowest_index(metric: str, device: str) -> None:
    features, centroids = (x.float().to(device) for x in make_batch("random", 100, 30, 9))
    expected, distances = kmeans_assign(features, centroids, metric=metric)
    labels, same = kmeans_assign(features, centroids.repeat(4, 1), metric=metric)
    assert torch.equal(labels, expected)
    assert torch.equal(same, distances)


def test_more_centroids_than_a_16_bit_index_holds() -> None:
    centroids = torch.arange(70_000, dtype=torch.float32)[:, None]
    features = torch.tensor([[3.2], [32_767.9], [65_535.6], [69_999.0], [1e6]])
    labels, distances = kmeans_assign(features, centroids)
    assert labels.tolist() == [3, 32_768, 65_536, 69_999, 69_999]
    assert distances.tolist() == pytest.approx([0.2, 0.1, 0.4, 0, 930_001], abs=0.01)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, s) for s in (1e-40, 1e-30, 1e-19, 1e19, 1e30, 1e37)]
    + [(torch.float64, s) for s in (1e-300, 1e-160, 1e160, 1e300)],
    ids=str,
)
@pytest.mark.parametrize("depth", [3, 70])
def test_any_finite_scale(dtype: torch.dtype, scale: float, depth: int, device: str) -> None:
    features, centroids = (
        (torch.randn(count, depth, dtype=torch.float64) * scale).to(dtype).to(device) for count in (40, 9)
    )
    exact = distances_to(features.double() / scale, centroids.double() / scale, "euclidean")
    labels, distances = kmeans_assign(features, centroids)
    assert torch.equal(labels.cpu(), exact.argmin(1))
    torch.testing.assert_close(distances.double().cpu() / scale, exact.amin(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_one_centroid_far_off_the_range(device: str) -> None:
    features, centroids = (x.float().to(device) for x in make_batch("random", 40, 20, 5))
    centroids[3] = 1e30
    features[7] = 1.001e30
    labels, distances = kmeans_assign(features, centroids)
    expected = distances_to(features, centroids, "euclidean")
    assert torch.equal(labels.cpu(), expected.argmin(1))
    assert int(labels[7]) == 3
    torch.testing.assert_close(distances.double().cpu(), expected.amin(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_rows_and_centroids_without_length(dtype: torch.dtype, device: str) -> None:
    """Cosines with a zero vector are 0, so that it is nearer than what points away, and no nearer than the first."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0], [-1.0, -2.0]], dtype=dtype, device=device)
    centroids = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 1.0]], dtype=dtype, device=device)
    labels, distances = kmeans_assign(features, centroids, metric="cosine")
    assert labels.tolist() == [0, 0, 1, 1]
    assert distances.tolist() == pytest.approx([1, 1 - 0.5**0.5, 1, 1], abs=torch.finfo(dtype).eps)


@pytest.mark.usefixtures("backend")
def test_norms_below_the_bound_count_as_the_bound() -> None:
    features = torch.tensor([[3e-13, 4e-13], [-1.0, 0.0]], dtype=torch.float64)
    centroids = torch.tensor([[-1.0, 0.0], [-1e-13, 1e-13], [4.0, 3.0]], dtype=torch.float64)
    labels, distances = kmeans_assign(features, centroids, metric="cosine")
    assert labels.tolist() == [2, 0]
    assert distances.tolist() == pytest.approx([1 - 0.48, 0])
    labels, distances = kmeans_assign(features[1:], centroids[1:], metric="cosine")
    assert labels.tolist() == [0]
    assert distances.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.usefixtures("backend")
def test_non_finite_rows_and_centroids(value: float, metric: str) -> None:
    features, centroids = (x.float() for x in make_batch("random", 90, 33, 10))
    expected = kmeans_assign(features, centroids, metric=metric)
    features[77, 3] = value
    for ours, plain in zip(kmeans_assign(features, centroids, metric=metric), expected, strict=True):
        others = torch.arange(90) != 77
        torch.testing.assert_close(ours[others], plain[others])
        assert int(ours[77].nan_to_num(-1)) == -1
    centroids[32, 9] = value
    labels, distances = kmeans_assign(features, centroids, metric=metric)
    assert labels.tolist() == [-1] * 90
    assert bool(distances.isnan().all())


def assert_update_within_budget(features: Tensor, labels: Tensor, clusters: int) -> None:
    sums, counts = kmeans_update(features, labels, clusters)
    naive, expected = reference.kmeans_update(features, labels, clusters)
    truth, _ = reference.kmeans_update(features.double(), labels, clusters)
    assert torch.equal(counts, expected)
    assert_error_budget(sums, naive, truth, "sums")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "clusters", "depth"), [(0, 3, 2), (1, 1, 1), (7, 9, 33), (1500, 5, 17), (3000, 40, 8), (2100, 300, 3)]
)
def test_sums_and_counts(count: int, clusters: int, depth: int, dtype: torch.dtype, device: str) -> None:
    features = torch.randn(count, depth, dtype=torch.float64).to(dtype).to(device)
    labels = torch.randint(-2, clusters + 2, (count,), device=device)
    assert_update_within_budget(features, labels, clusters)
    assert_update_within_budget(features.T.contiguous().T, torch.stack([labels, labels], 1)[:, 0], clusters)


@pytest.mark.parametrize("device", DEVICES)
def test_one_cluster_of_many_rows_keeps_its_digits(device: str) -> None:
    features = torch.rand(200_000, 2, device=device) + 1
    sums, _ = kmeans_update(features, torch.zeros(200_000, dtype=torch.int64, device=device), 1)
    torch.testing.assert_close(sums[0].double(), features.double().sum(0), rtol=2e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_sums_have_the_same_bits_on_any_thread_count(device: str) -> None:
    features, labels = torch.randn(9000, 20, device=device), torch.randint(-1, 30, (9000,), device=device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(kmeans_update(features, labels, 30))
        for sums, counts in results[1:]:
            assert same_bits(sums, results[0][0])
            assert torch.equal(counts, results[0][1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads its own copies
def test_update_is_an_op_like_the_others() -> None:
    features, labels = torch.randn(20, 3, requires_grad=True), torch.randint(4, (20,))
    torch.library.opcheck(torch.ops.deepclust_ext.kmeans_update.default, (features, labels, 4))
    eager = kmeans_update(features, labels, 4)
    compiled = torch.compile(kmeans_update, fullgraph=True)(features, labels, 4)
    assert all(map(torch.equal, compiled, eager))
    assert not eager[0].requires_grad
    assert [x.shape for x in kmeans_update(features.to("meta"), labels.to("meta"), 4)] == [(4, 3), (4,)]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("count", "gap"), [(96, 1e-3), (640, 1e-3), (64, 1e-5)])
def test_scores_that_say_nothing_at_first(count: int, gap: float, together: bool) -> None:
    """Among more centroids than are looked at in one go, pairs, side by side or far apart, that differ by little."""
    generator = torch.Generator().manual_seed(count)
    centers = torch.randn(1200, 24, generator=generator)
    pairs = [centers, centers + gap * torch.randn(1200, 24, generator=generator)]
    centroids = torch.stack(pairs, 1).reshape(2400, 24) if together else torch.cat(pairs)
    features = centers[torch.randint(1200, (count,), generator=generator)]
    features[::2] += 0.1 * torch.randn(count // 2, 24, generator=generator)
    labels, distances = kmeans_assign(features, centroids)
    exact = distances_to(features, centroids, "euclidean")
    chosen = exact.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, exact.amin(1), rtol=1e-6, atol=1e-7)
    assert (labels != exact.argmin(1)).sum() <= 1
    torch.testing.assert_close(distances.double(), chosen, rtol=1e-6, atol=1e-7)


FEATURES, CENTROIDS, LABELS = torch.ones(4, 2), torch.ones(3, 2), torch.zeros(4, dtype=torch.int64)
DTYPES = "float16, bfloat16, float32 or float64"
SHAPE = r"expected shape \((N|K), D\) with (D|K) > 0, got"
BAD_INPUTS: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception], str]] = [
    (kmeans_assign, ([1.0], CENTROIDS), TypeError, "features: expected a tensor, got list"),
    (kmeans_assign, (LABELS, CENTROIDS), TypeError, f"features: expected dtype {DTYPES}, got torch.int64"),
    (kmeans_assign, (torch.ones(4), CENTROIDS), ValueError, rf"features: {SHAPE} \(4,\)"),
    (kmeans_assign, (FEATURES[:, :0], CENTROIDS[:, :0]), ValueError, rf"features: {SHAPE} \(4, 0\)"),
    (kmeans_assign, (FEATURES, None), TypeError, "centroids: expected a tensor, got NoneType"),
    (kmeans_assign, (FEATURES, torch.ones(3, 5)), ValueError, r"centroids: expected shape \(any .*, 2\), got \(3, 5\)"),
    (kmeans_assign, (FEATURES, torch.ones(0, 2)), ValueError, rf"centroids: {SHAPE} \(0, 2\)"),
    (kmeans_assign, (FEATURES, CENTROIDS.double()), TypeError, "centroids: expected dtype .*float32 like features, .*"),
    (kmeans_assign, (FEATURES, CENTROIDS.to("meta")), ValueError, "centroids: expected device cpu .*, got meta"),
    (partial(kmeans_assign, metric="dot"), (FEATURES, CENTROIDS), ValueError, "metric: expected .*, got 'dot'"),
    (kmeans_step, (None, CENTROIDS), TypeError, "features: expected a tensor, got NoneType"),
    (partial(kmeans_step, metric="dot"), (FEATURES, CENTROIDS), ValueError, "metric: expected .*, got 'dot'"),
    (kmeans_update, (None, LABELS, 3), TypeError, "features: expected a tensor, got NoneType"),
    (kmeans_update, (FEATURES, [0], 3), TypeError, "labels: expected a tensor, got list"),
    (kmeans_update, (FEATURES, LABELS.int(), 3), TypeError, "labels: expected dtype torch.int64, got torch.int32"),
    (kmeans_update, (FEATURES, LABELS[:3], 3), ValueError, r"labels: expected shape \(4,\), one .*, got \(3,\)"),
    (kmeans_update, (FEATURES, LABELS.to("meta"), 3), ValueError, "labels: expected device cpu .*, got meta"),
    (kmeans_update, (FEATURES, LABELS, 1.5), TypeError, "num_clusters: expected an integer, got 1.5"),
    (kmeans_update, (FEATURES, LABELS, 0), ValueError, "num_clusters: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), BAD_INPUTS)
@pytest.mark.usefixtures("backend")
def test_bad_input_is_named(
    function: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        function(*arguments)


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [
        ("assign", (torch.ones(4), CENTROIDS), ValueError, r"features: expected shape \(N, D\) with D > 0, got \[4\]"),
        ("assign", (LABELS[:, None], CENTROIDS), TypeError, "features: expected dtype float16, .*, got Long"),
        ("assign", (FEATURES, torch.ones(0, 2)), ValueError, r"centroids: expected shape \(K, D\) with K > 0, got .*"),
        ("assign", (FEATURES, torch.ones(3, 5)), ValueError, r"centroids: expected shape \[3, 2\], got \[3, 5\]"),
        ("assign", (FEATURES, CENTROIDS.double()), TypeError, "centroids: expected dtype Float like features, .*"),
        ("assign", (FEATURES, CENTROIDS, "dot"), ValueError, "metric: expected 'euclidean' or 'cosine', got 'dot'"),
        ("step", (FEATURES, torch.ones(0, 2)), ValueError, r"centroids: expected shape \(K, D\) with K > 0, got .*"),
        ("update", (FEATURES, LABELS[:3], 3), ValueError, r"labels: expected shape \[4\], .*, got \[3\]"),
        ("update", (FEATURES, LABELS.int(), 3), TypeError, "labels: expected dtype Long, got Int"),
        ("update", (FEATURES, LABELS, 0), ValueError, "num_clusters: expected at least 1, got 0"),
    ],
)
def test_calls_around_the_python_function_are_checked_too(
    op: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(torch.ops.deepclust_ext, f"kmeans_{op}")(*arguments)


def test_meta_tensors_give_shapes() -> None:
    labels, distances = kmeans_assign(FEATURES.half().to("meta"), CENTROIDS.half().to("meta"))
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)
    assert (distances.shape, distances.dtype) == ((4,), torch.float16)


@pytest.mark.skipif(sys.platform != "linux" or EMULATED, reason="peak memory of the CPU kernels, as Linux counts it")
def test_memory_does_not_grow_with_rows_times_centroids() -> None:
    setup = "x, c = torch.randn(40000, 8), torch.randn(500, 8)"  # N x K would be 80 MB
    call = "deepclust_ext.kmeans_assign({}, c)"
    assert peak_extra_megabytes(setup, call.format("x[:100]"), call.format("x")) < 5


@pytest.mark.skipif(EMULATED, reason="the emulated device has one instruction set")
def test_instruction_sets_agree() -> None:
    script = (
        "import torch\n"
        "from deepclust_ext.ops import kmeans_step, kmeans_update\n"
        "from tests.ops.test_kmeans_assign import KINDS, METRICS, make_batch\n"
        "for kind in KINDS:\n"
        "  for dtype in (torch.float32, torch.float64):\n"
        "    features, centroids = (x.to(dtype) for x in make_batch(kind, 300, 45, 70))\n"
        "    for metric in METRICS:\n"
        "      labels, distances = deepclust_ext.kmeans_assign(features, centroids, metric=metric)\n"
        "      assert torch.equal(kmeans_step(features, centroids, metric=metric)[0], labels)\n"
        "      sums, counts = kmeans_update(features, labels, 45)\n"
        "      print(*(float(x).hex() for y in (labels, distances, sums) for x in y.flatten()))\n"
    )
    # Without fused multiply-adds only to rounding.
    for ours, other in zip(*results_by_instruction_set(script), strict=True):
        assert sum(map(float.__ne__, ours[:300], other[:300])) <= 2  # labels
