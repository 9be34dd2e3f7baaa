"""kmeans_assign and kmeans_update, the two halves of a k-means iteration, and kmeans_step, a whole one."""

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import check_dtype, check_like, check_metric, check_size, check_tensor


def kmeans_assign(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    *,
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor]:
    r"""Find the nearest centroid of every row, without any N x K matrix.

    .. math::
        label_i = \arg\min_c d(x_i, y_c) \qquad distance_i = \min_c d(x_i, y_c)

    with :math:`d(x, y) = |x - y|` for the metric ``"euclidean"`` and, for ``"cosine"``,

    .. math::
        d(x, y) = 1 - x \cdot y / (\max(|x|, 10^{-12}) \max(|y|, 10^{-12}))

    Matrix products only narrow the choice. Distances are summed over squared differences, so an offset that rows and
    centroids share costs no precision. Ties go to the lowest index; results do not depend on the number of threads.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32. The results are
    constants: they never require a gradient, so ``backward`` through them alone raises ``RuntimeError``.

    Args:
        features: Rows (N, D), float16, bfloat16, float32 or float64; D > 0. N may be 0.
        centroids: Rows (K, D) of the same dtype and device, K > 0.
        metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
        The pair of labels (N,) int64 and distances (N,) in the input dtype. A row with a NaN or Inf gets label -1 and
        distance NaN; a NaN or Inf in a centroid does this to all rows.

    Raises:
        TypeError: An argument is no tensor, or of an unsupported or different dtype.
        ValueError: A shape, device or the metric does not fit.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 1.0]])
        >>> labels, distances = kmeans_assign(features, torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
        >>> labels.tolist(), distances.tolist()
        ([0, 0, 1], [0.0, 5.0, 1.0])

    Source: S. Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28 (1982).
    """
    _check_assign(features, centroids, metric)
    if not _extension.uses_native(features.device.type):
        return reference.kmeans_assign(features, centroids, metric=metric)
    labels, distances = torch.ops.deepclust_ext.kmeans_assign.default(features, centroids, metric)
    return labels, distances


def kmeans_update(
    features: Tensor,  # (N, D)
    labels: Tensor,  # (N,) int64
    num_clusters: int,
) -> tuple[Tensor, Tensor]:
    """Add up the rows of every cluster, in an order that depends on the sizes alone.

    Args:
        features: Rows (N, D), float16, bfloat16, float32 or float64; D > 0. N may be 0.
        labels: The cluster of every row, int64; rows with a label outside [0, num_clusters) are left out.
        num_clusters: K, at least 1.

    Returns:
        The pair of sums (K, D), float32, or float64 for float64, and counts (K,) int64. Like those of
        :func:`kmeans_assign` they are constants.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit.

    Example:
        >>> sums, counts = kmeans_update(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 1, -1]), 2)
        >>> sums.tolist(), counts.tolist()
        ([[0.0], [3.0]], [0, 2])

    Source: S. Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28 (1982).
    """
    num_clusters = _check_update(features, labels, num_clusters)
    if not _extension.uses_native(features.device.type):
        return reference.kmeans_update(features, labels, num_clusters)
    sums, counts = torch.ops.deepclust_ext.kmeans_update.default(features, labels, num_clusters)
    return sums, counts


def kmeans_step(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    *,
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Make one of Lloyd's iterations: assign all rows, then move every center to the middle of its rows.

    .. math::
        s_c = \sum_{label_i = c} x_i \qquad y'_c = s_c / n_c \quad \text{or} \quad y'_c = s_c / |s_c|

    The first form is for the metric ``"euclidean"``, the second for ``"cosine"``, where rows should have norm 1. A
    center without rows stays. The result is that of :func:`kmeans_assign` and then :func:`kmeans_update`, but rows are
    read only once, and distances are computed only where they decide. Under autocast half-precision inputs are cast to
    float32.

    Args:
        features: Rows (N, D), float16, bfloat16, float32 or float64; D > 0. N may be 0.
        centroids: The centers (K, D) so far, of the same dtype and device, K > 0.
        metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
        Labels (N,) int64; centers (K, D), float32, or float64 for float64; counts (K,) int64; and the change (2,)
        float64: the sum of the squared distances of all centers from the old ones, and the number of empty clusters.
        Like those of :func:`kmeans_assign` all are constants.

    Raises:
        TypeError: An argument is no tensor, or of an unsupported or different dtype.
        ValueError: A shape, device or the metric does not fit.

    Example:
        >>> features, centroids = torch.tensor([[0.0], [2.0], [7.0]]), torch.tensor([[0.0], [9.0]])
        >>> labels, centers, counts, change = kmeans_step(features, centroids)
        >>> centers.tolist(), counts.tolist(), change.tolist()
        ([[1.0], [7.0]], [2, 1], [5.0, 0.0])

    Source: S. Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28 (1982).
    """
    _check_assign(features, centroids, metric)
    if not _extension.uses_native(features.device.type):
        return reference.kmeans_step(features, centroids, metric=metric)
    labels, centers, counts, change = torch.ops.deepclust_ext.kmeans_step.default(features, centroids, metric)
    return labels, centers, counts, change


def _check_features(
    features: Tensor,  # (N, D)
) -> None:
    check_tensor(features, "features")
    check_dtype(features, "features")
    if features.dim() != 2 or features.shape[1] == 0:
        raise ValueError(f"features: expected shape (N, D) with D > 0, got {tuple(features.shape)}")


def _check_assign(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    metric: str,
) -> None:
    _check_features(features)
    check_like(centroids, "centroids", features, "features", columns=features.shape[1])
    if centroids.shape[0] == 0:
        raise ValueError(f"centroids: expected shape (K, D) with K > 0, got {tuple(centroids.shape)}")
    check_metric(metric)


def _check_update(
    features: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    num_clusters: int,
) -> int:
    """Return num_clusters."""
    _check_features(features)
    check_tensor(labels, "labels")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected dtype torch.int64, got {labels.dtype}")
    if labels.dim() != 1 or labels.shape[0] != features.shape[0]:
        expected = f"({features.shape[0]},), one for each row of features"
        raise ValueError(f"labels: expected shape {expected}, got {tuple(labels.shape)}")
    if labels.device != features.device:
        raise ValueError(f"labels: expected device {features.device} like features, got {labels.device}")
    return check_size(num_clusters, "num_clusters")


def _fake_assign(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor]:
    _check_assign(features, centroids, metric)
    count = features.shape[0]
    return features.new_empty(count, dtype=torch.int64), features.new_empty(count)


def _fake_step(
    features: Tensor,  # (N, D)
    centroids: Tensor,  # (K, D)
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_assign(features, centroids, metric)
    labels = features.new_empty(features.shape[0], dtype=torch.int64)
    centers = torch.empty_like(centroids, dtype=torch.promote_types(centroids.dtype, torch.float32))
    return labels, centers, labels.new_empty(centroids.shape[0]), features.new_empty(2, dtype=torch.float64)


def _fake_update(
    features: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    num_clusters: int,
) -> tuple[Tensor, Tensor]:
    _check_update(features, labels, num_clusters)
    accumulation = torch.promote_types(features.dtype, torch.float32)
    sums = features.new_empty((num_clusters, features.shape[1]), dtype=accumulation)
    return sums, features.new_empty(num_clusters, dtype=torch.int64)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::kmeans_assign", _fake_assign)
    torch.library.register_fake("deepclust_ext::kmeans_step", _fake_step)
    torch.library.register_fake("deepclust_ext::kmeans_update", _fake_update)
