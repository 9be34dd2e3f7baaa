"""match_labels against all matchings there are, and what it does with ties, empty clusters and labels left over."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext.cluster import match_labels
from deepclust_ext.evaluation.metrics import clustering_accuracy
from tests.helpers import DEVICES


def agreement(labels: Tensor, reference: Tensor) -> int:
    return int((labels == reference).sum())


def same_partition(first: Tensor, second: Tensor) -> bool:
    together = [labels.unsqueeze(0) == labels.unsqueeze(1) for labels in (first, second)]
    return torch.equal(*together)


def best_agreement(labels: Tensor, reference: Tensor, num_clusters: int) -> int:
    """The most samples that any way to name the labels puts in their cluster."""
    found = labels.unique().tolist()
    size = max(len(found), num_clusters)  # names from num_clusters on are no cluster
    pairs = list(zip(labels.tolist(), reference.tolist(), strict=True))
    best: int = max(
        sum(names[found.index(label)] == cluster for label, cluster in pairs)
        for names in permutations(range(size), len(found))
    )
    return best


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_clusters", [1, 2, 7, 100])
def test_permutations_are_undone(num_clusters: int, device: str) -> None:
    reference = torch.randint(num_clusters, (1000,), device=device)
    order = torch.randperm(num_clusters, device=device)
    matched = match_labels(order[reference], reference, num_clusters)
    assert matched.device == reference.device
    assert torch.equal(matched, reference)


def test_permutations_are_undone_where_some_samples_moved() -> None:
    reference = torch.arange(600) % 6
    labels = (reference + 2) % 6
    labels[::9] = torch.randint(6, (67,))
    assert agreement(match_labels(labels, reference), reference) >= 600 - 67
    assert torch.equal(match_labels(labels, reference), (labels - 2) % 6)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2))
def test_no_matching_is_better(seed: int, samples: int, num_labels: int, num_clusters: int, empty: int) -> None:
    torch.manual_seed(seed)
    labels, reference = torch.randint(num_labels, (samples,)), torch.randint(num_clusters, (samples,))
    known = num_clusters + empty
    matched = match_labels(labels, reference, known)
    assert agreement(matched, reference) == best_agreement(labels, reference, known)
    assert same_partition(matched, labels)
    assert agreement(matched, reference) / samples == pytest.approx(clustering_accuracy(reference, labels))
    names = matched.unique().tolist()
    assert max(names) < max(known, len(names))


def test_labels_left_over_are_named_after_the_clusters() -> None:
    labels = torch.tensor([5, 5, 5, 9, 9, -1, 2, 2, 2, 2])
    reference = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert match_labels(labels, reference).tolist() == [1, 1, 1, 3, 3, 2, 0, 0, 0, 0]
    assert match_labels(labels, reference, 3).tolist()[:3] == [1, 1, 1]
    # With a third cluster, which has no sample, one label less is left over.
    assert match_labels(labels, reference, 3).unique().tolist() == [0, 1, 2, 3]


def test_clusters_without_a_sample_give_their_names_when_they_are_counted() -> None:
    labels, reference = torch.tensor([0, 1, 2, 3, 3, 3]), torch.tensor([1, 1, 1, 1, 1, 1])
    assert match_labels(labels, reference, 4)[3] == 1
    assert match_labels(labels, reference, 4).unique().tolist() == [0, 1, 2, 3]
    assert match_labels(labels, reference).tolist() == [0, 2, 3, 1, 1, 1]
    # Fewer labels than clusters.
    assert match_labels(torch.tensor([8, 8, 4]), torch.tensor([2, 2, 5]), 9).tolist() == [2, 2, 5]


def test_ties_fall_the_same_way_in_any_order_of_the_samples() -> None:
    labels, reference = torch.arange(36) // 6, torch.arange(36) % 6  # every label as often in every cluster
    matched = match_labels(labels, reference)
    assert agreement(matched, reference) == 6
    assert torch.equal(match_labels(labels, reference), matched)
    order = torch.randperm(36)
    assert torch.equal(match_labels(labels[order], reference[order]), matched[order])
    # The names that labels have matter by their order alone.
    assert torch.equal(match_labels(10 * labels - 7, reference), matched)


def test_large_names_cost_nothing() -> None:
    labels = torch.tensor([2**62, -(2**62), 2**62])
    assert match_labels(labels, torch.tensor([0, 1, 0])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers(dtype: torch.dtype) -> None:
    labels, reference = torch.tensor([200, 3, 3], dtype=dtype), torch.tensor([1, 100, 100], dtype=dtype)
    matched = match_labels(labels, reference)
    assert matched.dtype == torch.int64
    assert matched.tolist() == [1, 100, 100]


@pytest.mark.parametrize("num_clusters", [None, 3])
def test_no_samples(num_clusters: int | None) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert match_labels(nothing, nothing, num_clusters).shape == (0,)


def test_errors_name_the_argument() -> None:
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match="labels: expected a tensor, got list"):
        match_labels([0], labels)  # type: ignore[arg-type]
    for wrong in (labels.float(), labels > 0):
        with pytest.raises(TypeError, match=f"reference: expected an integer tensor, got {wrong.dtype}"):
            match_labels(labels, wrong)
    with pytest.raises(ValueError, match=r"labels: expected shape \(N,\), got \(1, 3\)"):
        match_labels(labels.unsqueeze(0), labels)
    with pytest.raises(ValueError, match=r"reference: expected shape \(3,\) like labels, got \(2,\)"):
        match_labels(labels, labels[:2])
    with pytest.raises(ValueError, match="reference: expected device cpu like labels, got meta"):
        match_labels(labels, labels.to("meta"))
    with pytest.raises(ValueError, match="reference: expected clusters of at least 0, got -1"):
        match_labels(labels, labels - 1)
    with pytest.raises(ValueError, match="reference: expected clusters below num_clusters, which is 2, got 2"):
        match_labels(labels, labels, 2)
    with pytest.raises(ValueError, match="num_clusters: expected at least 1, got 0"):
        match_labels(labels, labels, 0)
