"""kmeans_seed: the first centers of k-means by greedy k-means++, from given random numbers."""

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import check_dtype, check_metric, check_tensor


def kmeans_seed(
    features: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C) float64, in [0, 1)
    *,
    metric: str = "euclidean",
    weights: Tensor | None = None,  # (N,) float64, none negative
) -> Tensor:
    r"""Choose K rows as first centers by greedy k-means++.

    The cost of a row is its weight times its squared Euclidean or its cosine distance from the nearest row chosen so
    far. For every further center, C candidate rows are drawn with probabilities proportional to their costs. The one
    that leaves the least total cost is chosen:

    .. math::
        c_t = \arg\min_{j \in J_t} \sum_i w_i \min(d(x_i, x_j), \min_{s<t} d(x_i, x_{c_s})) \qquad
        P(j \in J_t) \propto w_j \min_{s<t} d(x_j, x_{c_s})

    Costs are scaled to 64-bit integers before they are added up. So the same random numbers choose the same rows with
    any number of threads. Ties go to the first candidate. On the CPU, products of 16-bit integers rule out most rows: a
    bound proves that they are nearer to a center that they have. The other distances are computed by differences, as in
    :func:`~deepclust_ext.kmeans_assign`.

    Args:
        features: Rows (N, D), float16, bfloat16, float32 or float64; N > 0, D > 0. Squared distances must not overflow.
        uniform: Random numbers (K, C) in [0, 1), float64; row t draws the candidates of center t. Of the first row only
            the first number is used: it draws the first center by weight.
        metric: ``"euclidean"`` or ``"cosine"``.
        weights: Weights (N,), float64, none negative and one above 0; None for equal ones. Whole numbers choose the
            rows that as many copies of each would.

    Returns:
        The indices (K,) of the chosen rows, int64, a constant. Rows may repeat if there are fewer than K distinct ones.
        If a row has a NaN or Inf, all indices are -1.

    Raises:
        TypeError: An argument is no tensor or of an unsupported dtype.
        ValueError: A shape, device or the metric does not fit.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        >>> kmeans_seed(features, torch.tensor([[0.3], [0.6]], dtype=torch.float64)).tolist()
        [1, 3]

    Source: D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007; several candidates
    are proposed in its conclusion.
    """
    _check(features, uniform, metric, weights)
    if not _extension.uses_native(features.device.type):
        return reference.kmeans_seed(features, uniform, metric=metric, weights=weights)
    return torch.ops.deepclust_ext.kmeans_seed.default(features, uniform, metric, weights)  # type: ignore[no-any-return]


def _check(
    features: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C)
    metric: str,
    weights: Tensor | None,  # (N,)
) -> None:
    check_tensor(features, "features")
    check_dtype(features, "features")
    if features.dim() != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(f"features: expected shape (N, D) with N > 0 and D > 0, got {tuple(features.shape)}")
    _check_numbers(uniform, "uniform", features)
    if uniform.dim() != 2 or uniform.shape[0] == 0 or uniform.shape[1] == 0:
        raise ValueError(f"uniform: expected shape (K, C) with K > 0 and C > 0, got {tuple(uniform.shape)}")
    check_metric(metric)
    if weights is not None:
        _check_numbers(weights, "weights", features)
        if weights.dim() != 1 or weights.shape[0] != features.shape[0]:
            expected = f"({features.shape[0]},), one for each row of features"
            raise ValueError(f"weights: expected shape {expected}, got {tuple(weights.shape)}")


def _check_numbers(
    values: Tensor,
    name: str,
    features: Tensor,  # (N, D)
) -> None:
    check_tensor(values, name)
    if values.dtype != torch.float64:
        raise TypeError(f"{name}: expected dtype torch.float64, got {values.dtype}")
    if values.device != features.device:
        raise ValueError(f"{name}: expected device {features.device} like features, got {values.device}")


def _fake(
    features: Tensor,  # (N, D)
    uniform: Tensor,  # (K, C)
    metric: str = "euclidean",
    weights: Tensor | None = None,  # (N,)
) -> Tensor:
    _check(features, uniform, metric, weights)
    return features.new_empty(uniform.shape[0], dtype=torch.int64)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::kmeans_seed", _fake)
