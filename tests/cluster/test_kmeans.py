"""KMeans: against scikit-learn's on the same starts, its own invariants, streams, and errors that say what is wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans as PeerKMeans
from sklearn.cluster import MiniBatchKMeans as PeerMiniBatchKMeans
from torch import Tensor
from torch.nn.functional import normalize

import deepclust_ext
from deepclust_ext.cluster import KMeans
from deepclust_ext.cluster.steps import exact_sum, fill_empty, seed_centers
from deepclust_ext.data import Digits
from tests.layout import imported_modules

METRICS = ("euclidean", "cosine")


def blobs(num_clusters: int = 6, rows: int = 300, dims: int = 8, spread: float = 0.3) -> Tensor:
    """Rows around random centers, row i in cluster i modulo their number; the same at every call."""
    generator = torch.Generator().manual_seed(7)
    centers = 5 * torch.randn(num_clusters, dims, generator=generator)
    return centers[torch.arange(rows) % num_clusters] + spread * torch.randn(rows, dims, generator=generator)


def scans() -> Tensor:
    """The digits with a little noise, since between whole numbers distances tie."""
    pixels = Digits().images.flatten(1)
    return pixels + 0.01 * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def set_threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def state(kmeans: KMeans) -> tuple[list[Any], list[int], float, int]:
    return kmeans.cluster_centers_.tolist(), kmeans.labels_.tolist(), kmeans.inertia_, kmeans.n_iter_


def test_same_start_same_result_as_scikit_learn(backend: str) -> None:
    rows = scans()
    ours = KMeans(10, init=rows[:10]).fit(rows)
    peer = PeerKMeans(10, init=rows[:10].numpy(), n_init=1).fit(rows.numpy())
    assert ours.labels_.tolist() == peer.labels_.tolist()
    assert ours.inertia_ == pytest.approx(peer.inertia_, rel=1e-5)
    assert ours.n_iter_ == peer.n_iter_
    torch.testing.assert_close(ours.cluster_centers_, torch.from_numpy(peer.cluster_centers_))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_stops_after_max_iter_as_scikit_learn_does(iterations: int) -> None:
    rows = scans()
    ours = KMeans(10, init=rows[:10], max_iter=iterations).fit(rows)
    peer = PeerKMeans(10, init=rows[:10].numpy(), n_init=1, max_iter=iterations).fit(rows.numpy())
    assert ours.n_iter_ == peer.n_iter_ == iterations
    assert ours.inertia_ == pytest.approx(peer.inertia_, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_own_starts_are_as_good_as_scikit_learn_s(seed: int) -> None:
    rows = scans()
    ours = KMeans(10, n_init=10, random_state=seed).fit(rows)
    peer = PeerKMeans(10, n_init=10, random_state=seed).fit(rows.numpy())
    assert ours.inertia_ <= 1.01 * peer.inertia_


def test_one_start_is_as_good_as_scikit_learn_s_in_the_mean() -> None:
    rows = scans()
    ours = np.mean([KMeans(10, random_state=seed).fit(rows).inertia_ for seed in range(20)])
    peer = np.mean([PeerKMeans(10, n_init=1, random_state=seed).fit(rows.numpy()).inertia_ for seed in range(20)])
    assert ours <= 1.01 * peer


def test_greedy_seeds_are_in_different_clusters() -> None:
    rows = blobs(20, 1000)
    for metric in METRICS:
        for seed in range(5):
            seeds = seed_centers(rows, 20, metric, torch.Generator().manual_seed(seed))
            index = (rows.unsqueeze(1) == seeds).all(dim=2).int().argmax(dim=0)
            assert len(set((index % 20).tolist())) >= 19  # by cosine two clusters may look alike


@given(
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(METRICS),
    st.sampled_from(["k-means++", "k-means||", "random"]),
    st.sampled_from([None, 1, 7]),
)
def test_invariants(
    seed: int, rows: int, dims: int, clusters: int, metric: str, init: str, batch_size: int | None
) -> None:
    # Small integers: many equal rows, rows of zeros, distances that tie.
    features = torch.randint(-2, 3, (rows, dims), generator=torch.Generator().manual_seed(seed)).double()
    clusters = min(clusters, rows)
    kmeans = KMeans(
        clusters, metric=metric, init=init, n_init=2, tol=0, max_iter=50, batch_size=batch_size, random_state=seed
    ).fit(features)
    centers, labels = kmeans.cluster_centers_, kmeans.labels_
    assert centers.isfinite().all()
    assert labels.shape == (rows,)
    assert 0 <= int(labels.min()) <= int(labels.max()) < clusters
    unit = normalize(features, dim=1) if metric == "cosine" else features
    distances = 1 - unit @ centers.T if metric == "cosine" else torch.cdist(unit, centers).square()
    assert kmeans.inertia_ == pytest.approx(float(distances.amin(dim=1).sum()), abs=1e-6)
    torch.testing.assert_close(distances.gather(1, labels[:, None]).squeeze(1), distances.amin(dim=1))
    if metric == "cosine":
        norms = centers.norm(dim=1)
        assert ((norms - 1).abs().lt(1e-9) | norms.eq(0)).all()  # a center at 0 is a row of zeros
    elif batch_size is None and kmeans.n_iter_ < 50:
        for cluster in labels.unique():
            torch.testing.assert_close(centers[cluster], features[labels == cluster].mean(dim=0))
    if batch_size is None and metric == "euclidean" and kmeans.n_iter_ < 50:
        assert len(labels.unique()) == min(clusters, len(features.unique(dim=0)))


def test_cosine_is_spherical_kmeans(backend: str) -> None:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(2)).double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    centers = unit[:5]
    for _ in range(8):
        labels = (unit @ centers.T).argmax(dim=1)
        sums = torch.stack([unit[labels == cluster].sum(dim=0) for cluster in range(5)])
        centers = sums / sums.norm(dim=1, keepdim=True)
    scaled = rows * torch.rand(400, 1).double().add(0.1)
    kmeans = KMeans(5, metric="cosine", init=rows[:5], max_iter=8, tol=0).fit(scaled)
    torch.testing.assert_close(kmeans.cluster_centers_, centers)
    cosines = unit @ centers.T
    assert torch.equal(kmeans.labels_, cosines.argmax(dim=1))
    assert kmeans.inertia_ == pytest.approx(float((1 - cosines.amax(dim=1)).sum()))


@pytest.mark.parametrize("batch_size", [None, 128])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_a_seed_gives_one_result_on_any_number_of_threads(
    set_threads: Any, metric: str, init: str, batch_size: int | None
) -> None:
    rows = torch.randn(2000, 24, generator=torch.Generator().manual_seed(4)) + 3
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        kmeans = KMeans(12, metric=metric, init=init, n_init=2, max_iter=3, batch_size=batch_size, random_state=3)
        results.append(state(kmeans.fit(rows)))
    assert results[1:] == results[:-1]


def test_without_a_seed_torch_s_generator_decides() -> None:
    rows = torch.randn(300, 4)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(state(KMeans(9, max_iter=2).fit(rows)))
    assert results[0] == results[1] != results[2]


def test_more_starts_keep_the_best() -> None:
    rows = scans()
    one, many = (KMeans(10, init="random", n_init=count, random_state=0).fit(rows) for count in (1, 8))
    assert many.inertia_ < one.inertia_


def test_empty_clusters_take_the_farthest_rows() -> None:
    rows = blobs(4, 200)
    init = torch.cat([rows[:2], torch.full((2, 8), 1e4)])  # the last two get no row
    kmeans = KMeans(4, init=init).fit(rows)
    # The four blobs may be found or not, but each cluster has rows.
    assert (kmeans.labels_.bincount(minlength=4) > 0).all()
    assert state(kmeans) == state(KMeans(4, init=init).fit(rows))


def test_fill_empty_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 4])
    distances = torch.tensor([3.0, 1.0, 5.0, 5.0, 0.0, 9.0])
    # Row 5 is its cluster's only one; of rows 2 and 3, equally far, the first goes to the first empty cluster.
    assert fill_empty(labels, distances, torch.tensor([3, 0, 2, 0, 1])).tolist() == [0, 0, 1, 3, 2, 4]
    # Nobody who stands on a center moves, nor the nearest row of a cluster.
    assert fill_empty(labels[3:5], distances[3:5], torch.tensor([0, 0, 2])).tolist() == [0, 2]
    assert fill_empty(labels[3:5], torch.zeros(2), torch.tensor([0, 0, 2])).tolist() == [2, 2]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_fewer_distinct_rows_than_clusters(metric: str, batch_size: int | None) -> None:
    rows = torch.tensor([[1.0, 2.0], [-3.0, 1.0]]).repeat(10, 1)
    kmeans = KMeans(5, metric=metric, batch_size=batch_size, random_state=0).fit(rows)
    assert kmeans.inertia_ == pytest.approx(0, abs=1e-5)
    assert kmeans.cluster_centers_.isfinite().all()
    assert len(kmeans.labels_.unique()) == 2


def test_an_offset_changes_nothing() -> None:
    rows = blobs()
    labels = KMeans(6, init=rows[:6]).fit_predict(rows)
    assert torch.equal(KMeans(6, init=rows[:6] + 1e4).fit_predict(rows + 1e4), labels)


def test_predict_transform_and_score() -> None:
    rows, other = blobs(), blobs(rows=50) + 0.1
    for metric in METRICS:
        kmeans = KMeans(6, metric=metric, random_state=0)
        labels = kmeans.fit_predict(rows)
        assert torch.equal(kmeans.predict(rows), labels)
        assert kmeans.score(rows) == pytest.approx(-kmeans.inertia_)
        distances = kmeans.transform(other)
        assert distances.shape == (50, 6)
        assert torch.equal(distances.argmin(dim=1), kmeans.predict(other))
        nearest = distances.amin(dim=1)
        inertia = nearest.square().sum() if metric == "euclidean" else nearest.sum()
        assert kmeans.score(other) == pytest.approx(-float(inertia), rel=1e-4)
        assert kmeans.predict(other[:0]).shape == (0,)


def test_arrays_tensors_and_half_precision() -> None:
    rows = blobs()
    kmeans = KMeans(6, random_state=0).fit(rows)
    assert state(KMeans(6, random_state=0).fit(rows.numpy())) == state(kmeans)
    assert KMeans(6, random_state=0).fit(rows.double().numpy()).cluster_centers_.dtype == np.float64
    half = KMeans(6, random_state=0).fit(rows.bfloat16())
    assert half.cluster_centers_.dtype == torch.float32
    assert state(half) == state(KMeans(6, random_state=0).fit(rows.bfloat16().float()))
    assert torch.equal(half.predict(rows.bfloat16()), half.labels_)
    needs_gradient = KMeans(6, random_state=0).fit(rows.clone().requires_grad_())
    assert not needs_gradient.cluster_centers_.requires_grad
    assert state(needs_gradient) == state(kmeans)


def test_partial_fit_is_scikit_learn_s() -> None:
    rows = scans()[:1600]
    init = rows[:10]
    ours = KMeans(10, init=init)
    peer = PeerMiniBatchKMeans(10, init=init.numpy(), n_init=1, reassignment_ratio=0)
    for batch in rows.split(100):
        ours.partial_fit(batch)
        peer.partial_fit(batch.numpy())
    torch.testing.assert_close(ours.cluster_centers_, torch.from_numpy(peer.cluster_centers_), rtol=1e-3, atol=1e-4)
    assert ours.predict(rows).tolist() == peer.predict(rows.numpy()).tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_partial_fit_finds_clusters_in_a_stream(metric: str) -> None:
    rows = blobs(rows=600)
    kmeans = KMeans(6, metric=metric, random_state=0)
    for batch in rows.split(60):
        kmeans.partial_fit(batch)
    labels = kmeans.predict(rows)
    assert len({(index % 6, label) for index, label in enumerate(labels.tolist())}) == 6
    kmeans.partial_fit(rows[:1])  # after the first batch any number of rows will do


def test_partial_fit_gives_a_row_to_a_cluster_that_never_had_one() -> None:
    kmeans = KMeans(3, init=torch.tensor([[0.0], [10.0], [1e4]]))
    kmeans.partial_fit(torch.tensor([[0.0], [2.0], [10.0], [16.0]]))
    assert kmeans.cluster_centers_.tolist() == [[1.0], [10.0], [16.0]]


def test_fit_in_batches_is_nearly_as_good() -> None:
    rows = scans()
    whole = KMeans(10, n_init=3, random_state=0).fit(rows)
    batches = KMeans(10, n_init=3, batch_size=200, random_state=0).fit(rows)
    assert batches.inertia_ <= 1.03 * whole.inertia_
    assert batches.labels_.shape == (1797,)
    assert torch.equal(batches.predict(rows), batches.labels_)


def test_fit_in_batches_reads_a_file(tmp_path: Path) -> None:
    rows = blobs()
    path = tmp_path / "rows.bin"
    rows.numpy().tofile(path)
    mapped = torch.from_file(str(path), size=rows.numel(), dtype=rows.dtype).view(rows.shape)
    in_memory = KMeans(6, batch_size=50, random_state=0).fit(rows)
    assert state(KMeans(6, batch_size=50, random_state=0).fit(mapped)) == state(in_memory)


@given(st.lists(st.just(0.0) | st.floats(1e-200, 1e300), min_size=1, max_size=50), st.randoms())
def test_exact_sum_is_the_same_in_any_order(values: list[float], shuffler: Any) -> None:
    total = float(exact_sum(torch.tensor(values, dtype=torch.float64)))
    assert total == pytest.approx(sum(values), rel=1e-12)
    shuffler.shuffle(values)
    assert float(exact_sum(torch.tensor(values, dtype=torch.float64))) == total


def test_errors_name_the_argument() -> None:
    rows = blobs()
    for arguments, message in (
        ({"n_clusters": 0}, "n_clusters: expected at least 1, got 0"),
        ({"metric": "l1"}, "metric: expected 'euclidean' or 'cosine', got 'l1'"),
        ({"init": "farthest"}, "init: expected 'k-means.* or a function, got 'farthest'"),
        ({"n_init": 0}, "n_init: expected at least 1, got 0"),
        ({"max_iter": 0}, "max_iter: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1, got -1"),
        ({"tol": -1.0}, "tol: expected a finite number of at least 0, got -1.0"),
    ):
        for name in ("fit", "partial_fit"):
            with pytest.raises(ValueError, match=message):
                getattr(KMeans(**arguments), name)(rows)
    with pytest.raises(TypeError, match="n_clusters: expected an integer, got 2.5"):
        KMeans(2.5).fit(rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n_init: expected an integer, got 'many'"):
        KMeans(2, n_init="many").fit(rows)
    for batch_size in (None, 100):
        with pytest.raises(ValueError, match="n_clusters: expected at most 300, the number of rows, got 301"):
            KMeans(301, batch_size=batch_size).fit(rows)
        for bad in (float("nan"), float("inf"), 1e30):
            broken = rows.clone()
            broken[7, 3] = bad
            with pytest.raises(ValueError, match="features: expected finite numbers within"):
                KMeans(4, batch_size=batch_size).fit(broken)
    with pytest.raises(ValueError, match="n_clusters: expected at most 2, the number of rows, got 4"):
        KMeans(4).partial_fit(rows[:2])
    with pytest.raises(ValueError, match=r"features: expected shape \(N, D\) with D > 0, got \(300,\)"):
        KMeans(4).fit(rows[:, 0])
    with pytest.raises(TypeError, match="features: expected real numbers, got torch.complex64"):
        KMeans(4).fit(rows * 1j)
    with pytest.raises(ValueError, match=r"init: expected shape \(4, 8\), got \(3, 8\)"):
        KMeans(4, init=rows[:3]).fit(rows)
    with pytest.raises(ValueError, match="init: expected finite numbers within"):
        KMeans(4, init=rows[:4] / 0).fit(rows)
    with pytest.raises(RuntimeError, match="expected fit or partial_fit to be called first"):
        KMeans(4).predict(rows)
    fitted = KMeans(4, random_state=0).fit(rows)
    for method in (fitted.predict, fitted.transform, fitted.score, KMeans(4).partial_fit(rows).partial_fit):
        with pytest.raises(ValueError, match="features: expected 8 columns, got 7"):
            method(rows[:, 1:])
    with pytest.raises(ValueError, match="features: expected finite numbers"):
        fitted.predict(rows / 0)


def test_the_package_clusters_without_scikit_learn() -> None:
    package = Path(deepclust_ext.__file__).parent
    imports = {module for path in package.rglob("*.py") for module in imported_modules(path, package)}
    assert any(module.startswith("sklearn") for module in imports)  # metrics and data are its
    assert not any(module.startswith("sklearn.cluster") for module in imports)
