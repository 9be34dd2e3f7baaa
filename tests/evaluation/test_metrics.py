"""Clustering metrics: hand cases, invariances, and errors that say what is wrong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepclust_ext.evaluation.metrics import adjusted_rand, clustering_accuracy, contingency, normalized_mutual_info

METRICS = [clustering_accuracy, normalized_mutual_info, adjusted_rand]
LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40)


@given(LABELS, st.permutations(range(7)))
def test_renaming_the_clusters_changes_nothing(pairs: list[tuple[int, int]], names: list[int]) -> None:
    labels_true, labels_pred = np.array(pairs).T
    renamed = 100 - 7 * np.array(names)[labels_pred]  # not contiguous, some negative
    for metric in METRICS:
        assert metric(labels_true, renamed) == pytest.approx(metric(labels_true, labels_pred), abs=1e-12)


@given(LABELS)
def test_a_partition_agrees_with_itself(pairs: list[tuple[int, int]]) -> None:
    labels = [first for first, _ in pairs]
    for metric in METRICS:
        assert metric(labels, labels) == pytest.approx(1)


@given(LABELS)
def test_accuracy_is_symmetric_and_bounded(pairs: list[tuple[int, int]]) -> None:
    labels_true, labels_pred = np.array(pairs).T
    accuracy = clustering_accuracy(labels_true, labels_pred)
    assert accuracy == clustering_accuracy(labels_pred, labels_true)
    assert contingency(labels_true, labels_pred).max() / len(pairs) <= accuracy <= 1


def test_more_clusters_than_classes() -> None:
    # Clusters 0 and 1 match the classes with 3 and 3; the third cluster's two samples are errors.
    assert clustering_accuracy([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 2, 1, 1, 1, 2]) == 6 / 8


def test_fewer_clusters_than_classes() -> None:
    assert clustering_accuracy([0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 9, 9]) == 4 / 6


def test_greedy_matching_would_be_wrong() -> None:
    # Greedy takes the 3 first and ends with 3 + 0; the best matching is 2 + 2.
    labels_true = [0] * 5 + [1] * 2
    labels_pred = [0] * 3 + [1] * 2 + [0] * 2
    assert clustering_accuracy(labels_true, labels_pred) == 4 / 7


def test_negative_labels_are_ordinary_labels() -> None:
    assert clustering_accuracy([-1, -1, 3], [7, 7, -5]) == 1


def test_tensors_arrays_and_lists_agree() -> None:
    labels_true, labels_pred = [0, 0, 1, 2], [1, 1, 0, 0]
    for metric in METRICS:
        expected = metric(labels_true, labels_pred)
        assert metric(np.array(labels_true), torch.tensor(labels_pred)) == expected
        assert isinstance(expected, float)


@pytest.mark.parametrize("metric", METRICS)
def test_errors_name_the_argument(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="labels_true: expected at least one label, got none"):
        metric([], [])
    with pytest.raises(ValueError, match="labels_pred: expected a label for each sample, got NaN or infinity"):
        metric([0, 1], [0.0, math.nan])
    with pytest.raises(ValueError, match="labels_true: expected a label for each sample, got NaN or infinity"):
        metric(torch.tensor([1.0, math.nan]), [0, 1])
    with pytest.raises(TypeError, match="^labels_true: expected integers or names, got NoneType, int$"):
        metric([0, None], [0, 1])
    with pytest.raises(TypeError, match="^labels_pred: expected integers or names, got float, str$"):
        metric(["a", "b"], np.array(["a", math.nan], dtype=object))
    assert metric(["a", "b"], np.array(["a", np.str_("b")], dtype=object)) == 1
    with pytest.raises(ValueError, match="labels_pred: expected 2 labels as in labels_true, got 3"):
        metric([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"labels_pred: expected one dimension, got shape \(2, 1\)"):
        metric([0, 1], [[0], [1]])
