"""SinkhornKnopp hands its arguments to the op, which agrees with a loop and with a hand-computed case."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import sinkhorn_knopp
from deepclust_ext.losses import SinkhornKnopp


def scores_of(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("form", ["shared", "per problem"])
def test_module_equals_op(form: str) -> None:
    options: dict[str, Any] = {"epsilon": 0.7, "num_iters": 40, "tolerance": 0.01, "differentiable": True}
    batch = (2,) if form == "per problem" else ()
    scores = scores_of(2, 7, 4).requires_grad_()
    shares = torch.rand(*batch, 7) + 0.1, torch.rand(*batch, 4) + 0.1
    assignments = SinkhornKnopp(**options)(scores, *shares)
    expected = sinkhorn_knopp(scores, **options, sample_marginals=shares[0], cluster_marginals=shares[1])
    assert torch.equal(assignments, expected)
    # Every option matters here.
    assert assignments.requires_grad
    for changed in ({"epsilon": 0.6}, {"num_iters": 1}, {"tolerance": 0.3}):
        assert not torch.equal(SinkhornKnopp(**(options | changed))(scores, *shares), expected)


def test_defaults_are_the_op_s() -> None:
    scores = scores_of(6, 3).requires_grad_()
    assignments = SinkhornKnopp()(scores)
    assert torch.equal(assignments, sinkhorn_knopp(scores))
    assert not assignments.requires_grad


@pytest.mark.parametrize("num_iters", [1, 4])
def test_equals_the_loop_over_clusters_and_samples(num_iters: int) -> None:
    scores = scores_of(5, 3)
    plan = [[math.exp(s / 0.5) for s in row] for row in scores.tolist()]
    for _ in range(num_iters):
        columns = [sum(row[k] for row in plan) for k in range(3)]
        plan = [[row[k] / columns[k] / 3 for k in range(3)] for row in plan]
        plan = [[p / sum(row) / 5 for p in row] for row in plan]
    expected = torch.tensor(plan, dtype=torch.float64) * 5
    torch.testing.assert_close(SinkhornKnopp(0.5, num_iters)(scores), expected, rtol=1e-12, atol=1e-12)


def test_hand_computed_3_by_3() -> None:
    # The columns of exp(scores) all add up to 4, so that the first step changes nothing but their scale.
    kernel = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1e-30]], dtype=torch.float64)
    assignments = SinkhornKnopp(epsilon=1.0, num_iters=1)(kernel.log())
    expected = torch.tensor([[1 / 6, 1 / 3, 1 / 2], [1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 2, 0]], dtype=torch.float64)
    torch.testing.assert_close(assignments, expected)


def test_repr_shows_the_arguments() -> None:
    text = "epsilon=0.05, num_iters=3, tolerance=None, differentiable=False, gather_distributed=False"
    assert repr(SinkhornKnopp()) == f"SinkhornKnopp({text})"
