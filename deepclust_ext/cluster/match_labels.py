"""Rename the labels of one clustering to match another."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deepclust_ext.ops._checks import check_labels, check_size, check_values


def match_labels(
    labels: Tensor,  # (N,)
    reference: Tensor,  # (N,)
    num_clusters: int | None = None,
) -> Tensor:
    """Rename labels, so that as many samples as possible have the label that they have in another clustering.

    The partition of the samples stays, because every label gets another name. Each is named after a cluster of
    ``reference``, by the Hungarian method on the counts of samples. If there are more labels than clusters, the
    remaining ones are called ``num_clusters`` and so on, in ascending order. The result depends on these counts alone,
    not on the order of the samples or on the device; among several best matchings it is always the same one.

    In PICI this makes the labels of k-means mean clusters of the cluster head. It is done over the whole data set,
    because a batch has too few samples. Source: https://arxiv.org/abs/2401.13503, equation 15 of its manuscript.

    Args:
        labels: Any integers.
        reference: Clusters of the same samples, from 0.
        num_clusters: K, the number of clusters of ``reference``; by default one more than its largest cluster. Count
            clusters without a sample too, because labels may get their names.

    Returns:
        Labels (N,), int64, on the device of ``labels``. The call waits for the device.

    Raises:
        TypeError: If an argument is no integer tensor, or ``num_clusters`` no integer.
        ValueError: If a shape, a device or ``num_clusters`` does not fit, or a cluster is below 0.

    Example:
        >>> match_labels(torch.tensor([7, 7, 3, 3, 3, 5]), torch.tensor([0, 0, 1, 1, 0, 0])).tolist()
        [0, 0, 1, 1, 1, 2]
    """
    for tensor, name in ((labels, "labels"), (reference, "reference")):
        check_labels(tensor, name)
    if labels.dim() != 1:
        raise ValueError(f"labels: expected shape (N,), got {tuple(labels.shape)}")
    if reference.shape != labels.shape:
        raise ValueError(f"reference: expected shape {tuple(labels.shape)} like labels, got {tuple(reference.shape)}")
    if reference.device != labels.device:
        raise ValueError(f"reference: expected device {labels.device} like labels, got {reference.device}")
    check_values(labels, "labels")
    reference = reference.to(torch.int64)
    low, high = torch.stack(reference.aminmax()).tolist() if len(reference) else (0, -1)
    if low < 0:
        raise ValueError(f"reference: expected clusters of at least 0, got {low}")
    num_clusters = high + 1 if num_clusters is None else check_size(num_clusters, "num_clusters")
    if high >= num_clusters:
        raise ValueError(f"reference: expected clusters below num_clusters, which is {num_clusters}, got {high}")
    found, places = labels.unique(return_inverse=True)
    cells = places * num_clusters + reference
    counts = cells.bincount(minlength=len(found) * num_clusters).view(len(found), num_clusters)
    # PICI, equation 15: it takes the least cost, which is the largest count less each count.
    matched, clusters = map(torch.from_numpy, linear_sum_assignment(counts.cpu().numpy(), maximize=True))
    names = torch.full((len(found),), -1, device="cpu")
    names[matched] = clusters
    left_over = names < 0
    names[left_over] = num_clusters + torch.arange(int(left_over.sum()), device="cpu")
    return names.to(labels.device)[places]
