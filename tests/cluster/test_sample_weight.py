"""Weighted k-means: a row of weight w is w rows, with copies of rows and scikit-learn's KMeans as the oracles."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as PeerKMeans
from sklearn.cluster import MiniBatchKMeans as PeerMiniBatchKMeans
from torch import Tensor

from deepclust_ext.cluster import KMeans


def blobs(rows: int = 240, dims: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    centers = 4 * torch.randn(6, dims, generator=generator)
    return centers[torch.arange(rows) % 6] + torch.randn(rows, dims, generator=generator)


ROWS = blobs()
COUNTS = torch.randint(0, 5, (240,), generator=torch.Generator().manual_seed(1))
COPIES = ROWS.repeat_interleave(COUNTS, dim=0)
REAL = torch.rand(240, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.01


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_whole_weights_are_copies(backend: str, seed: int, dtype: torch.dtype, metric: str) -> None:
    rows, copies = ROWS.to(dtype), COPIES.to(dtype)
    weighted = KMeans(6, metric=metric, random_state=seed).fit(rows, sample_weight=COUNTS)
    copied = KMeans(6, metric=metric, random_state=seed).fit(copies)
    torch.testing.assert_close(weighted.cluster_centers_, copied.cluster_centers_)
    assert weighted.cluster_centers_.dtype == dtype
    assert weighted.labels_.repeat_interleave(COUNTS).tolist() == copied.labels_.tolist()
    assert weighted.labels_.tolist() == copied.predict(rows).tolist()  # of weight 0 too
    assert weighted.inertia_ == pytest.approx(copied.inertia_, rel=1e-5)
    assert weighted.n_iter_ == copied.n_iter_
    assert weighted.score(rows, sample_weight=COUNTS) == pytest.approx(copied.score(copies), rel=1e-5)


@pytest.mark.parametrize("scale", [1, 1e-20, 1e30])
def test_a_start_ends_where_scikit_learn_s_does(scale: float) -> None:
    weights = REAL * scale
    ours = KMeans(6, init=ROWS[:6], tol=1e-3).fit(ROWS, sample_weight=weights)
    peer = PeerKMeans(6, init=ROWS[:6].double().numpy(), n_init=1, tol=0)
    peer.fit(ROWS.double().numpy(), sample_weight=REAL.numpy())
    exact = KMeans(6, init=ROWS[:6], tol=0).fit(ROWS, sample_weight=weights)
    torch.testing.assert_close(exact.cluster_centers_.double(), torch.from_numpy(peer.cluster_centers_))
    assert exact.labels_.tolist() == peer.labels_.tolist()
    assert exact.inertia_ == pytest.approx(peer.inertia_ * scale, rel=1e-5)
    assert ours.n_iter_ <= exact.n_iter_
    score = peer.score(ROWS.double().numpy(), sample_weight=REAL.numpy())
    assert exact.score(ROWS, sample_weight=weights) == pytest.approx(score * scale, rel=1e-5)


def test_tolerance_is_the_share_of_the_weighted_variance() -> None:
    """One heavy row far away: without weights the variance of the others would let the start go on."""
    rows = torch.cat([ROWS, torch.full((1, 5), 300.0)])
    counts = torch.ones(241, dtype=torch.int64)
    counts[-1] = 300
    for tol in (1e-4, 1e-3, 1e-2):
        weighted = KMeans(6, init=ROWS[:6], tol=tol).fit(rows, sample_weight=counts)
        assert weighted.n_iter_ == KMeans(6, init=ROWS[:6], tol=tol).fit(rows.repeat_interleave(counts, dim=0)).n_iter_


@pytest.mark.parametrize("settings", [{}, {"init": "random"}, {"batch_size": 50}, {"metric": "cosine", "n_init": 2}])
def test_weights_of_one_change_nothing(settings: dict[str, Any]) -> None:
    plain = KMeans(6, random_state=0, **settings).fit(ROWS)
    for ones in (torch.ones(240), np.ones(240, np.int64), [1.0] * 240):
        weighted = KMeans(6, random_state=0, **settings).fit(ROWS, sample_weight=ones)
        assert torch.equal(weighted.cluster_centers_, plain.cluster_centers_)
        assert weighted.inertia_ == plain.inertia_


@pytest.mark.parametrize("settings", [{}, {"init": "random"}, {"batch_size": 50}])
def test_weights_give_one_result_on_any_number_of_threads(settings: dict[str, Any]) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            kmeans = KMeans(6, random_state=3, **settings).fit(ROWS, sample_weight=REAL)
            results.append((kmeans.cluster_centers_.tolist(), kmeans.labels_.tolist(), kmeans.inertia_))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_weights_count_where_rows_are_drawn() -> None:
    """Of two equal groups the one of a thousandth of the weight has few of the first centers, and no say in means."""
    rows = torch.cat([torch.randn(2000, 1) + 3, torch.randn(2000, 1) - 3])
    weights = torch.cat([torch.full((2000,), 1e-3), torch.ones(2000)])
    each: tuple[dict[str, Any], ...] = {"init": "random"}, {"batch_size": 40}
    for settings in each:
        one = KMeans(1, random_state=0, **settings).fit(rows, sample_weight=weights)
        assert float(one.cluster_centers_) == pytest.approx(-3, abs=0.2)
    many = KMeans(40, init="random", max_iter=1, n_init=1, random_state=0).fit(rows, sample_weight=weights)
    assert int((many.cluster_centers_ < 0).sum()) > 36


def test_a_stream_of_weighted_batches_is_scikit_learn_s_and_that_of_copies() -> None:
    init = ROWS[:6]
    ours, copied = KMeans(6, init=init), KMeans(6, init=init)
    peer = PeerMiniBatchKMeans(6, init=init.numpy(), n_init=1, reassignment_ratio=0)
    for rows, counts in zip(ROWS.split(60), COUNTS.split(60), strict=True):
        ours.partial_fit(rows, sample_weight=counts)
        copied.partial_fit(rows.repeat_interleave(counts, dim=0))
        peer.partial_fit(rows.numpy(), sample_weight=counts.numpy())
        assert ours.inertia_ == pytest.approx(copied.inertia_, rel=1e-5)
        assert ours.labels_.shape == (60,)
    torch.testing.assert_close(ours.cluster_centers_, copied.cluster_centers_)
    torch.testing.assert_close(ours.cluster_centers_, torch.from_numpy(peer.cluster_centers_), rtol=1e-3, atol=1e-4)


def test_a_stream_goes_on_after_a_weighted_fit() -> None:
    kmeans = KMeans(1).fit([[0.0], [4.0]], sample_weight=[1, 3])
    assert kmeans.cluster_centers_.tolist() == [[3.0]]
    assert kmeans.partial_fit([[13.0]]).cluster_centers_.tolist() == [[(3 * 4 + 13) / 5]]
    assert kmeans.partial_fit([[0.0]], sample_weight=[2.5]).cluster_centers_.tolist() == [[25 / 7.5]]


def test_an_empty_cluster_takes_a_row_with_its_weight() -> None:
    rows = torch.tensor([[0.0], [1.0], [9.0], [11.0]])
    kmeans = KMeans(2, init=torch.tensor([[0.0], [1e4]])).fit(rows, sample_weight=[1, 1, 1, 3])
    assert kmeans.cluster_centers_.tolist() == [[0.5], [10.5]]
    assert kmeans.labels_.tolist() == [0, 0, 1, 1]
    # Rows of weight 0 are none: they fill no cluster, and too few are left.
    with pytest.raises(ValueError, match="n_clusters: expected at most 1, the number of rows, got 2"):
        KMeans(2).fit(rows, sample_weight=[0, 0, 0, 3])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(239), ValueError, r"sample_weight: expected shape \(240,\), one for each row, got \(239,\)"),
        (torch.ones(240, 1), ValueError, r"sample_weight: expected shape \(240,\), one for each row, got \(240, 1\)"),
        (1.0, ValueError, r"sample_weight: expected shape \(240,\), one for each row, got \(\)"),
        (-torch.ones(240), ValueError, r"sample_weight: expected numbers from 0 to 1e\+100, got -1 to -1"),
        (torch.full((240,), torch.inf), ValueError, r"sample_weight: expected numbers from 0 to 1e\+100, got inf to"),
        (torch.full((240,), torch.nan), ValueError, r"sample_weight: expected numbers from 0 to 1e\+100, got nan to"),
        (torch.zeros(240), ValueError, "sample_weight: expected at least one weight above zero, got zeros alone"),
        (torch.ones(240) * 1j, TypeError, "sample_weight: expected real numbers, got torch.complex64"),
        (["a"] * 240, TypeError, "sample_weight: expected an array of numbers, got list of dtype <U1"),
    ],
)
def test_what_are_no_weights(weights: Any, error: type[Exception], message: str) -> None:
    fitted = KMeans(6, random_state=0).fit(ROWS)
    before = fitted.cluster_centers_.clone()
    for method in (fitted.fit, fitted.fit_predict, fitted.fit_transform, fitted.partial_fit, fitted.score):
        with pytest.raises(error, match=message):
            method(ROWS, sample_weight=weights)
    assert torch.equal(fitted.cluster_centers_, before)
