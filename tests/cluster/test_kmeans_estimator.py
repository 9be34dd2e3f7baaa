"""KMeans where scikit-learn's own tools use it: clones, parameters, pipelines, searches; and with no rows."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans as PeerKMeans
from sklearn.cluster import MiniBatchKMeans as PeerMiniBatchKMeans
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepclust_ext.cluster import KMeans

ROWS = np.repeat(10 * np.eye(3, 4), 20, axis=0) + np.random.RandomState(0).randn(60, 4)


def first_rows(rows: Any, n_clusters: int, random_state: int) -> Any:
    return rows[:n_clusters]


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"n_clusters": np.int64(3), "n_init": 2, "max_iter": np.int32(7), "tol": np.float32(0.5), "batch_size": 20},
    {"metric": "cosine", "init": "random", "random_state": 3},
    {"n_clusters": 3, "init": torch.from_numpy(ROWS[:3])},
    {"n_clusters": 3, "init": ROWS[:3].tolist(), "random_state": np.random.RandomState(1)},
    {"init": first_rows, "random_state": torch.Generator()},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_a_clone_has_the_same_parameters_and_nothing_fitted(parameters: dict[str, Any]) -> None:
    kmeans = KMeans(**parameters)
    copy = clone(kmeans.fit(ROWS))
    assert not hasattr(copy, "cluster_centers_")
    assert type(copy) is KMeans
    given = {**clone(KMeans()).get_params(), **parameters}
    for name, value in copy.get_params().items():
        if not isinstance(value, (np.random.RandomState, torch.Generator)):
            assert np.all(np.asarray(value == given[name])), name


def test_parameters_change_and_what_was_fitted_stays() -> None:
    kmeans = KMeans(3, random_state=0).fit(ROWS)
    centers = kmeans.cluster_centers_
    assert kmeans.set_params(n_clusters=2, init="random") is kmeans
    assert kmeans.cluster_centers_ is centers
    expected = KMeans(2, init="random", random_state=0).fit(ROWS)
    assert np.array_equal(kmeans.fit(ROWS).cluster_centers_, expected.cluster_centers_)
    for estimator in (kmeans, PeerKMeans(2)):
        with pytest.raises(ValueError, match="Invalid parameter 'k'"):
            estimator.set_params(k=3)
    # As in scikit-learn, values are looked at by the methods that use them.
    every = (kmeans.fit, kmeans.partial_fit, kmeans.predict, kmeans.transform, kmeans.score)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": None, "metric": "l1"}, "metric: expected 'euclidean' or 'cosine', got 'l1'"),
    ]
    for parameters, message in wrong:
        kmeans.set_params(**parameters)
        for method in every:
            with pytest.raises(ValueError, match=message):
                method(ROWS)
    kmeans.set_params(metric="cosine", max_iter=0)
    with pytest.raises(ValueError, match="max_iter: expected at least 1, got 0"):
        kmeans.fit(ROWS)
    kmeans.n_clusters, kmeans.max_iter = np.int64(4), np.int32(9)
    assert kmeans.fit(ROWS).cluster_centers_.shape == (4, 4)


def test_a_stream_goes_on_with_another_metric() -> None:
    kmeans = KMeans(3, init=ROWS[[0, 20, 40]]).partial_fit(ROWS).set_params(metric="cosine").partial_fit(ROWS)
    np.testing.assert_allclose(np.linalg.norm(kmeans.cluster_centers_, axis=1), 1)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_stream_goes_on_from_centers_that_were_changed_in_place(method: str, kind: Any) -> None:
    ours, peer = KMeans(3, init=ROWS[[0, 20, 40]]), PeerMiniBatchKMeans(3, init=ROWS[[0, 20, 40]], n_init=1)
    getattr(ours, method)(kind(ROWS))
    peer.partial_fit(ROWS)  # in one batch of clear clusters they have the same centers
    for estimator in (ours, peer):
        estimator.cluster_centers_[0] += 1
    np.testing.assert_allclose(
        ours.partial_fit(kind(ROWS[:9])).cluster_centers_, peer.partial_fit(ROWS[:9]).cluster_centers_
    )


def test_there_are_centers() -> None:
    kmeans = KMeans(3, random_state=0).fit(ROWS)
    kmeans.cluster_centers_ = ROWS[:0]
    for method in (kmeans.predict, kmeans.transform, kmeans.score, kmeans.partial_fit):
        with pytest.raises(ValueError, match="^cluster_centers_: expected at least one row, got none$"):
            method(ROWS)


def test_automatic_starts_are_ten_of_random_rows_and_functions_and_else_one() -> None:
    cases: list[tuple[Any, int]] = [("k-means++", 1), ("random", 10), (first_rows, 10), (ROWS[:3], 1)]
    for init, count in cases:
        generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        KMeans(3, init=init, random_state=generators[0]).fit(ROWS)
        KMeans(3, init=init, n_init=count, random_state=generators[1]).fit(ROWS)
        assert torch.equal(*(generator.get_state() for generator in generators))


def test_fit_transform() -> None:
    given = KMeans(3, random_state=0).fit_transform(ROWS)
    assert np.array_equal(given, KMeans(3, random_state=0).fit(ROWS).transform(ROWS))
    peer = PeerKMeans(3, init=ROWS[[0, 20, 40]], n_init=1).fit_transform(ROWS)
    np.testing.assert_allclose(KMeans(3, init=ROWS[[0, 20, 40]]).fit_transform(ROWS), peer)


def test_in_pipelines_and_searches() -> None:
    ours, peer = (make_pipeline(StandardScaler(), each(3, random_state=0, n_init=10)) for each in (KMeans, PeerKMeans))
    for pipeline in (ours, peer):
        pipeline.fit(ROWS)
    order = [peer.predict(center)[0] for center in np.split(ours[0].inverse_transform(ours[-1].cluster_centers_), 3)]
    assert np.equal(np.asarray(order)[ours.predict(ROWS)], peer.predict(ROWS)).all()
    np.testing.assert_allclose(ours.transform(ROWS), peer.transform(ROWS)[:, order])
    assert ours.score(ROWS) == pytest.approx(peer.score(ROWS))
    assert ours.fit_predict(ROWS).shape == (60,)
    assert ours.fit_transform(ROWS).shape == (60, 3)
    search = GridSearchCV(ours, {"kmeans__n_clusters": [2, 3]}).fit(ROWS)
    assert search.best_params_ == {"kmeans__n_clusters": 3}


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("name", ["fit", "fit_predict", "fit_transform", "partial_fit", "partial_fit again"])
def test_no_rows_are_refused_as_by_scikit_learn(name: str, batch_size: int | None) -> None:
    ours, peer = KMeans(3, batch_size=batch_size), PeerMiniBatchKMeans(3, n_init=1)
    message = "features: expected at least 3 rows, as many as n_clusters, got 0"
    if name == "partial_fit again":
        ours.partial_fit(ROWS), peer.partial_fit(ROWS)
        message = "features: expected at least 1 row, got 0"
    with pytest.raises(ValueError, match=message):
        getattr(ours, name.split()[0])(ROWS[:0])
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        getattr(peer, name.split()[0])(ROWS[:0])
