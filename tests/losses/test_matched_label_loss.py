"""MatchedLabelLoss against a loop over samples, hand cases, shares of zero, and labels that are no cluster."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext.losses import MatchedLabelLoss

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assignments(batch: int, clusters: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, clusters, dtype=torch.float64).mul(2).softmax(dim=1).to(dtype)


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 6), st.sampled_from([torch.int64, torch.int32]))
def test_equals_the_loop(seed: int, batch: int, clusters: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    shares, labels = assignments(batch, clusters), torch.randint(-1, clusters + 2, (batch,), dtype=dtype)
    logs = [
        math.log(row[label])
        for row, label in zip(shares.tolist(), labels.tolist(), strict=True)
        if 0 <= label < clusters
    ]
    expected = -sum(logs) / max(len(logs), 1)
    assert float(MatchedLabelLoss()(shares, labels)) == pytest.approx(expected, rel=1e-13, abs=1e-15)


def test_hand_case() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    loss = MatchedLabelLoss()(shares, torch.tensor([1, 0, 0]))
    assert float(loss) == pytest.approx((math.log(2) + math.log(4)) / 3)


@pytest.mark.parametrize("labels", [[], [2, 5], [-1, -7]])
def test_without_a_label_of_a_cluster_the_loss_is_zero(labels: list[int]) -> None:
    shares = assignments(len(labels), 2).requires_grad_()
    loss = MatchedLabelLoss()(shares, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert shares.grad is not None
    assert not shares.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient_are_finite_for_small_shares(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).tiny
    own = torch.tensor([0.0, smallest / 8, 2 * smallest, 0.25], dtype=dtype)
    shares = torch.stack([own, 1 - own], dim=1).requires_grad_()
    loss = MatchedLabelLoss()(shares, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    expected = -(3 * math.log(smallest) + math.log(2) + math.log(0.25)) / 4
    assert float(loss.detach()) == pytest.approx(expected, rel=2 * torch.finfo(dtype).eps)
    assert shares.grad is not None
    assert shares.grad.isfinite().all()
    assert (shares.grad[:, 0] != 0).tolist() == [False, False, True, True]


def test_gradient() -> None:
    shares, labels = assignments(6, 4).requires_grad_(), torch.tensor([0, 3, 1, 1, 4, -1])
    assert torch.autograd.gradcheck(lambda x: MatchedLabelLoss()(x, labels), shares)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    shares, labels = assignments(64, 5, dtype), torch.randint(5, (64,))
    loss = MatchedLabelLoss()(shares, labels)
    assert loss.dtype == dtype
    assert torch.equal(loss, MatchedLabelLoss()(shares.float(), labels).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = MatchedLabelLoss()(shares, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MatchedLabelLoss()(shares.float(), labels))


def test_nan_is_not_hidden() -> None:
    shares = assignments(3, 2)
    shares[1, 1] = math.nan
    assert MatchedLabelLoss()(shares, torch.tensor([0, 1, 0])).isnan()


def test_errors_name_the_argument() -> None:
    shares, labels, loss = assignments(3, 4), torch.tensor([0, 1, 2]), MatchedLabelLoss()
    with pytest.raises(TypeError, match="labels: expected a tensor, got list"):
        loss(shares, [0, 1, 2])
    with pytest.raises(TypeError, match="shares: expected dtype float16, .* or float64, got torch.int64"):
        loss(shares.long(), labels)
    for wrong in (labels.float(), labels > 0):
        with pytest.raises(TypeError, match=f"labels: expected an integer tensor, got {wrong.dtype}"):
            loss(shares, wrong)
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\), got \(2,\)"):
        loss(shares, labels[:2])
    for empty in (shares[:, :0], shares[0]):
        with pytest.raises(ValueError, match=r"shares: expected shape \(B, K\) with K > 0, got "):
            loss(empty, labels)
    with pytest.raises(ValueError, match="labels: expected device cpu like shares, got meta"):
        loss(shares, labels.to("meta"))
