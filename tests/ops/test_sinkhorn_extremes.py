"""Sinkhorn-Knopp of scores of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepclust_ext import sinkhorn_knopp
from deepclust_ext.ops._checks import SUPPORTED_DTYPES


@given(data=st.data(), dtype=st.sampled_from(SUPPORTED_DTYPES), epsilon=st.sampled_from([1e-3, 0.05, 1.0]))
def test_finite_for_every_finite_input(data: st.DataObject, dtype: torch.dtype, epsilon: float) -> None:
    samples, clusters = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    most = torch.finfo(dtype).max
    value = st.one_of(st.floats(-most, most), st.floats(-1, 1), st.sampled_from([-most, most, 0.0]))
    values = data.draw(st.lists(value, min_size=samples * clusters, max_size=samples * clusters))
    scores = torch.tensor(values, dtype=torch.float64).clamp(-most, most).to(dtype).view(samples, clusters)
    assert bool(scores.isfinite().all())
    for num_iters in (1, 3):
        leaf = scores.clone().requires_grad_()
        assignments = sinkhorn_knopp(leaf, epsilon=epsilon, num_iters=num_iters, differentiable=True)
        rounding = 8 * clusters * torch.finfo(dtype).eps
        torch.testing.assert_close(assignments.sum(1).double(), torch.ones(samples).double(), rtol=0, atol=rounding)
        (gradient,) = torch.autograd.grad(assignments[:, 0].sum(), leaf)
        assert bool(gradient.isfinite().all())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("epsilon", [1e-300, 1e-3, 1e300])
@pytest.mark.parametrize("clusters", [3, 70])  # 64 clusters and fewer have kernels of their own on the CPU
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_far_apart(size: float, clusters: int, epsilon: float) -> None:
    """Scores that leave no doubt, or no difference, whatever epsilon."""
    scores = torch.eye(clusters) * size
    assignments = sinkhorn_knopp(scores, epsilon=epsilon)
    expected = torch.eye(clusters) if size > epsilon else torch.full((clusters, clusters), 1 / clusters)
    torch.testing.assert_close(assignments, expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("unit", [1e-310, 1e-300, 1e-50, 1e50, 1e300, 1.7e308 / 4])
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_marginals_of_float64_of_any_size(dtype: torch.dtype, unit: float) -> None:
    """Larger, together or each, than float64 or the dtype of the computation holds, and smaller."""
    scores = torch.rand(2, 5, 3).to(dtype)
    samples, clusters = torch.tensor([1.0, 2.0, 0.0, 4.0, 1.0]).double(), torch.tensor([[1.0, 3.0, 2.0]] * 2).double()
    expected = sinkhorn_knopp(scores, sample_marginals=samples, cluster_marginals=clusters)
    found = sinkhorn_knopp(scores, sample_marginals=samples * unit, cluster_marginals=clusters * unit)
    torch.testing.assert_close(found, expected)
    assert bool(found.isfinite().all())
    leaf = scores.clone().requires_grad_()
    assignments = sinkhorn_knopp(leaf, sample_marginals=samples * unit, differentiable=True)
    (gradient,) = torch.autograd.grad(assignments[..., 0].sum(), leaf)
    assert bool(gradient.isfinite().all())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("share", [-1.0, torch.nan, torch.inf])
def test_marginals_of_float64_that_are_none(share: float) -> None:
    scores, shares = torch.rand(5, 3), torch.ones(5).double()
    shares[1] = share
    assert bool(sinkhorn_knopp(scores, sample_marginals=shares).isnan().all())
    assert bool(sinkhorn_knopp(scores, sample_marginals=torch.zeros(5).double()).isnan().all())


def test_no_tangent_is_dropped(backend: str) -> None:
    scores, shares = torch.rand(4, 3), torch.ones(4)
    with torch.autograd.forward_ad.dual_level():
        dual, dual_shares = (torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in (scores, shares))
        for differentiable in (False, True):
            if differentiable and backend == "reference":
                assert torch.autograd.forward_ad.unpack_dual(sinkhorn_knopp(dual, differentiable=True)).tangent.any()
            else:
                with pytest.raises(NotImplementedError, match="sinkhorn_knopp: has no forward-mode derivative"):
                    sinkhorn_knopp(dual, differentiable=differentiable)
            with pytest.raises(NotImplementedError, match="sinkhorn_knopp: has no forward-mode derivative"):
                sinkhorn_knopp(scores, sample_marginals=dual_shares, differentiable=differentiable)
