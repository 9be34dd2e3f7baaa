"""K-means as an estimator of scikit-learn's: Lloyd's iterations on all rows, or steps on batches of a stream."""

from typing import TYPE_CHECKING, Any, overload

import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import validate_data
from torch import Tensor

from deepclust_ext.cluster.inputs import (
    ArrayRows,
    RandomState,
    Rows,
    UnfittedError,
    Weights,
    as_given,
    as_rows,
    as_weights,
    check_numbers,
    checked_rows,
    make_generator,
    same_values,
)
from deepclust_ext.cluster.lloyd import assigned, best_of_starts, first_centers, parts_of
from deepclust_ext.cluster.ranks import same_generator, total_rows
from deepclust_ext.cluster.settings import Init, Settings, check_how, group_of
from deepclust_ext.cluster.stream import Stream
from deepclust_ext.ops._checks import counted
from deepclust_ext.reference.normalize import l2_normalize

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deepclust_ext.distributed.group import Group

_NO_METADATA = {"features": UNUSED}  # scikit-learn knows rows by the name X alone


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    r"""K-means clustering on tensors, on their device, as an estimator of scikit-learn's with its names.

    Minimizes the inertia :math:`\sum_i \min_c |x_i - \mu_c|^2`, or for ``metric="cosine"`` (spherical k-means)
    :math:`\sum_i \min_c (1 - \cos(x_i, \mu_c))`, where rows are divided by their L2 norm and centers are the unit sums
    of their rows. Distances and sums are those of :func:`deepclust_ext.kmeans_assign`: there is no N x K matrix.

    A seed gives the same result with any number of threads. Ties go to the lowest index. An empty cluster takes the row
    that is farthest from its center. Clusters stay empty only if there are fewer distinct rows than clusters. Each
    iteration waits for the device once, for the shift of the centers and the number of empty clusters.

    Rows are tensors (N, D), or anything that numpy makes an array of, such as data frames. For tensors, results and
    attributes are tensors on their device; otherwise they are numpy arrays. Integers are computed in float64. Half
    precision is computed in float32, with centers in float32; nothing is computed below float32, even under autocast.
    ``y`` of any method is ignored: scikit-learn's pipelines and searches pass it.

    A row of weight w counts as w rows in means, inertia and k-means++; weights are added up in float64. With whole
    weights the clusters are those of as many copies of each row in its place, up to rounding. That does not hold if
    ``batch_size``, ``init="random"`` or "k-means||" draws rows, or an empty cluster takes one. Rows of weight 0 get
    labels but have no effect.

    There are two ways to cluster data that does not fit into memory. With ``batch_size``, :meth:`fit` works on that
    many rows at a time of a tensor that may be mapped from a file (``torch.from_file``). :meth:`partial_fit` takes the
    batches of any stream, with the update of scikit-learn's ``MiniBatchKMeans``: a center is the mean of all rows that
    it ever got. After :meth:`fit`, :meth:`partial_fit` continues from its centers, each with the weight of its
    cluster's rows. You may also assign ``cluster_centers_``, for example from a file. Then :meth:`predict` uses these,
    and :meth:`partial_fit` continues from them, with the known numbers of rows if there are any.

    Args:
        n_clusters: K.
        metric: "euclidean" or "cosine".
        init: First centers. "k-means++" is greedy, with 2 + log K trials. "k-means||" makes five passes that draw K / 2
            candidates each, which k-means reduces to K centers; for a thousand clusters and more it is as good and
            several times faster. "random" takes random rows. Or give centers (K, D), or a function that is called as
            ``init(rows, n_clusters, random_state=seed)`` for each start, with a tensor and a whole number, and returns
            centers.
        n_init: Number of starts; the one with the least inertia is kept. "auto" is 10 for "random" and functions, and 1
            otherwise.
        max_iter: Largest number of iterations of a start; with ``batch_size``, of passes over the rows.
        tol: A start ends when the squared shift of all centers together is at most this share of the mean variance of a
            feature; with 0 it ends when nothing moves.
        batch_size: Rows that :meth:`fit` works on at a time; None for all.
        random_state: Seed, or a RandomState or Generator of numpy's, or a Generator of torch's, which advances with
            every fit; None for torch's default one.
        process_group: The ranks that share the rows, a ProcessGroup or a DeviceMesh of one dimension; None for this
            process alone. All ranks call :meth:`fit`, :meth:`partial_fit` or :meth:`score`, each with its own rows, of
            which there may be none. All get the same centers. These are the centers of one process with the rows of all
            ranks, in their order: the same rows are drawn and chosen, and sums differ by rounding. Random numbers are
            those of the first rank.

    Attributes:
        cluster_centers_: (K, D).
        labels_: (N,) int64, of the rows of the last ``fit`` or ``partial_fit``.
        inertia_: Sum of the weighted squared Euclidean distances, or cosine distances, of these rows to their centers.
        n_iter_: Iterations, or passes, of the best start of the last ``fit``.
        n_features_in_: D.
        feature_names_in_: Names of the columns, if rows were a data frame whose columns have text as names.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]])
        >>> kmeans = KMeans(2, random_state=0).fit(rows)
        >>> kmeans.inertia_
        4.0
        >>> sorted(kmeans.cluster_centers_.tolist())
        [[0.0, 1.0], [9.0, 1.0]]

    Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++", 2007; Bahmani et
    al., "Scalable k-means++", 2012; Sculley, "Web-scale k-means clustering", 2010.
    """

    cluster_centers_: Any
    labels_: Any
    inertia_: float
    n_iter_: int
    n_features_in_: int

    _stream: Stream | None = None

    __metadata_request__fit = __metadata_request__partial_fit = __metadata_request__score = _NO_METADATA
    __metadata_request__predict = __metadata_request__transform = _NO_METADATA

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
        process_group: "Group" = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.random_state = random_state
        self.process_group = process_group

    @torch.inference_mode(False)  # whose results could not be used outside
    @torch.no_grad()
    def fit(
        self,
        features: Rows,  # (N, D)
        y: object = None,
        sample_weight: Weights = None,  # (N,)
    ) -> "KMeans":
        """Find the centers of rows and return this estimator.

        Raises:
            TypeError: If ``features`` or weights are not real numbers, or an argument of the estimator is of the wrong
                type.
            ValueError: If a shape does not fit, there are fewer rows than clusters, a number is not finite, a weight is
                negative, or an argument of the estimator is out of range.
        """
        settings = Settings.of(self)
        rows = as_rows(features, "features")
        weights = as_weights(sample_weight, rows, settings.group)
        weighty, positive = _weighty(rows, weights)
        _check_count(total_rows(weighty, settings.group), settings.n_clusters)
        best = best_of_starts(weighty, positive, settings, self._generator(rows, settings.group))
        labels = best.labels
        if len(weighty) < len(rows):
            labels, _ = assigned(
                parts_of(rows, settings.metric, settings.batch_size), best.stream.centers, settings.metric
            )
        self._name_columns(features, rows)
        self._show(best.stream, labels, best.inertia, features)
        self.n_iter_ = best.n_iter
        return self

    @overload
    def fit_predict(self, features: Tensor, y: object = None, sample_weight: Weights = None) -> Tensor: ...
    @overload
    def fit_predict(self, features: ArrayRows, y: object = None, sample_weight: Weights = None) -> NDArray[Any]: ...
    def fit_predict(
        self,
        features: Rows,  # (N, D)
        y: object = None,
        sample_weight: Weights = None,  # (N,)
    ) -> Any:
        """Fit and return the labels (N,) int64."""
        return self.fit(features, sample_weight=sample_weight).labels_

    @overload
    def fit_transform(self, features: Tensor, y: object = None, sample_weight: Weights = None) -> Tensor: ...
    @overload
    def fit_transform(self, features: ArrayRows, y: object = None, sample_weight: Weights = None) -> NDArray[Any]: ...
    def fit_transform(
        self,
        features: Rows,  # (N, D)
        y: object = None,
        sample_weight: Weights = None,  # (N,)
    ) -> Any:
        """Fit and return the distances (N, K) of :meth:`transform`."""
        return self.fit(features, sample_weight=sample_weight).transform(features)

    @torch.inference_mode(False)
    @torch.no_grad()
    def partial_fit(
        self,
        features: Rows,  # (B, D)
        y: object = None,
        sample_weight: Weights = None,  # (B,)
    ) -> "KMeans":
        """Move the centers by one batch of a stream and return this estimator; labels and inertia are of the batch.

        If there are no centers yet, the batch gives the first ones, so it needs at least as many rows as there are
        clusters. Later batches may have any number of rows.

        Raises:
            TypeError: As :meth:`fit`.
            ValueError: As :meth:`fit`.
        """
        is_first = not hasattr(self, "cluster_centers_")
        metric, _ = check_how(self)
        group = group_of(self)
        if is_first:
            settings = Settings.of(self)
            rows = checked_rows(as_rows(features, "features"), metric, group=group)
        else:
            given, centers = self._fitted(features)
            if not total_rows(given, group):
                raise ValueError("features: expected at least 1 row, got 0")
            stream = self._continued(centers, metric)
            rows = checked_rows(given.to(stream.centers.device), metric, group=group, dtype=stream.centers.dtype)
        weights = as_weights(sample_weight, rows, group)
        weighty, positive = _weighty(rows, weights)
        if is_first:
            _check_count(total_rows(weighty, group), settings.n_clusters)
            first = first_centers(weighty, positive, settings, self._generator(rows, group))
            stream = Stream(first, metric)
        stream.step(weighty, positive, group)
        labels, inertia = assigned([rows], stream.centers, metric, weights, group)
        if is_first:
            self._name_columns(features, rows)
        self._show(stream, labels, inertia, features)
        return self

    @overload
    def predict(self, features: Tensor) -> Tensor: ...
    @overload
    def predict(self, features: ArrayRows) -> NDArray[Any]: ...
    def predict(
        self,
        features: Rows,  # (N, D)
    ) -> Any:
        """Return the index of the nearest center for each row, (N,) int64."""
        rows, centers = self._fitted(features)
        metric, batch_size = check_how(self)
        return as_given(assigned(parts_of(rows, metric, batch_size), centers, metric)[0], features)

    @overload
    def transform(self, features: Tensor) -> Tensor: ...
    @overload
    def transform(self, features: ArrayRows) -> NDArray[Any]: ...
    @torch.no_grad()
    def transform(
        self,
        features: Rows,  # (N, D)
    ) -> Any:
        """Return the distances (N, K) of all rows to all centers: Euclidean, or 1 - cosine."""
        given, centers = self._fitted(features)
        metric, _ = check_how(self)
        rows = checked_rows(given, metric)
        if metric == "cosine":
            with torch.autocast(rows.device.type, enabled=False):
                return as_given(1 - rows @ l2_normalize(centers, dim=1).T, features)
        return as_given(torch.cdist(rows, centers, compute_mode="donot_use_mm_for_euclid_dist"), features)

    def score(
        self,
        features: Rows,  # (N, D)
        y: object = None,
        sample_weight: Weights = None,  # (N,)
    ) -> float:
        """Return the negative inertia of rows: the greater it is, the better they fit."""
        rows, centers = self._fitted(features)
        metric, batch_size = check_how(self)
        group = group_of(self)
        weights = as_weights(sample_weight, rows, group)
        return -assigned(parts_of(rows, metric, batch_size), centers, metric, weights, group)[1]

    def __sklearn_tags__(self) -> Any:
        """Return the tags that scikit-learn's pipelines and checks ask for."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        """Number of columns of :meth:`transform`, which scikit-learn asks for to name them."""
        return len(self.cluster_centers_)

    def _generator(self, rows: Tensor, group: "ProcessGroup | None") -> torch.Generator | None:
        """Return the source of random numbers, the same on all ranks."""
        generator = make_generator(self.random_state)
        return generator if group is None else same_generator(generator, rows.device, group)

    def _show(self, stream: Stream, labels: Tensor, inertia: float, features: object) -> None:
        """Set the fitted attributes, as tensors or arrays like the rows."""
        self._stream, self.inertia_ = stream, inertia
        self.cluster_centers_ = as_given(stream.centers.clone(), features)  # the user may change them in place
        self.labels_ = as_given(labels, features)

    def _name_columns(self, features: Any, rows: Tensor) -> None:
        """Set the number of columns, and their names where a data frame has some."""
        if isinstance(features, Tensor):
            self.n_features_in_ = rows.shape[1]
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        else:
            validate_data(self, features, skip_check_array=True)

    def _continued(
        self,
        centers: Tensor,  # (K, D)
        metric: str,
    ) -> Stream:
        """Return the stream to continue with, a new one if centers were assigned from outside or changed."""
        stream, given = self._stream, as_rows(self.cluster_centers_, "cluster_centers_")
        if stream is not None and stream.metric == metric and same_values(stream.centers, given):
            return stream
        known = stream is not None and len(stream.counts) == len(centers)
        return Stream(centers, metric, stream.counts.to(centers.device) if known and stream is not None else None)

    def _fitted(
        self,
        features: Rows,  # (N, D)
    ) -> tuple[Tensor, Tensor]:
        """Return rows as a tensor, and the centers that fit them."""
        if not hasattr(self, "cluster_centers_"):
            raise UnfittedError("KMeans: expected fit or partial_fit to be called first")
        rows, centers = as_rows(features, "features"), as_rows(self.cluster_centers_, "cluster_centers_")
        columns = centers.shape[1]
        if not len(centers):
            raise ValueError("cluster_centers_: expected at least one row, got none")
        if rows.shape[1] != columns:
            peer = f"X has {rows.shape[1]} features, but KMeans is expecting {columns} features as input"
            raise ValueError(f"features: expected {counted(columns, 'column')}, got {rows.shape[1]}: {peer}")
        if not isinstance(features, Tensor):
            validate_data(self, features, reset=False, skip_check_array=True)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        if check_numbers(centers, self.metric, "cluster_centers_", None, dtype):
            centers = l2_normalize(centers.to(torch.promote_types(centers.dtype, dtype)), dim=1)
        return rows, centers.to(rows.device, dtype)


def _weighty(
    rows: Tensor,  # (N, D)
    weights: Tensor | None,  # (N,)
) -> tuple[Tensor, Tensor | None]:
    """Return the rows with a weight above 0, and their weights."""
    if weights is None or bool((weights > 0).all()):
        return rows, weights
    return rows[weights > 0], weights[weights > 0]


def _check_count(num_rows: int, num_clusters: int) -> None:
    """Require a row for each cluster."""
    if not num_rows:
        raise ValueError(f"features: expected at least {num_clusters} rows, as many as n_clusters, got 0")
    if num_rows < num_clusters:
        raise ValueError(f"n_clusters: expected at most {num_rows}, the number of rows, got {num_clusters}")
