"""Rows whose squares, or whose norm, overflow: they have a direction as all others, in the reference too."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from deepclust_ext import batch_hard_mining, fused_contrastive_loss, fused_hsd_loss, kmeans_assign, nearest_neighbors
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from deepclust_ext.reference.normalize import l2_normalize

SIGNS = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]])
#: The greatest power of two of a dtype.
GREATEST = {torch.float16: 2.0**15, torch.bfloat16: 2.0**127, torch.float32: 2.0**127, torch.float64: 2.0**1023}


@pytest.mark.parametrize("size", [2.0**-3, 1.0, 2.0**6, 2.0**7, None])
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_rows_of_any_size_become_unit_rows(dtype: torch.dtype, size: float | None) -> None:
    rows = (SIGNS.to(dtype) * (GREATEST[dtype] if size is None else size)).requires_grad_()
    unit = l2_normalize(rows, dim=1)
    assert torch.equal(unit, SIGNS.to(dtype) / 2)
    (gradient,) = torch.autograd.grad(unit[:, 0].sum(), rows)
    assert bool(gradient.isfinite().all())
    if size is not None:
        torch.testing.assert_close(gradient[0], torch.tensor([0.375, 0.125, -0.125, -0.125], dtype=dtype) / size)


def test_rows_of_nothing_stay_as_they_are() -> None:
    assert l2_normalize(torch.ones(3, 0), dim=1).shape == (3, 0)


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_other_rows_keep_their_bits(dtype: torch.dtype) -> None:
    rows = torch.randn(20, 5, dtype=dtype)
    large = torch.cat([rows, torch.full((1, 5), GREATEST[dtype], dtype=dtype)])
    assert torch.equal(l2_normalize(large, dim=1)[:20], normalize(rows, dim=1))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_ops_see_the_direction_of_large_rows(dtype: torch.dtype) -> None:
    small, large = SIGNS.to(dtype), SIGNS.to(dtype) * (GREATEST[dtype] / 4)  # one over their norm is a normal number
    for ours, expected in (
        (nearest_neighbors(large, large.flip(0), k=3), nearest_neighbors(small, small.flip(0), k=3)),
        (kmeans_assign(large, large[:2], metric="cosine"), kmeans_assign(small, small[:2], metric="cosine")),
        (batch_hard_mining(large, large.flip(0)), batch_hard_mining(small, small.flip(0))),
    ):
        for one, other in zip(ours, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-30])
@pytest.mark.parametrize(("normalize", "size"), [(True, 1.0), (True, 1000.0), (False, 1.0), (False, 1000.0)])
def test_losses_whose_scores_are_beyond_float16(
    temperature: float, normalize: bool, size: float, is_tensor: bool
) -> None:
    """They are those of float32, infinite where float16 has no such number, and never NaN."""
    generator = torch.Generator().manual_seed(0)
    first, second, third = (size * torch.randn(3, 9, 6, generator=generator)).half()
    queue = {"queue": third, "class_a": first, "class_b": second, "class_queue": third}
    classes = {"class_a": first, "class_b": second, "class_temperature": temperature}
    divisor: Any = torch.tensor(temperature) if is_tensor else temperature
    for function, options in (
        (fused_contrastive_loss, {}),
        (fused_contrastive_loss, {"hardness": 2.0, "debias": 0.1}),
        (fused_contrastive_loss, queue),
        (fused_contrastive_loss, classes),
        (fused_hsd_loss, {}),
    ):
        call: Any = function
        shared = {"temperature": divisor, "normalize": normalize, "reduction": "none"} | options
        losses = call(first, second, **shared)
        wide = {name: x.float() if name in queue else x for name, x in shared.items()}
        expected = call(first.float(), second.float(), **wide)
        assert losses.dtype == torch.float16
        assert expected.isfinite().all()
        assert not losses.isnan().any()
    pairs = batch_hard_mining(first, second, normalize=normalize)
    assert not torch.stack(pairs[2:]).isnan().any()
