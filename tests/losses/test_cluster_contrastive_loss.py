"""ClusterContrastiveLoss against a loop over clusters in float64, hand cases, and empty clusters."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext.losses import ClusterContrastiveLoss

# Small cases are meant; what they warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore:a batch of .* tells little:RuntimeWarning")


def assignments(batch: int, clusters: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, clusters, dtype=torch.float64).mul(2).softmax(dim=1).to(dtype)


def loop_formula(c_a: list[list[float]], c_b: list[list[float]], temperature: float, weight: float) -> float:
    """The definition read aloud: every column against all others, then the entropy of both views."""
    batch, clusters = len(c_a), len(c_a[0])
    columns = [[row[k] for row in view] for view in (c_a, c_b) for k in range(clusters)]

    def score(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(columns[i], columns[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in columns[i]) * sum(b * b for b in columns[j])) / temperature

    total = 0.0
    for i in range(2 * clusters):
        others = [math.exp(score(i, j)) for j in range(2 * clusters) if j != i]
        total += math.log(sum(others)) - score(i, (i + clusters) % (2 * clusters))
    total /= 2 * clusters
    for view in (c_a, c_b):
        usage = [sum(row[k] for row in view) / batch for k in range(clusters)]
        total += weight * (math.log(clusters) + sum(p * math.log(p) for p in usage))
    return total


@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(2, 6),
    st.sampled_from([0.2, 1.0, 3.0]),
    st.sampled_from([0.0, 1.0, 2.5]),
)
def test_equals_the_loop(seed: int, batch: int, clusters: int, temperature: float, weight: float) -> None:
    torch.manual_seed(seed)
    c_a, c_b = assignments(batch, clusters), assignments(batch, clusters)
    expected = loop_formula(c_a.tolist(), c_b.tolist(), temperature, weight)
    assert float(ClusterContrastiveLoss(temperature, weight)(c_a, c_b)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_hand_computed_3_by_3() -> None:
    # View a: every sample its own cluster. View b: the third sample in the second cluster, so the columns are e1,
    # e2 + e3 and 0, whose cosine with everything is 0. Cosines of positives: 1, 1 / sqrt 2, 0; of negatives: 1 / sqrt 2
    # between column 3 of a and column 2 of b, else 0.
    c_a = torch.eye(3, dtype=torch.float64)
    c_b = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    e, r = math.e, math.exp(1 / math.sqrt(2))
    anchors = [
        math.log((e + 4) / e),  # a1
        math.log((r + 4) / r),  # a2
        math.log(1 + 3 + r),  # a3: its positive is empty, and b2 is half its own
        math.log((e + 4) / e),  # b1
        math.log((r + 3 + r) / r),  # b2
        math.log(5),  # b3
    ]
    uneven = math.log(3) + math.log(1 / 3) / 3 + 2 / 3 * math.log(2 / 3)  # of view b; view a is even
    assert float(ClusterContrastiveLoss()(c_a, c_b)) == pytest.approx(sum(anchors) / 6 + uneven)


def test_one_cluster_for_everything() -> None:
    c = torch.eye(4, dtype=torch.float64)[[0, 0, 0]]
    # Column 1 meets itself; all others are empty. Entropy: log 4 in both views.
    contrast = (2 * math.log((math.e + 6) / math.e) + 6 * math.log(7)) / 8
    assert float(ClusterContrastiveLoss()(c, c)) == pytest.approx(contrast + 2 * math.log(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_for_an_empty_cluster(dtype: torch.dtype) -> None:
    c_a, c_b = assignments(8, 5, dtype), assignments(8, 5, dtype)
    c_a[:, 2] = 0
    c_b[:, 2:4] = 0
    for c in (c_a, c_b):
        c.requires_grad_()
    loss = ClusterContrastiveLoss()(c_a, c_b)
    loss.backward()
    assert loss.isfinite()
    for c in (c_a, c_b):
        assert c.grad is not None
        assert c.grad.isfinite().all()
        assert torch.equal(c.grad.any(dim=0), c.detach().any(dim=0))


def test_gradient_is_finite_when_softmax_underflows() -> None:
    logits = torch.randn(6, 4)
    logits[:, 1] -= 200  # exp(-200) is 0 in float32
    logits.requires_grad_()
    c = logits.softmax(dim=1)
    assert not c[:, 1].any()
    ClusterContrastiveLoss()(c, c.flip(0)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.count_nonzero() > 0


def test_gradient() -> None:
    inputs = (assignments(7, 4).requires_grad_(), assignments(7, 4).requires_grad_())
    assert torch.autograd.gradcheck(ClusterContrastiveLoss(0.7), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_stays_half(dtype: torch.dtype) -> None:
    c_a, c_b = assignments(64, 5, dtype), assignments(64, 5, dtype)
    loss = ClusterContrastiveLoss()(c_a, c_b)
    assert loss.dtype == dtype
    truth = ClusterContrastiveLoss()(c_a.double(), c_b.double())
    torch.testing.assert_close(loss.double(), truth, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_errors_name_the_argument() -> None:
    c = assignments(3, 4)
    loss = ClusterContrastiveLoss()
    with pytest.raises(ValueError, match=r"c_a: expected shape \(N, D\) with D > 0, got \(3,\)"):
        loss(c[:, 0], c)
    with pytest.raises(ValueError, match=r"c_b: expected shape \(3, 4\) like c_a, got \(2, 4\)"):
        loss(c, c[:2])
    with pytest.raises(TypeError, match="c_b: expected dtype torch.float64 like c_a, got torch.float32"):
        loss(c, c.float())
    with pytest.raises(ValueError, match="c_a: expected at least one row, got none"):
        loss(c[:0], c[:0])
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, got 0"):
        ClusterContrastiveLoss(0)(c, c)


def test_a_batch_below_four_samples_a_cluster_is_named_once() -> None:
    loss = ClusterContrastiveLoss()
    message = (
        "a batch of 19 tells little about 5 clusters, .* take batches of at least 20, four samples a cluster, or fewer"
    )
    with pytest.warns(RuntimeWarning, match=message):
        loss(assignments(19, 5), assignments(19, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(assignments(19, 5), assignments(19, 5))
        ClusterContrastiveLoss()(assignments(20, 5), assignments(20, 5))


def test_a_small_batch_breaks_no_compiled_graph() -> None:
    c_a, c_b = assignments(8, 5), assignments(8, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compiled = torch.compile(ClusterContrastiveLoss(), backend="eager", fullgraph=True)(c_a, c_b)
    assert torch.equal(compiled, ClusterContrastiveLoss()(c_a, c_b))


def test_repr_shows_the_arguments() -> None:
    text = "ClusterContrastiveLoss(temperature=0.2, entropy_weight=1.0, gather_distributed=False)"
    assert repr(ClusterContrastiveLoss(0.2)) == text
