"""ContrastiveLoss hands its arguments to the op, which agrees with loops over pairs and with hand-computed cases."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import fused_contrastive_loss
from deepclust_ext.losses import ContrastiveLoss


def rows(count: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


@pytest.mark.parametrize("form", ["two views", "classes", "queue", "queue and classes"])
def test_module_equals_op(form: str) -> None:
    options: dict[str, Any] = {"temperature": 0.3, "hardness": 0.7, "debias": 0.1, "class_temperature": 0.6}
    options |= {"normalize": False, "reduction": "none"}
    tensors: dict[str, Any] = {}
    if "classes" in form:
        tensors |= {"class_a": rows(7, 3), "class_b": rows(7, 3)}
    if "queue" in form:
        tensors |= {"queue": rows(9)}
    if form == "queue and classes":
        tensors |= {"class_queue": rows(9, 3)}
    z_a, z_b = rows(7), rows(7)
    loss = ContrastiveLoss(**options)(z_a, z_b, **tensors)
    assert torch.equal(loss, fused_contrastive_loss(z_a, z_b, **options, **tensors))


def test_defaults_are_the_op_s() -> None:
    z_a, z_b = rows(6), rows(6)
    assert torch.equal(ContrastiveLoss()(z_a, z_b), fused_contrastive_loss(z_a, z_b))


def loop_formula(z: list[list[float]], positive: int, anchor: int, temperature: float, hardness: float) -> float:
    """The loss of one anchor, read aloud from the definition, without a tensor."""

    def cosine(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in z[i]) * sum(b * b for b in z[j]))

    negatives = [j for j in range(len(z)) if j not in (anchor, positive)]
    weights = [math.exp(hardness * cosine(anchor, j) / temperature) for j in negatives]
    mean_weight = sum(weights) / len(weights)
    pushed = sum(
        weight / mean_weight * math.exp(cosine(anchor, j) / temperature)
        for weight, j in zip(weights, negatives, strict=True)
    )
    pulled = math.exp(cosine(anchor, positive) / temperature)
    return -math.log(pulled / (pulled + pushed))


@pytest.mark.parametrize(("temperature", "hardness"), [(0.5, 0.0), (0.2, 1.0), (1.0, 0.3)])
def test_equals_the_loop_over_pairs(temperature: float, hardness: float) -> None:
    z_a, z_b = rows(6), rows(6)
    z = torch.cat([z_a, z_b]).tolist()
    expected = [loop_formula(z, (i + 6) % 12, i, temperature, hardness) for i in range(12)]
    losses = ContrastiveLoss(temperature, hardness, reduction="none")(z_a, z_b)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hand_computed_3_by_3() -> None:
    # Unit vectors e1, e2, e3 against e1, e2 and -e3. Anchors e1, e2 of both views: the positive has cosine 1, four
    # negatives have 0. Both anchors e3 and -e3: the positive has cosine -1, four negatives have 0.
    z_a, z_b = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    losses = ContrastiveLoss(temperature=1.0, reduction="none")(z_a, z_b)
    easy, hard = math.log(1 + 4 / math.e), math.log(1 + 4 * math.e)
    assert losses.tolist() == pytest.approx([easy, easy, hard, easy, easy, hard])
    assert float(ContrastiveLoss(temperature=1.0)(z_a, z_b)) == pytest.approx((2 * easy + hard) / 3)


def test_repr_shows_the_arguments() -> None:
    text = (
        "ContrastiveLoss(temperature=0.5, hardness=0.0, debias=0.0, class_temperature=1.0, normalize=True, "
        "reduction='mean', gather_distributed=False)"
    )
    assert repr(ContrastiveLoss()) == text
