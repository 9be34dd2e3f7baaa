"""What KMeans takes and in which states it may be used, with scikit-learn's estimators as the oracle."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.cluster import KMeans as PeerKMeans
from sklearn.cluster import MiniBatchKMeans as PeerMiniBatchKMeans
from torch import Tensor

from deepclust_ext.cluster import KMeans


def blobs(rows: int = 120, dims: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    centers = 8 * torch.randn(3, dims, generator=generator)
    return centers[torch.arange(rows) % 3] + torch.randn(rows, dims, generator=generator)


ROWS = blobs()
START = ROWS[:3]


def first_rows(rows: Any, n_clusters: int, random_state: Any) -> Any:
    assert isinstance(random_state, (int, np.random.RandomState))
    return rows[:n_clusters] * 1  # scikit-learn would write into a view


INITS: dict[str, Any] = {
    "tensor": START,
    "array": START.numpy(),
    "float64 array": START.double().numpy(),
    "Fortran order": np.asfortranarray(START.numpy()),
    "nested list": START.tolist(),
    "tuple of tuples": tuple(map(tuple, START.tolist())),
    "function": first_rows,
    "integers": START.round().long().numpy(),
}


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("kind", INITS)
def test_first_centers_as_in_scikit_learn(kind: str, batch_size: int | None) -> None:
    init = INITS[kind]
    peer_init = init if callable(init) else np.asarray(init).astype(np.float32)
    peer = PeerKMeans(3, init=peer_init, n_init=1).fit(ROWS.numpy())
    ours = KMeans(3, init=init, batch_size=batch_size, n_init=1).fit(ROWS)
    assert ours.labels_.tolist() == peer.labels_.tolist()
    if batch_size is None:
        torch.testing.assert_close(ours.cluster_centers_, torch.from_numpy(peer.cluster_centers_))
        assert ours.n_iter_ == peer.n_iter_


@pytest.mark.parametrize("init", [None, 3, 1.5, object(), {"a": 1}, ["k-means++"], np.array(None), b"random", True])
def test_what_cannot_be_first_centers(init: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="init: expected"):
        KMeans(3, init=init).fit(ROWS)


def test_functions_are_asked_at_every_start_and_checked() -> None:
    seeds: list[int] = []

    def random_rows(rows: Tensor, n_clusters: int, random_state: int) -> Any:
        seeds.append(random_state)
        return rows.numpy()[np.random.RandomState(random_state).permutation(len(rows))[:n_clusters]]

    results = [KMeans(3, init=random_rows, random_state=0).fit(ROWS).cluster_centers_ for _ in range(2)]
    assert torch.equal(results[0], results[1])
    assert len(set(seeds)) == 10
    assert seeds[:10] == seeds[10:]
    with pytest.raises(ValueError, match=r"init: expected shape \(3, 4\), got \(2, 4\)"):
        KMeans(3, init=lambda rows, n_clusters, random_state: rows[:2]).fit(ROWS)


RANDOM_STATES: dict[str, Callable[[], Any]] = {
    "int": lambda: 5,
    "numpy integer": lambda: np.int64(5),
    "RandomState": lambda: np.random.RandomState(5),
    "Generator": lambda: np.random.default_rng(5),
    "torch": lambda: torch.Generator().manual_seed(5),
}


@pytest.mark.parametrize("kind", RANDOM_STATES)
def test_sources_of_random_numbers(kind: str) -> None:
    rows = torch.randn(200, 3)

    def centers(kmeans: KMeans) -> list[Any]:
        result: list[Any] = kmeans.fit(rows).cluster_centers_.tolist()
        return result

    first = KMeans(9, max_iter=1, random_state=RANDOM_STATES[kind]())
    again = KMeans(9, max_iter=1, random_state=RANDOM_STATES[kind]())
    once = centers(first)
    assert once == centers(again)
    # A seed starts anew with every fit, a generator goes on, as scikit-learn's do.
    assert (centers(first) == once) == ("int" in kind)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"random_state": "seed"}, TypeError, "random_state: expected an integer, numpy's"),
        ({"random_state": 1.5}, TypeError, "random_state: expected an integer, numpy's"),
        ({"random_state": True}, TypeError, "random_state: expected an integer, numpy's"),
        ({"random_state": 2**64}, ValueError, "random_state: expected a seed of 64 bits"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer, got 2.0"),
        ({"batch_size": False}, TypeError, "batch_size: expected an integer, got False"),
        ({"n_init": True}, TypeError, "n_init: expected an integer, got True"),
        ({"tol": "small"}, TypeError, "tol: expected a number, got 'small'"),
        ({"tol": float("nan")}, ValueError, "tol: expected a finite number of at least 0"),
    ],
)
def test_errors_of_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    for method in ("fit", "partial_fit"):
        with pytest.raises(error, match=message):
            getattr(KMeans(3, **arguments), method)(ROWS)


def test_numpy_s_numbers() -> None:
    numbers: dict[str, Any] = {"n_init": np.int32(2), "max_iter": np.uint8(9), "batch_size": np.int16(50)}
    kmeans = KMeans(**{"n_clusters": np.int64(3), "tol": np.float32(0), **numbers})
    assert kmeans.fit(ROWS).labels_.shape == (120,)


def read_only(rows: Tensor) -> Any:
    array = rows.numpy().copy()
    array.setflags(write=False)
    return array


KINDS_OF_ROWS: dict[str, Callable[[Tensor], Any]] = {
    "array": lambda rows: rows.numpy(),
    "negative strides": lambda rows: rows.flip(0).numpy()[::-1],
    "negative columns": lambda rows: rows.flip(1).numpy()[:, ::-1],
    "Fortran order": lambda rows: np.asfortranarray(rows.numpy()),
    "foreign byte order": lambda rows: rows.numpy().astype(">f4"),
    "long double": lambda rows: rows.numpy().astype(np.longdouble),
    "read only": read_only,
    "nested list": lambda rows: rows.tolist(),
    "transposed tensor": lambda rows: rows.T.contiguous().T,
}


@pytest.mark.parametrize("kind", KINDS_OF_ROWS)
@pytest.mark.parametrize("batch_size", [None, 50])
def test_kinds_of_rows(kind: str, batch_size: int | None) -> None:
    rows = KINDS_OF_ROWS[kind](ROWS)
    kmeans = KMeans(3, batch_size=batch_size, random_state=0).fit(rows)
    expected = KMeans(3, batch_size=batch_size, random_state=0).fit(ROWS)
    results = kmeans.labels_, kmeans.predict(rows), kmeans.fit_predict(rows)
    for labels in results:
        assert labels.tolist() == expected.labels_.tolist()
    expected_type: type = Tensor if isinstance(rows, Tensor) else np.ndarray
    assert all(type(each) is expected_type for each in (*results, kmeans.cluster_centers_, kmeans.transform(rows)))
    assert type(kmeans.predict(ROWS)) is Tensor  # as this call was given rows
    assert kmeans.transform(rows).shape == (120, 3)
    assert kmeans.score(rows) == pytest.approx(-kmeans.inertia_)
    assert KMeans(3, init=START).partial_fit(rows).cluster_centers_.shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_integers_are_computed_in_float64_as_in_scikit_learn(dtype: torch.dtype) -> None:
    rows = (ROWS + 50).to(dtype)
    if dtype == torch.bool:
        rows = ROWS > 0
    starts = rows.unique(dim=0)[:3]
    for given in (rows, rows.numpy()):
        ours = KMeans(3, init=starts.double()).fit(given)
        peer = PeerKMeans(3, init=starts.double().numpy(), n_init=1).fit(rows.numpy())
        assert ours.cluster_centers_.dtype == (torch.float64 if given is rows else np.float64)
        assert ours.inertia_ == pytest.approx(peer.inertia_)


def test_a_read_only_memory_map_is_read_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, ROWS.numpy())
    mapped = np.load(path, mmap_mode="r")
    kmeans = KMeans(3, batch_size=50, random_state=0).fit(mapped)  # warnings are errors
    assert kmeans.labels_.tolist() == KMeans(3, batch_size=50, random_state=0).fit(ROWS).labels_.tolist()


@pytest.mark.parametrize(
    "rows", [None, "rows", object(), [["a", "b"]], [[1.0], [1.0, 2.0]], csr_array(np.eye(3)), torch.eye(3).to_sparse()]
)
def test_what_are_no_rows(rows: Any) -> None:
    for method in ("fit", "partial_fit"):
        with pytest.raises(TypeError, match="features: expected"):
            getattr(KMeans(1), method)(rows)


def test_complex_arrays_are_refused_as_by_scikit_learn() -> None:
    for kmeans in (KMeans(1), PeerKMeans(1)):
        with pytest.raises(ValueError, match="Complex data not supported"):
            kmeans.fit(np.zeros((4, 2), complex))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("place", "init"), enumerate(["k-means++", "k-means||", "random", first_rows]))
def test_torch_s_modes_change_nothing(backend: str, mode: str, place: int, init: Any) -> None:
    """Every pair of backend, start and metric in every mode."""
    metric = ["euclidean", "cosine"][(place + (backend == "native")) % 2]

    def run() -> list[Any]:
        results: list[Any] = []
        for rows in (ROWS, ROWS.numpy()):
            for batch_size in (None, 50):
                kmeans = KMeans(3, metric=metric, init=init, batch_size=batch_size, random_state=0).fit(rows)
                results += [kmeans.cluster_centers_, kmeans.labels_, kmeans.predict(rows), kmeans.transform(rows)]
                results += [kmeans.partial_fit(rows).cluster_centers_, kmeans.score(rows)]
        return results

    with MODES[mode]():
        within = run()
    for got, expected in zip(within, run(), strict=True):
        if isinstance(expected, float):
            assert got == expected
        else:
            assert type(got) is type(expected)
            assert got.tolist() == expected.tolist()
    # What was fitted within may be used, and needed for a gradient, without.
    (within[0] * torch.ones(3, 4, requires_grad=True)).sum().backward()


def state(kmeans: Any) -> dict[str, Any]:
    """What a fitted estimator shows, as lists; the same names as scikit-learn's."""
    names = ("cluster_centers_", "labels_", "inertia_", "n_iter_")
    shown = {name: getattr(kmeans, name) for name in names if hasattr(kmeans, name)}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in shown.items()}


CALLS = ("fit", "partial_fit", "other partial_fit", "predict", "transform", "score", "restore", "copy")


def call(kmeans: Any, name: str, is_peer: bool) -> Any:
    """Call one method, or put centers in place as from a file, or go on with a copy of the estimator."""
    rows = ROWS if name != "other partial_fit" else ROWS[30:90] * 0.5 + 1
    given = rows.numpy() if is_peer else rows
    if name == "copy":
        return pickle.loads(pickle.dumps(copy.deepcopy(kmeans)))
    if name == "restore":
        centers = (START * 0.9).numpy().copy()
        kmeans.cluster_centers_ = centers if is_peer else torch.from_numpy(centers)
    else:
        getattr(kmeans, name.removeprefix("other "))(given)
    return kmeans


def peer_after_fit(fitted: Any) -> Any:
    """Return a MiniBatchKMeans that stands where a KMeans is, each center for the rows of its cluster."""
    peer = PeerMiniBatchKMeans(3, init=START.numpy(), reassignment_ratio=0, n_init=1).partial_fit(ROWS.numpy())
    peer.cluster_centers_ = fitted.cluster_centers_.copy()
    peer._counts = np.bincount(fitted.labels_, minlength=3).astype(np.float32)
    peer.labels_, peer.inertia_, peer.n_iter_ = fitted.labels_, fitted.inertia_, fitted.n_iter_
    return peer


@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", ["fit", "partial_fit", "other partial_fit"])
def test_every_method_after_every_other(first: str, second: str) -> None:
    """After each call the state is scikit-learn's: that of KMeans after ``fit``, else that of MiniBatchKMeans."""
    ours: Any = KMeans(3, init=START, max_iter=4, tol=0)
    peer: Any = PeerMiniBatchKMeans(3, init=START.numpy(), reassignment_ratio=0, n_init=1)
    sequence = [first, second, "partial_fit", "fit", second, "partial_fit", second]
    for place, name in enumerate(sequence):
        ours = call(ours, name, False)
        if name == "fit":
            whole = PeerKMeans(3, init=START.numpy(), n_init=1, max_iter=4, tol=0)
            peer = peer_after_fit(whole.fit(ROWS.numpy()))
        else:
            peer = call(peer, name, True)
        expected, got, done = state(peer), state(ours), sequence[: place + 1]
        assert got.keys() == expected.keys(), done
        assert got["labels_"] == expected["labels_"], done
        centers, expected_centers = (torch.tensor(x["cluster_centers_"]) for x in (got, expected))
        torch.testing.assert_close(centers, expected_centers, rtol=1e-5, atol=1e-5)
        assert got["inertia_"] == pytest.approx(expected["inertia_"], rel=1e-4), done
        assert got.get("n_iter_") == expected.get("n_iter_"), done


def test_partial_fit_goes_on_from_fit() -> None:
    kmeans = KMeans(2, init=[[0.0], [10.0]]).fit([[0.0], [2.0], [4.0], [10.0]])
    assert kmeans.cluster_centers_.tolist() == [[2.0], [10.0]]
    kmeans.partial_fit([[6.0 - 0.5], [12.0]])
    assert kmeans.cluster_centers_.tolist() == [[(0 + 2 + 4 + 5.5) / 4], [11.0]]
    assert kmeans.labels_.tolist() == [0, 1]
    assert kmeans.inertia_ == pytest.approx((5.5 - 2.875) ** 2 + 1)
    with pytest.raises(ValueError, match="features: expected 1 column, got 2"):
        kmeans.partial_fit([[6.0, 1.0]])


def test_restored_centers_are_where_a_stream_goes_on_from() -> None:
    kmeans = KMeans(2)
    for centers in (torch.tensor([[0.0], [10.0]]), np.array([[0.0], [10.0]]), [[0.0], [10.0]]):
        kmeans = KMeans(2)
        kmeans.cluster_centers_ = centers
        assert kmeans.predict([[1.0], [9.0]]).tolist() == [0, 1]
        assert kmeans.transform([[1.0]]).tolist() == [[1.0, 9.0]]
        kmeans.partial_fit([[2.0]])
        assert kmeans.cluster_centers_.tolist() == [[2.0], [10.0]]


def test_a_call_that_fails_changes_nothing() -> None:
    kmeans = KMeans(3, init=START).partial_fit(ROWS)
    before, broken = state(kmeans), ROWS.clone()
    broken[4, 2] = torch.nan
    for method in (kmeans.fit, kmeans.partial_fit, kmeans.predict, kmeans.transform, kmeans.score):
        with pytest.raises(ValueError, match="features: expected finite numbers"):
            method(broken)
        assert state(kmeans) == before
    with pytest.raises(ValueError, match="features: expected finite numbers within"):
        kmeans.partial_fit(ROWS.double() * 1e200)  # more than the centers' float32 holds
    assert state(kmeans.partial_fit(ROWS)) == state(KMeans(3, init=START).partial_fit(ROWS).partial_fit(ROWS))


@pytest.mark.parametrize("batch_size", [None, 16])
def test_by_cosine_rows_may_be_of_any_length(batch_size: int | None) -> None:
    """A power of two changes no bit of a direction, though squares of such rows are beyond float32."""
    large = ROWS.float() * 2.0**100
    ours, expected = (
        KMeans(3, metric="cosine", batch_size=batch_size, max_iter=5, random_state=0).fit(rows)
        for rows in (large, ROWS.float())
    )
    assert torch.equal(ours.labels_, expected.labels_)
    assert ours.inertia_ == expected.inertia_
    assert torch.equal(ours.transform(large), expected.transform(ROWS.float()))
    large[4, 2] = torch.nan
    with pytest.raises(ValueError, match="features: expected finite numbers, got NaN or infinity"):
        ours.predict(large)
