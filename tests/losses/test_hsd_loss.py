"""HSDLoss hands its arguments to the op."""

import pytest
import torch

from deepclust_ext import fused_hsd_loss
from deepclust_ext.losses import HSDLoss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_module_equals_op(reduction: str, normalize: bool) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 16, 8)
    module = HSDLoss(0.3, normalize, reduction)
    expected = fused_hsd_loss(teacher, student, temperature=0.3, normalize=normalize, reduction=reduction)
    assert torch.equal(module(teacher, student), expected)


def test_statistics_come_with_the_loss() -> None:
    torch.manual_seed(0)
    rows = torch.randn(16, 8)
    loss, stats = HSDLoss(return_stats=True)(rows, rows)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    assert stats.zero_negative_weight == 1
    assert stats == fused_hsd_loss(rows, rows, return_stats=True)[1]


def test_repr_shows_the_arguments() -> None:
    text = "temperature=0.5, normalize=True, reduction='mean', return_stats=False, gather_distributed=False"
    assert repr(HSDLoss()) == f"HSDLoss({text})"
