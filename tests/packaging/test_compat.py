"""The published class's name, arguments and results."""

import torch

from deepclust_ext import fused_hsd_loss
from deepclust_ext.compat import HSD


def test_hsd_is_the_fused_loss() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 12, 5)
    assert torch.equal(HSD()(teacher, student), fused_hsd_loss(teacher, student, temperature=0.5))
    plain = fused_hsd_loss(teacher, student, temperature=0.2, normalize=False)
    assert torch.equal(HSD(tau=0.2)(teacher, student, normalized=False), plain)
    assert repr(HSD(0.2)) == "HSD(tau=0.2)"


def test_hsd_leaves_the_teacher_attached() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 12, 5).requires_grad_().unbind()
    teacher.retain_grad()
    HSD()(teacher, student).backward()
    assert teacher.grad is not None
    assert teacher.grad.abs().sum() > 0
