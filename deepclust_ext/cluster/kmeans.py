"""K-means with scikit-learn's names: Lloyd's iterations on all rows, or steps on batches of a stream."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.cluster.steps import assign_and_sum, costs, exact_sum, fill_empty, seed_centers
from deepclust_ext.ops import kmeans_assign, kmeans_step, kmeans_update
from deepclust_ext.reference.kmeans_assign import centers_of

Rows: TypeAlias = Tensor | NDArray[Any]


class KMeans:
    r"""K-means clustering on tensors, on their device, with the names of scikit-learn's ``KMeans``.

    Minimises the inertia :math:`\sum_i \min_c |x_i - \mu_c|^2`, or for ``metric="cosine"`` (spherical k-means)
    :math:`\sum_i \min_c (1 - \cos(x_i, \mu_c))`, where rows are divided by their L2 norm and centers are the unit sums
    of their rows. Distances and sums are those of :func:`deepclust_ext.kmeans_assign`: there is no N x K matrix.

    A seed gives the same result on any number of threads. Ties go to the lowest index. An empty cluster takes the row
    that is farthest from its center; only with fewer distinct rows than clusters do some stay empty. Each iteration
    waits for the device once, for the shift of the centers and the number of empty clusters.

    Rows are tensors (N, D), or numpy arrays, which count as CPU tensors; results are always tensors, on the device of
    the rows. Half precision is computed, and centers are kept, in float32. There are no sample weights.

    Data that does not fit has two ways. ``batch_size`` lets :meth:`fit` work on that many rows at a time, of a tensor
    that may lie in a file (``torch.from_file``). :meth:`partial_fit` takes the batches of any stream, as that of
    scikit-learn's ``MiniBatchKMeans`` does and with its update: a center is the mean of all rows that it ever got.

    Args:
        n_clusters: K.
        metric: "euclidean" or "cosine".
        init: First centers: "k-means++" (greedy, 2 + log K trials), "random" rows, or a tensor (K, D).
        n_init: Starts, of which the one with the least inertia stays. "auto" is 10 for "random" and 1 otherwise.
        max_iter: Iterations of a start at most; with ``batch_size``, passes over the rows.
        tol: A start ends when the squared shift of all centers together is at most this share of the mean variance of
            a feature; 0 for when nothing moves.
        batch_size: Rows that :meth:`fit` works on at a time; None for all.
        random_state: Seed; None for torch's default generator.

    Attributes:
        cluster_centers_: (K, D).
        labels_: (N,) int64, of the rows of ``fit``.
        inertia_: Sum of the squared Euclidean, or of the cosine distances, of these rows to their centers.
        n_iter_: Iterations of the best start, or passes.

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
        init: str | Tensor = "k-means++",  # or (K, D)
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        batch_size: int | None = None,
        random_state: int | None = None,
    ) -> None:
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric: expected 'euclidean' or 'cosine', got {metric!r}")
        if isinstance(init, str) and init not in ("k-means++", "random"):
            raise ValueError(f"init: expected 'k-means++', 'random' or a tensor, got {init!r}")
        if n_init == "auto":
            n_init = 10 if isinstance(init, str) and init == "random" else 1
        counts = {"n_clusters": n_clusters, "n_init": n_init, "max_iter": max_iter, "batch_size": batch_size or 1}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not tol >= 0:
            raise ValueError(f"tol: expected a number of at least 0, got {tol}")
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = int(n_init)
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.random_state = random_state
        self._stream: _Stream | None = None

    @torch.no_grad()
    def fit(
        self,
        features: Rows,  # (N, D)
    ) -> "KMeans":
        """Find the centers of rows and return this estimator.

        Raises:
            TypeError: If ``features`` is not floating.
            ValueError: If its shape does not fit, it has fewer rows than clusters, or a number that is not finite.
        """
        features = _as_tensor(features)
        self._check_count(len(features))
        generator = self._generator()
        self._stream = None
        rows = self._checked(features) if self.batch_size is None else features
        best: tuple[float, int, Tensor, Tensor] | None = None
        for _ in range(self.n_init):
            centers, n_iter = (self._lloyd if self.batch_size is None else self._passes)(rows, generator)
            labels, inertia = self._assign([rows] if self.batch_size is None else self._parts(rows), centers)
            if best is None or inertia < best[0]:
                best = inertia, n_iter, centers, labels
        assert best is not None
        self.inertia_, self.n_iter_, self.cluster_centers_, self.labels_ = best
        return self

    def fit_predict(
        self,
        features: Rows,  # (N, D)
    ) -> Tensor:
        """Fit and return the labels (N,) int64."""
        return self.fit(features).labels_

    @torch.no_grad()
    def partial_fit(
        self,
        features: Rows,  # (B, D)
    ) -> "KMeans":
        """Move the centers by one batch of a stream and return this estimator; sets ``cluster_centers_`` alone.

        The first batch gives the first centers, so it needs as many rows as there are clusters; the rest are free.

        Raises:
            TypeError: As :meth:`fit`.
            ValueError: As :meth:`fit`.
        """
        rows = self._checked(_as_tensor(features))
        if self._stream is None:
            self._check_count(len(rows))
            self._stream = _Stream(self._first_centers(rows, self._generator()), self.metric)
        elif rows.shape[1] != self._stream.centers.shape[1]:
            raise ValueError(f"features: expected {self._stream.centers.shape[1]} columns, got {rows.shape[1]}")
        self._stream.step(rows)
        self.cluster_centers_ = self._stream.centers
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
            return 1 - rows @ centers.T
        return torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist")

    def score(
        self,
        features: Rows,  # (N, D)
    ) -> float:
        """Return minus the inertia of rows: the greater, the better they fit."""
        features, centers = self._fitted(features)
        return -self._assign(self._parts(features), centers)[1]

    def _lloyd(
        self,
        rows: Tensor,  # (N, D)
        generator: torch.Generator | None,
    ) -> tuple[Tensor, int]:
        """Return the centers (K, D) of one start, and the number of its iterations."""
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
        return centers, n_iter

    def _passes(
        self,
        features: Tensor,  # (N, D)
        generator: torch.Generator | None,
    ) -> tuple[Tensor, int]:
        """Return the centers (K, D) of one start in batches, and the number of its passes."""
        assert self.batch_size is not None
        # As in scikit-learn, first centers come of three batches or three rows per cluster.
        order = torch.randperm(len(features), generator=generator)
        some = order[: 3 * max(self.batch_size, self.n_clusters)].sort().values
        first = self._checked(features[some.to(features.device)])
        stream = _Stream(self._first_centers(first, generator), self.metric)
        tolerance = self._tolerance(first)
        n_iter, shift = 0, math.inf
        while n_iter < self.max_iter and shift > tolerance:
            old = stream.centers
            for index in torch.randperm(len(features), generator=generator).split(self.batch_size):
                stream.step(self._checked(features[index.to(features.device)]))
            shift = float(_shift(old, stream.centers))
            n_iter += 1
        return stream.centers, n_iter

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
        if isinstance(self.init, Tensor):
            shape = (self.n_clusters, rows.shape[1])
            if self.init.shape != shape:
                raise ValueError(f"init: expected shape {shape}, got {tuple(self.init.shape)}")
            return self._checked(self.init.to(rows), "init").clone()
        if self.init == "random":
            return rows[torch.randperm(len(rows), generator=generator)[: self.n_clusters].to(rows.device)]
        return seed_centers(rows, self.n_clusters, self.metric, generator)

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

    def _generator(self) -> torch.Generator | None:
        return None if self.random_state is None else torch.Generator().manual_seed(self.random_state)

    def _check_count(self, count: int) -> None:
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
        features, centers = _as_tensor(features), self.cluster_centers_
        if features.shape[1] != centers.shape[1]:
            raise ValueError(f"features: expected {centers.shape[1]} columns, got {features.shape[1]}")
        return features, centers.to(torch.promote_types(features.dtype, torch.float32))


class _Stream:
    """Centers that are the means of all rows they ever got; sums are in float64, as they grow without end."""

    def __init__(
        self,
        centers: Tensor,  # (K, D)
        metric: str,
    ) -> None:
        self.centers = centers
        self.metric = metric
        self.sums = torch.zeros_like(centers, dtype=torch.float64)
        self.counts = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)

    def step(
        self,
        rows: Tensor,  # (B, D)
    ) -> None:
        """Take in one batch; a cluster that never had a row takes the farthest."""
        rows = rows.to(self.centers)
        labels, distances, sums, counts = assign_and_sum(rows, self.centers, self.metric)
        if bool((self.counts + counts == 0).any()):
            labels = fill_empty(labels, distances, self.counts + counts)
            sums, counts = kmeans_update(rows, labels, len(self.centers))
        self.sums = self.sums + sums
        self.counts = self.counts + counts
        self.centers = centers_of(self.sums, self.counts, self.centers, self.metric).to(self.centers.dtype)


def _shift(
    old: Tensor,  # (K, D)
    new: Tensor,  # (K, D)
) -> Tensor:
    """Return the squared distance of all centers together, ()."""
    return exact_sum((new.double() - old.double()).square().flatten())


def _as_tensor(features: Rows) -> Tensor:
    rows = torch.as_tensor(features)
    if not rows.is_floating_point():
        raise TypeError(f"features: expected floating numbers, got {rows.dtype}")
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"features: expected shape (N, D) with D > 0, got {tuple(rows.shape)}")
    return rows.detach()
