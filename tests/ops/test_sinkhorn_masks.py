"""Sinkhorn-Knopp of scores among which some are far below all others: masked, as nobody would write a plan by hand."""

import pytest
import torch
from torch import Tensor

from deepclust_ext import reference, sinkhorn_knopp
from tests.helpers import EMULATED

LOWEST = torch.finfo(torch.float32).min
NO_DIGITS_LEFT = pytest.mark.skipif(EMULATED, reason="beside such potentials float32 has no digits left on CUDA")


def scaled_as_published(scores: Tensor, epsilon: float, num_iters: int) -> Tensor:
    """The loop of SwAV in float64: exponentials, then rows and columns divided by their sums in turn."""
    plan = (scores.double() / epsilon).exp()
    plan /= plan.sum()
    for _ in range(num_iters):
        plan /= plan.sum(dim=0) * plan.shape[1]
        plan /= plan.sum(dim=1, keepdim=True) * plan.shape[0]
    return plan * plan.shape[0]


def make_scores(samples: int, clusters: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(samples, clusters, generator=generator) * 2 - 1


def make_mask(kind: str, samples: int, clusters: int) -> Tensor:
    mask = torch.zeros(samples, clusters, dtype=torch.bool)
    if kind == "one":
        mask[1, 2] = True
    elif kind == "third":
        mask = torch.rand(samples, clusters, generator=torch.Generator().manual_seed(1)) < 0.3
        mask[torch.arange(samples), torch.arange(samples) % clusters] = False
    else:  # all but one of a row, and of a column
        mask[3, 1:] = True
        mask[4:, 2] = True
    return mask


def gradient_of(function: object, scores: Tensor, weights: Tensor) -> Tensor:
    leaf = scores.clone().requires_grad_()
    assignments = function(leaf, differentiable=True)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad((assignments * weights).sum(), leaf)
    return gradient


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(40, 6), (50, 70)])  # 64 clusters and fewer have kernels of their own on the CPU
@pytest.mark.parametrize("kind", ["one", "third", "almost all"])
@pytest.mark.parametrize("value", [-1e6, -1e9, -1e30, LOWEST])
def test_masked_scores_get_nothing_and_change_nothing(value: float, kind: str, shape: tuple[int, int]) -> None:
    scores, mask = make_scores(*shape), make_mask(kind, *shape)
    masked = scores.masked_fill(mask, value)
    truth = scaled_as_published(masked, 0.05, 3)
    assignments = sinkhorn_knopp(masked)
    assert int(assignments[mask].count_nonzero()) == 0
    torch.testing.assert_close(assignments.double(), truth, rtol=1e-4, atol=1e-6)
    expected = gradient_of(reference.sinkhorn_knopp, masked.double(), scores.double())
    gradient = gradient_of(sinkhorn_knopp, masked, scores)
    assert int(gradient[mask].count_nonzero()) == 0
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@NO_DIGITS_LEFT
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(40, 6), (50, 70)])
@pytest.mark.parametrize("value", [-1e6, -1e9, LOWEST])
@pytest.mark.parametrize("whole", ["row", "column"])
def test_a_row_or_column_of_masks_alone_is_even(whole: str, value: float, shape: tuple[int, int]) -> None:
    """What is masked throughout counts from its largest score, as in exact arithmetic; the published loop is NaN."""
    scores = make_scores(*shape)
    where = 1 if whole == "row" else (slice(None), 2)
    scores[where] = value
    assignments = sinkhorn_knopp(scores)
    scores[where] = -1e3  # far enough below all others
    truth = reference.sinkhorn_knopp(scores.double())
    torch.testing.assert_close(assignments.double(), truth, rtol=1e-4, atol=1e-6)


@NO_DIGITS_LEFT
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("offset", [-1e5, 1e5])
def test_an_offset_far_from_zero_cancels(offset: float) -> None:
    scores = (make_scores(40, 6) * 64).round() / 64  # which the sum with the offset holds exactly
    moved = scores + offset
    torch.testing.assert_close(sinkhorn_knopp(moved, epsilon=0.02), sinkhorn_knopp(scores, epsilon=0.02))


@pytest.mark.usefixtures("backend")
def test_samples_and_clusters_without_a_share_may_hold_anything() -> None:
    scores = make_scores(40, 6)
    scores[3], scores[:, 5], scores[7, 1] = 1e30, -1e30, LOWEST
    samples, clusters = torch.ones(40), torch.ones(6)
    samples[3], clusters[5] = 0, 0
    assignments = sinkhorn_knopp(scores, sample_marginals=samples, cluster_marginals=clusters)
    assert int(assignments[3].count_nonzero()) == int(assignments[:, 5].count_nonzero()) == 0
    kept = torch.arange(40) != 3
    truth = scaled_as_published(scores[kept, :5], 0.05, 3) * 40 / 39
    torch.testing.assert_close(assignments[kept, :5].double(), truth, rtol=1e-4, atol=1e-6)
