"""External clustering metrics in scikit-learn's argument order, for any labels and any number of clusters."""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from deepclust_ext.ops._checks import SUPPORTED_DTYPES, check_tensor, check_values

Labels: TypeAlias = ArrayLike | Tensor


def clustering_accuracy(
    labels_true: Labels,  # (N,)
    labels_pred: Labels,  # (N,)
) -> float:
    """Return the share of samples on the best one-to-one matching of clusters to classes, in [0, 1].

    Labels may be any integers or strings. Surplus clusters, or surplus classes, match nothing, and their samples count
    as errors. The matching is found by the Hungarian method.

    Raises:
        TypeError: If labels are complex, or a tensor without values.
        ValueError: If an argument is not one-dimensional, is empty or holds NaN, or the lengths differ.
    """
    table = contingency(labels_true, labels_pred)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def normalized_mutual_info(
    labels_true: Labels,  # (N,)
    labels_pred: Labels,  # (N,)
) -> float:
    """Return the mutual information over the arithmetic mean of both entropies, in [0, 1].

    Raises:
        ValueError: As :func:`clustering_accuracy`.
    """
    return float(normalized_mutual_info_score(*_checked(labels_true, labels_pred)))


def adjusted_rand(
    labels_true: Labels,  # (N,)
    labels_pred: Labels,  # (N,)
) -> float:
    """Return the Rand index adjusted for chance: 0 in the mean for random labels, 1 for equal partitions.

    Raises:
        ValueError: As :func:`clustering_accuracy`.
    """
    return float(adjusted_rand_score(*_checked(labels_true, labels_pred)))


def contingency(
    labels_true: Labels,  # (N,)
    labels_pred: Labels,  # (N,)
) -> NDArray[np.int64]:
    """Return the counts (classes, clusters), rows and columns in the sorted order of the labels that occur.

    Raises:
        ValueError: As :func:`clustering_accuracy`.
    """
    table: NDArray[np.int64] = contingency_matrix(*_checked(labels_true, labels_pred))
    return table


def as_labels(name: str, labels: Labels) -> NDArray[Any]:
    """Return labels as an array; TypeError for a tensor without values of its own, or numbers that are not real."""
    if isinstance(labels, Tensor):
        check_tensor(labels, name)
        check_values(labels, name)
        if labels.is_quantized or (labels.is_floating_point() and labels.dtype not in SUPPORTED_DTYPES):
            raise TypeError(f"{name}: expected integers or names, got {labels.dtype}")
        labels = labels.detach().cpu()
        labels = (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()
    array: NDArray[Any] = np.asarray(labels)
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected integers or names, got {array.dtype}")
    if array.dtype == object:
        try:
            np.unique(array)
        except TypeError:  # what has no order
            kinds = sorted({type(label).__name__ for label in array.flat})
            raise TypeError(f"{name}: expected integers or names, got {', '.join(kinds)}") from None
    return array


def _checked(labels_true: Labels, labels_pred: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    arrays = []
    for name, labels in (("labels_true", labels_true), ("labels_pred", labels_pred)):
        array = as_labels(name, labels)
        if array.ndim != 1:
            raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
        if array.size == 0:
            raise ValueError(f"{name}: expected at least one label, got none")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected a label for each sample, got NaN or infinity")
        arrays.append(array)
    if arrays[0].size != arrays[1].size:
        raise ValueError(f"labels_pred: expected {arrays[0].size} labels as in labels_true, got {arrays[1].size}")
    return arrays[0], arrays[1]
