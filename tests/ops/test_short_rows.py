"""Rows whose norm is below the bound of the normalization: a direction they have not, so no gradient either."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepclust_ext import batch_hard_mining, diffused_neighbor_gather, fused_contrastive_loss, fused_hsd_loss
from deepclust_ext.losses import PrototypeLoss
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from deepclust_ext.reference.normalize import l2_normalize
from tests.helpers import DEVICES

CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": lambda a, b: fused_contrastive_loss(a, b),
    "contrastive, hardness and debias": lambda a, b: fused_contrastive_loss(a, b, hardness=1.0, debias=0.1),
    "contrastive, queue": lambda a, b: fused_contrastive_loss(a, b.flip(0), queue=torch.cat([b, a])),
    "hsd": lambda a, b: fused_hsd_loss(a.detach(), b) + fused_hsd_loss(b.detach(), a),
    "hsd, teacher": lambda a, b: fused_hsd_loss(a, b),
    "mining": lambda a, b: torch.stack(batch_hard_mining(a, b)[2:]).sum(),
    "gather": lambda a, b: (
        diffused_neighbor_gather(a, b, num_neighbors=1, noise_std=0.0, normalize=True)[0].flatten() @ torch.ones(56)
    ),
    "prototypes": lambda a, b: PrototypeLoss()(a, b, torch.arange(8) % 4, 4),
    "normalize": lambda a, b: (l2_normalize(a) * l2_normalize(b)).sum(),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("value", [0.0, 1e-14])
@pytest.mark.parametrize("case", CASES)
def test_a_row_without_direction_gets_no_gradient(case: str, value: float) -> None:
    a, b = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0))
    a[2], b[3], b[4] = value, value, -value
    a.requires_grad_()
    b.requires_grad_()
    gradients = torch.autograd.grad(CASES[case](a, b), (a, b))
    assert int(gradients[0][2].count_nonzero()) == int(gradients[1][3:5].count_nonzero()) == 0
    for gradient in gradients:
        assert float(gradient.abs().max()) < 1e3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_in_every_dtype(dtype: torch.dtype, device: str) -> None:
    a, b = torch.randn(2, 8, 7, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    a[2] = 0
    a.requires_grad_()
    for loss in (fused_contrastive_loss(a, b), fused_hsd_loss(b, a)):
        (gradient,) = torch.autograd.grad(loss, a)
        assert int(gradient[2].count_nonzero()) == 0
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_normalization_is_torch_s_but_for_short_rows(dtype: torch.dtype) -> None:
    rows = torch.randn(20, 5, dtype=dtype)
    rows[3] = 0
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    normalized, expected = l2_normalize(ours), torch.nn.functional.normalize(theirs)
    present = torch.arange(20) != 3
    assert torch.equal(normalized[present], expected[present])
    assert int(normalized[3].count_nonzero()) == 0
    weights = torch.randn(20, 5, dtype=dtype)
    (gradient,) = torch.autograd.grad(normalized, ours, weights)
    (expected_gradient,) = torch.autograd.grad(expected, theirs, weights)
    torch.testing.assert_close(gradient[present], expected_gradient[present])
    assert int(gradient[3].count_nonzero()) == 0
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(l2_normalize, (rows[present].requires_grad_(),))
