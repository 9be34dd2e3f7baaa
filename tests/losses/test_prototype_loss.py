"""PrototypeLoss against a loop over clusters in float64, hand cases, and its degenerate cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext.losses import PrototypeLoss


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt()


def loop_formula(query: Tensor, key: Tensor, labels: list[int], temperature: float) -> float:
    """The definition read aloud: centroids, logits with a replaced diagonal, mean cross entropy."""
    present = sorted(set(labels))
    mu_q, mu_k = [
        [unit(sum((unit(rows[i]) for i in range(len(rows)) if labels[i] == k), torch.zeros(rows.shape[1]).double()))
         for k in present]
        for rows in (query, key)
    ]  # fmt: skip
    total = 0.0
    for i in range(len(present)):
        logits = [float(mu_q[i] @ (mu_k[i] if i == j else mu_q[j])) / temperature for j in range(len(present))]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return total / len(present)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 6), st.sampled_from([0.1, 0.5, 2.0]))
def test_equals_the_loop(seed: int, batch: int, num_clusters: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, batch, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_clusters, (batch,), generator=generator)
    expected = loop_formula(query, key, labels.tolist(), temperature)
    # Two clusters more than the labels know: empty ones take no part.
    loss = PrototypeLoss(temperature)(query, key, labels, num_clusters + 2)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_hand_case() -> None:
    # Centroids: mu_q = e1, e2; mu_k = e1, -e2. Logits / tau: (1, 0) and (0, -1).
    query = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    key = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, -5.0]])
    loss = PrototypeLoss(0.5)(query, key, torch.tensor([0, 0, 1]), 2)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0, 0, 0], [7, 7, 7], [-1, 0, 9]])
def test_one_cluster_or_none_is_exactly_zero_with_zero_gradient(labels: list[int]) -> None:
    query = torch.randn(3, 4, requires_grad=True)
    loss = PrototypeLoss()(query, torch.randn(3, 4), torch.tensor(labels), 5)
    assert loss == 0
    loss.backward()
    assert query.grad is not None
    assert torch.equal(query.grad, torch.zeros(3, 4))


def test_empty_batch() -> None:
    query = torch.zeros(0, 4, requires_grad=True)
    PrototypeLoss()(query, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3).backward()
    assert query.grad is not None


def test_gradient() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 9, 4, dtype=torch.float64).unbind()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 5, 5, -1])
    inputs = (query.requires_grad_(), key.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k: PrototypeLoss()(q, k, labels, 6), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 32, 16).to(dtype)
    labels = torch.randint(4, (32,))
    loss = PrototypeLoss()(query, key, labels, 5)
    assert loss.dtype == dtype
    assert torch.equal(loss, PrototypeLoss()(query.float(), key.float(), labels, 5).to(dtype))


def test_errors_name_the_argument() -> None:
    rows, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, got 0"):
        PrototypeLoss(0)
    learned = PrototypeLoss(torch.nn.Parameter(torch.tensor(0.5)))
    learned.temperature.data.fill_(-0.1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="temperature: expected a number above 0, got -0.1"):
        learned(rows, rows, labels, 3)
    with pytest.raises(ValueError, match=r"query: expected shape \(B, D\), got \(3, 4, 1\)"):
        PrototypeLoss()(rows.unsqueeze(2), rows, labels, 3)
    with pytest.raises(ValueError, match=r"key: expected the shape of query \(3, 4\), got \(2, 4\)"):
        PrototypeLoss()(rows, rows[:2], labels, 3)
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\), got \(2,\)"):
        PrototypeLoss()(rows, rows, labels[:2], 3)
    with pytest.raises(TypeError, match="labels: expected an integer tensor, got torch.float32"):
        PrototypeLoss()(rows, rows, labels.float(), 3)
    with pytest.raises(ValueError, match="num_clusters: expected at least 1, got 0"):
        PrototypeLoss()(rows, rows, labels, 0)


def test_repr_shows_the_arguments() -> None:
    assert repr(PrototypeLoss(0.2)) == "PrototypeLoss(temperature=0.2, gather_distributed=False)"
