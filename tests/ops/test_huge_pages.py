"""Blocks that malloc maps anew for every call ask for huge pages."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepclust_ext import sinkhorn_knopp
from tests.helpers import EMULATED

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGE = 2 << 20


def memory_flags(address: int) -> list[str]:
    """Return the flags of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if "-" in key:
            begin, end = (int(bound, 16) for bound in key.split("-"))
            inside = begin <= address < end
        elif inside and key == "VmFlags:":
            return values
    raise AssertionError(f"no mapping has {address:x}")


def flags_amid(result: Tensor) -> list[str]:
    """Return the flags of the middle of a result, which lies in whole huge pages."""
    return memory_flags(result.data_ptr() + result.nbytes // 2 // HUGE_PAGE * HUGE_PAGE)


@pytest.mark.skipif(not SWITCH.exists(), reason="this system has no transparent huge pages")
@pytest.mark.skipif(EMULATED, reason="kernels for CUDA allocate by torch alone")
def test_large_assignments_and_gradients_ask_for_huge_pages() -> None:
    scores = torch.zeros(1 << 17, 65).requires_grad_()
    assignments = sinkhorn_knopp(scores, num_iters=1, differentiable=True)
    assert "hg" in flags_amid(assignments)
    (grad,) = torch.autograd.grad(assignments.sum(), scores)
    assert "hg" in flags_amid(grad)
    assert "hg" not in flags_amid(torch.empty_like(assignments))
