"""Sinkhorn-Knopp of scores among which some are far below all others: masked, as nobody would write a plan by hand."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust_ext import reference, sinkhorn_knopp

LOWEST = torch.finfo(torch.float32).min


def scaled_as_published(scores: Tensor, epsilon: float, num_iters: int) -> Tensor:
    """The loop of SwAV in float64: exponentials, then rows and columns divided by their sums in turn."""
    plan = (scores.double() / epsilon).exp()
    plan /= plan.sum()
    for _ in range(num_iters):
        plan /= plan.sum(dim=0) * plan.shape[1]
        plan /= plan.sum(dim=1, keepdim=True) * plan.shape[0]
    return plan * plan.shape[0]


def scaled_by_logarithms(scores: Tensor, epsilon: float, num_iters: int) -> Tensor:
    """The same in logarithms of a longer float, where exponentials would be 0."""
    logits = scores.double().numpy().astype(np.longdouble) / np.longdouble(epsilon)
    log_v, log_u = np.zeros((1, logits.shape[1]), np.longdouble), np.zeros((len(logits), 1), np.longdouble)
    for _ in range(num_iters):
        log_v = -np.log(np.longdouble(logits.shape[1])) - np.logaddexp.reduce(logits + log_u, axis=0, keepdims=True)
        log_u = -np.log(np.longdouble(len(logits))) - np.logaddexp.reduce(logits + log_v, axis=1, keepdims=True)
    return torch.from_numpy((np.exp(logits + log_u + log_v) * len(logits)).astype(np.float64))


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


@pytest.mark.parametrize("shape", [(40, 6), (50, 70), (290, 60)])  # the last one takes many thread blocks
@pytest.mark.parametrize(("value", "epsilon"), [(-10.0, 0.01), (-1e4, 0.05), (-1e5, 0.005), (-1e6, 0.05), (-1e9, 0.05)])
@pytest.mark.parametrize("where", ["row", "column", "uneven row", "uneven column", "everything"])
def test_no_digits_are_lost_beside_scores_far_from_zero(
    where: str, value: float, epsilon: float, shape: tuple[int, int], backend: str
) -> None:
    """Also where values far from zero differ among themselves by as little as float32 tells there."""
    scores = make_scores(*shape)
    if where == "everything":
        scores += value
    else:
        place = 1 if where.endswith("row") else (slice(None), 2)
        scores[place] = scores[place] + value if where.startswith("uneven") else torch.tensor(value)
    truth = scaled_by_logarithms(scores, epsilon, 3)
    assignments = sinkhorn_knopp(scores, epsilon=epsilon).double()
    counts = truth > 1e-6
    # The reference rounds exponents, as large as 1 / epsilon, as they are.
    error = 3e-6 if backend == "native" else 1e-6 / epsilon
    torch.testing.assert_close(assignments[counts], truth[counts], rtol=error, atol=0)
    torch.testing.assert_close(assignments, truth, rtol=0, atol=error)
    weights = scores.sigmoid()
    expected = gradient_of(partial(reference.sinkhorn_knopp, epsilon=epsilon), scores.double(), weights.double())
    gradient = gradient_of(partial(sinkhorn_knopp, epsilon=epsilon), scores, weights)
    # A difference of terms as large as 1 / epsilon.
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 / epsilon)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(40, 6), (50, 70), (290, 60)])
@pytest.mark.parametrize("epsilon", [0.005, 0.05])
@pytest.mark.parametrize("heights", [(1e3,), (1e5,), (1e9,), (1e9, 1e5, -1e7), (3e5, 3.001e5)], ids=str)
def test_samples_far_above_take_no_digits_from_the_others(
    heights: tuple[float, ...], epsilon: float, shape: tuple[int, int]
) -> None:
    scores = make_scores(*shape)
    for row, height in enumerate(heights):
        scores[3 * row] += height
    truth = scaled_by_logarithms(scores, epsilon, 3)
    assignments = sinkhorn_knopp(scores, epsilon=epsilon).double()
    counts = truth > 1e-6
    error = 4e-6 / epsilon  # roundings of exponents that are as large as 2 / epsilon
    torch.testing.assert_close(assignments[counts], truth[counts], rtol=error, atol=0)
    torch.testing.assert_close(assignments, truth, rtol=0, atol=error)
    weights = scores.sigmoid()
    expected = gradient_of(partial(reference.sinkhorn_knopp, epsilon=epsilon), scores.double(), weights.double())
    gradient = gradient_of(partial(sinkhorn_knopp, epsilon=epsilon), scores, weights)
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=2e-5 / epsilon)


def test_no_digits_are_lost_where_scores_are_far_apart() -> None:
    for scale in (10, 100, 1e3, 1e4):
        scores = make_scores(50, 70) * scale
        truth = scaled_by_logarithms(scores, 0.05, 3)
        torch.testing.assert_close(sinkhorn_knopp(scores).double(), truth, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("spread", [1e3, 1e4, 1e5, 1e6])
def test_samples_and_clusters_that_are_far_apart(spread: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    offsets = [torch.rand(shape, generator=generator) * spread * 0.05 for shape in ((50, 1), (1, 70))]
    scores = make_scores(50, 70) + offsets[0] + offsets[1]
    error = 3e-6 if backend == "native" else 2e-8 * spread  # potentials of one number are rounded as they are
    torch.testing.assert_close(
        sinkhorn_knopp(scores).double(), scaled_by_logarithms(scores, 0.05, 3), rtol=0, atol=error
    )


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


# Each with its right plan. A row has a mask of another size than a column, or is far above all others.
MIXED = [
    ([[0.5, -1e9], [LOWEST, LOWEST]], {"epsilon": 0.5}, [[5 / 6, 1 / 6], [0, 1]]),
    ([[1.0, 0.0], [0.0, 1.0], [1e9, 1e9]], {}, [[1, 0], [0, 1], [0.5, 0.5]]),
    ([[1.0, 0.0], [0.0, 0.9], [1e30, 1e30]], {}, [[1, 0], [0, 1], [0.5, 0.5]]),
    (
        [[0.5, -0.3, 0.1], [-0.2, 0.4, 0.0], [LOWEST] * 3],
        {"epsilon": 0.001, "shares": [1, 1, 0]},
        torch.eye(3)[[0, 1, 1]],
    ),
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("scores", "options", "expected"), MIXED)
def test_masks_of_several_sizes(scores: list[list[float]], options: dict[str, Any], expected: Any) -> None:
    shares = torch.tensor(options["shares"]).float() if "shares" in options else None
    found = sinkhorn_knopp(torch.tensor(scores), epsilon=options.get("epsilon", 0.05), cluster_marginals=shares)
    torch.testing.assert_close(found, torch.as_tensor(expected).float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    scores = make_scores(256, 32).to(dtype)
    found, wide = reference.sinkhorn_knopp(scores), reference.sinkhorn_knopp(scores.float())
    assert isinstance(found, Tensor)
    assert isinstance(wide, Tensor)
    assert torch.equal(found, wide.to(dtype))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shares_whose_sum_overflows(dtype: torch.dtype) -> None:
    largest = torch.full((2,), torch.finfo(dtype).max, dtype=dtype)
    found = sinkhorn_knopp(torch.zeros(3, 2, dtype=dtype), cluster_marginals=largest, sample_marginals=torch.ones(3))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))
