"""K-means with scikit-learn's names: Lloyd's iterations on all rows, or steps on batches of a stream."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.cluster.inputs import RandomState, Rows, as_rows, check_random_state, make_generator
from deepclust_ext.cluster.steps import assign_and_sum, costs, exact_sum, fill_empty, seed_centers
from deepclust_ext.cluster.stream import Stream
from deepclust_ext.ops import kmeans_assign, kmeans_step, kmeans_update
from deepclust_ext.ops._checks import check_integer, check_non_negative
from deepclust_ext.reference.kmeans_assign import centers_of

Init: TypeAlias = str | Rows | Callable[..., Rows]


class KMeans:
    r"""K-means clustering on tensors, on their device, with the names of scikit-learn's ``KMeans``.

    Minimises the inertia :math:`\sum_i \min_c |x_i - \mu_c|^2`, or for ``metric="cosine"`` (spherical k-means)
    :math:`\sum_i \min_c (1 - \cos(x_i, \mu_c))`, where rows are divided by their L2 norm and centers are the unit sums
    of their rows. Distances and sums are those of :func:`deepclust_ext.kmeans_assign`: there is no N x K matrix.

    A seed gives the same result on any number of threads. Ties go to the lowest index. An empty cluster takes the row
    that is farthest from its center; only with fewer distinct rows than clusters do some stay empty. Each iteration
    waits for the device once, for the shift of the centers and the number of empty clusters.

    Rows are tensors (N, D), or numpy arrays and what numpy makes one of, which count as CPU tensors; results are always
    tensors, on the device of the rows. Integers are computed in float64, half precision in float32, in which its
    centers are kept, and nothing below float32, autocast or not. There are no sample weights. ``y`` of any method is
    ignored: scikit-learn's pipelines and searches pass one.

    Data that does not fit has two ways. ``batch_size`` lets :meth:`fit` work on that many rows at a time, of a tensor
    that may lie in a file (``torch.from_file``). :meth:`partial_fit` takes the batches of any stream, as that of
    scikit-learn's ``MiniBatchKMeans`` does and with its update: a center is the mean of all rows that it ever got.
    After :meth:`fit` it goes on from there, each center standing for the rows of its cluster. ``cluster_centers_`` may
    be assigned, as from a file: :meth:`predict` and the like use it, and :meth:`partial_fit` goes on from it, with the
    numbers of rows that are known by then, else with none.

    Args:
        n_clusters: K.
        metric: "euclidean" or "cosine".
        init: First centers: "k-means++" (greedy, 2 + log K trials), "random" rows, centers (K, D), or a function that
            is called as ``init(rows, n_clusters, random_state=seed)`` for each start and returns centers. It is given
            a tensor and a whole number.
        n_init: Starts, of which the one with the least inertia stays. "auto" is 10 for "random" and functions, and 1
            otherwise.
        max_iter: Iterations of a start at most; with ``batch_size``, passes over the rows.
        tol: A start ends when the squared shift of all centers together is at most this share of the mean variance of
            a feature; 0 for when nothing moves.
        batch_size: Rows that :meth:`fit` works on at a time; None for all.
        random_state: Seed, or a generator of numpy's or torch's, which moves on with every fit; None for torch's
            default one.

    Attributes:
        cluster_centers_: (K, D).
        labels_: (N,) int64, of the rows of the last ``fit`` or ``partial_fit``.
        inertia_: Sum of the squared Euclidean, or of the cosine distances, of these rows to their centers.
        n_iter_: Iterations of the best start, or passes, of the last ``fit``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A value does not fit.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]])
        >>> kmeans = KMeans(2, random_state=0).fit(rows)
        >>> kmeans.inertia_
        4.0
        >>> sorted(kmeans.cluster_centers_.tolist())
        [[0.0, 1.0], [9.0, 1.0]]

    Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++", 2007; Sculley,
    "Web-scale k-means clustering", 2010.
    """

    cluster_centers_: Tensor
    labels_: Tensor
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str = "euclidean",
        init: Init = "k-means++",  # or (K, D)
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        batch_size: int | None = None,
        random_state: RandomState = None,
    ) -> None:
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric: expected 'euclidean' or 'cosine', got {metric!r}")
        if isinstance(init, str):
            if init not in ("k-means++", "random"):
                raise ValueError(f"init: expected 'k-means++', 'random', centers or a function, got {init!r}")
        elif not callable(init):
            as_rows(init, "init")
        check_random_state(random_state)
        self.n_clusters = check_integer(n_clusters, "n_clusters", 1)
        self.metric = metric
        self.init = init
        self.n_init = n_init if isinstance(n_init, str) and n_init == "auto" else check_integer(n_init, "n_init", 1)
        self.max_iter = check_integer(max_iter, "max_iter", 1)
        self.tol = check_non_negative(tol, "tol")
        self.batch_size = None if batch_size is None else check_integer(batch_size, "batch_size", 1)
        self.random_state = random_state
        self._stream: Stream | None = None

    @torch.inference_mode(False)  # whose results could not be used outside
    @torch.no_grad()
    def fit(
        self,
        features: Rows,  # (N, D)
        y: object = None,
    ) -> "KMeans":
        """Find the centers of rows and return this estimator.

        Raises:
            TypeError: If ``features`` are not real numbers.
            ValueError: If their shape does not fit, there are fewer rows than clusters, or a number is not finite.
        """
        features = as_rows(features, "features")
        self._check_count(len(features))
        generator = make_generator(self.random_state)
        rows = self._checked(features) if self.batch_size is None else features
        best: tuple[float, int, Stream, Tensor] | None = None
        for _ in range(self._starts()):
            stream, n_iter = (self._lloyd if self.batch_size is None else self._passes)(rows, generator)
            labels, inertia = self._assign([rows] if self.batch_size is None else self._parts(rows), stream.centers)
            if best is None or inertia < best[0]:
                best = inertia, n_iter, stream, labels
        assert best is not None
        self.inertia_, self.n_iter_, self._stream, self.labels_ = best
        self.cluster_centers_ = self._stream.centers
        return self

    def fit_predict(
        self,
        features: Rows,  # (N, D)
        y: object = None,
    ) -> Tensor:
        """Fit and return the labels (N,) int64."""
        return self.fit(features).labels_

    def fit_transform(
        self,
        features: Rows,  # (N, D)
        y: object = None,
    ) -> Tensor:
        """Fit and return the distances (N, K) of :meth:`transform`."""
        return self.fit(features).transform(features)

    @torch.inference_mode(False)
    @torch.no_grad()
    def partial_fit(
        self,
        features: Rows,  # (B, D)
        y: object = None,
    ) -> "KMeans":
        """Move the centers by one batch of a stream and return this estimator; labels and inertia are of the batch.

        Where there are no centers yet, the batch gives them, so it needs as many rows as there are clusters; the rest
        are free.

        Raises:
            TypeError: As :meth:`fit`.
            ValueError: As :meth:`fit`.
        """
        if hasattr(self, "cluster_centers_"):
            features, centers = self._fitted(features)
            if not len(features):
                raise ValueError("features: expected at least 1 row, got 0")
            stream = self._stream
            # Assigned from outside, or with another metric since.
            if stream is None or stream.centers is not self.cluster_centers_ or stream.metric != self.metric:
                known = stream is not None and len(stream.counts) == len(centers)
                counts = stream.counts.to(centers.device) if known and stream is not None else None
                stream = Stream(centers, self.metric, counts)
            rows = self._checked(features.to(stream.centers))
        else:
            rows = self._checked(as_rows(features, "features"))
            self._check_count(len(rows))
            stream = Stream(self._first_centers(rows, make_generator(self.random_state)), self.metric)
        stream.step(rows)
        self._stream, self.cluster_centers_ = stream, stream.centers
        self.labels_, self.inertia_ = self._assign([rows], self.cluster_centers_)
        return self

    def predict(
        self,
        features: Rows,  # (N, D)
    ) -> Tensor:
        """Return the index of the nearest center for each row, (N,) int64."""
        features, centers = self._fitted(features)
        return self._assign(self._parts(features), centers)[0]

    @torch.no_grad()
    def transform(
        self,
        features: Rows,  # (N, D)
    ) -> Tensor:
        """Return the distances (N, K) of all rows to all centers: Euclidean, or 1 - cosine."""
        features, centers = self._fitted(features)
        rows = self._checked(features)
        if self.metric == "cosine":
            with torch.autocast(rows.device.type, enabled=False):
                return 1 - rows @ normalize(centers, dim=1).T
        return torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist")

    def score(
        self,
        features: Rows,  # (N, D)
        y: object = None,
    ) -> float:
        """Return minus the inertia of rows: the greater, the better they fit."""
        features, centers = self._fitted(features)
        return -self._assign(self._parts(features), centers)[1]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as scikit-learn's ``clone`` asks for them."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> "KMeans":
        """Change arguments of the constructor, all or none, and return this estimator; what was fitted stays.

        Raises:
            TypeError: As the constructor.
            ValueError: As the constructor, or if there is no argument of that name.
        """
        for name in params:
            if name not in _PARAMETERS:
                raise ValueError(f"{name}: expected one of {', '.join(_PARAMETERS)}")
        vars(self).update(type(self)(**self.get_params() | params).get_params())
        return self

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn's pipelines and searches ask about an estimator."""
        from sklearn.utils import InputTags, Tags, TargetTags  # only they call this

        return Tags("clusterer", TargetTags(required=False), input_tags=InputTags())

    def _starts(self) -> int:
        if isinstance(self.n_init, str):  # "auto"
            return 10 if callable(self.init) or (isinstance(self.init, str) and self.init == "random") else 1
        return self.n_init

    def _lloyd(
        self,
        rows: Tensor,  # (N, D)
        generator: torch.Generator | None,
    ) -> tuple[Stream, int]:
        """Return the centers of one start, and the number of its iterations."""
        centers = self._first_centers(rows, generator)
        tolerance = self._tolerance(rows)
        n_iter, shift = 0, math.inf
        while n_iter < self.max_iter and shift > tolerance:
            old = centers
            labels, centers, counts, change = kmeans_step(rows, old, metric=self.metric)
            shift, num_empty = change.tolist()
            if num_empty:
                _, distances = kmeans_assign(rows, old, metric=self.metric)
                sums, counts = kmeans_update(rows, fill_empty(labels, distances, counts), self.n_clusters)
                centers = centers_of(sums, counts, old, self.metric)
                shift = float(_shift(old, centers))
            n_iter += 1
        return Stream(centers, self.metric, counts), n_iter

    def _passes(
        self,
        features: Tensor,  # (N, D)
        generator: torch.Generator | None,
    ) -> tuple[Stream, int]:
        """Return the centers of one start in batches, and the number of its passes."""
        assert self.batch_size is not None
        # As in scikit-learn, first centers come of three batches or three rows per cluster.
        order = torch.randperm(len(features), generator=generator, device="cpu")
        some = order[: 3 * max(self.batch_size, self.n_clusters)].sort().values
        first = self._checked(features[some.to(features.device)])
        stream = Stream(self._first_centers(first, generator), self.metric)
        tolerance = self._tolerance(first)
        n_iter, shift = 0, math.inf
        while n_iter < self.max_iter and shift > tolerance:
            old = stream.centers
            order = torch.randperm(len(features), generator=generator, device="cpu")
            for index in order.split(self.batch_size):
                stream.step(self._checked(features[index.to(features.device)]))
            shift = float(_shift(old, stream.centers))
            n_iter += 1
        return stream, n_iter

    def _parts(
        self,
        features: Tensor,  # (N, D)
    ) -> Iterator[Tensor]:
        """Yield checked rows, as many at a time as there are in a batch."""
        return map(self._checked, features.split(self.batch_size or max(len(features), 1)))

    @torch.no_grad()
    def _assign(
        self,
        parts: Iterable[Tensor],  # each (B, D)
        centers: Tensor,  # (K, D)
    ) -> tuple[Tensor, float]:
        """Return the labels (N,) and the inertia of checked rows."""
        pairs = [kmeans_assign(rows, centers, metric=self.metric) for rows in parts]
        labels, distances = (torch.cat(columns) for columns in zip(*pairs, strict=True))
        return labels, float(exact_sum(costs(distances, self.metric))) if len(labels) else 0.0

    def _first_centers(
        self,
        rows: Tensor,  # (N, D)
        generator: torch.Generator | None,
    ) -> Tensor:
        if isinstance(self.init, str):
            if self.init == "k-means++":
                return seed_centers(rows, self.n_clusters, self.metric, generator)
            order = torch.randperm(len(rows), generator=generator, device="cpu")
            return rows[order[: self.n_clusters].to(rows.device)]
        given: Any = self.init
        if callable(given):
            seed = int(torch.randint(2**32, (), generator=generator, device="cpu"))  # scikit-learn's are of 32 bits
            given = given(rows, self.n_clusters, random_state=seed)
        centers = as_rows(given, "init")
        shape = (self.n_clusters, rows.shape[1])
        if centers.shape != shape:
            raise ValueError(f"init: expected shape {shape}, got {tuple(centers.shape)}")
        return self._checked(centers.to(rows), "init").clone()

    def _tolerance(
        self,
        rows: Tensor,  # (N, D)
    ) -> float:
        """Return `tol` times the mean variance of a column."""
        if self.tol == 0:
            return 0.0
        mean = rows.new_zeros(1, rows.shape[1])
        _, _, sums, counts = assign_and_sum(rows, mean, "euclidean")
        _, distances = kmeans_assign(rows, centers_of(sums, counts, mean, "euclidean"))
        return self.tol * float(exact_sum(costs(distances, "euclidean"))) / rows.numel()

    def _check_count(self, count: int) -> None:
        if not count:
            raise ValueError(f"features: expected at least {self.n_clusters} rows, as many as n_clusters, got 0")
        if count < self.n_clusters:
            raise ValueError(f"n_clusters: expected at most {count}, the number of rows, got {self.n_clusters}")

    def _checked(
        self,
        features: Tensor,  # (N, D)
        name: str = "features",
    ) -> Tensor:
        """Return rows, for cosine unit rows, in the dtype of the computation; waits for the device once."""
        rows = features.to(torch.promote_types(features.dtype, torch.float32)).contiguous()
        if rows.numel():
            # Beyond, a squared distance may overflow.
            limit = (torch.finfo(rows.dtype).max / (4 * rows.shape[1])) ** 0.5
            low, high = torch.stack(rows.aminmax()).tolist()
            if not -limit <= low <= high <= limit:
                raise ValueError(f"{name}: expected finite numbers within {limit:.3g}, got {low:.3g} to {high:.3g}")
        return normalize(rows, dim=1) if self.metric == "cosine" else rows

    def _fitted(
        self,
        features: Rows,  # (N, D)
    ) -> tuple[Tensor, Tensor]:
        """Return rows as a tensor, and the centers that fit them."""
        if not hasattr(self, "cluster_centers_"):
            raise RuntimeError("KMeans: expected fit or partial_fit to be called first")
        features, centers = as_rows(features, "features"), as_rows(self.cluster_centers_, "cluster_centers_")
        if features.shape[1] != centers.shape[1]:
            raise ValueError(f"features: expected {centers.shape[1]} columns, got {features.shape[1]}")
        return features, centers.to(features.device, torch.promote_types(features.dtype, torch.float32))


def _shift(
    old: Tensor,  # (K, D)
    new: Tensor,  # (K, D)
) -> Tensor:
    """Return the squared distance of all centers together, ()."""
    return exact_sum((new.double() - old.double()).square().flatten())


_PARAMETERS = tuple(name for name in inspect.signature(KMeans.__init__).parameters if name != "self")
