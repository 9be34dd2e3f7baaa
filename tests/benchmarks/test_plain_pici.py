"""The plain-torch rival of PICI's step computes what ours does, in each stage and with either network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.plain_pici import PlainPICI
from deepclust_ext.backbones.stem_transformer import StemTransformer
from deepclust_ext.methods import PICI
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_pici

BATCH = 4 * NUM_CLUSTERS


def stem_pici() -> PICI:
    torch.manual_seed(0)
    backbone = StemTransformer(8, 4, 8, 2, 2, 2, 1)
    return PICI(backbone, 8, NUM_CLUSTERS, decoder_width=4, decoder_depth=2, decoder_heads=1)


def as_ours(gradient: Tensor, like: Tensor) -> Tensor:
    """Return the gradient of a weight, of a convolution as that of our linear layer."""
    return gradient if gradient.shape == like.shape else gradient.permute(0, 2, 3, 1).reshape(like.shape)


@pytest.mark.parametrize("terms", PICI.terms)
@pytest.mark.parametrize("make", [lambda: small_pici(entropy_weight=1.7, hidden_share=0.25), stem_pici])
def test_loss_terms_and_gradients_are_ours(make: Callable[[], PICI], terms: str) -> None:
    ours = make().double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    plain = PlainPICI(ours)
    views, labels = [view.double() for view in make_views(2, BATCH)], torch.arange(BATCH) % NUM_CLUSTERS
    logged = []
    for method in (ours, plain):
        torch.manual_seed(7)
        loss, values = method.training_step(views, labels, terms=terms)
        loss.backward()
        logged.append(values)
    torch.testing.assert_close(logged[1], logged[0])
    pairs = list(zip(plain.parameters(), ours.parameters(), strict=True))
    assert all((mine.grad is None) == (other.grad is None) for mine, other in pairs)
    for mine, other in pairs:
        if mine.grad is not None and other.grad is not None:
            torch.testing.assert_close(as_ours(mine.grad, other), other.grad, rtol=1e-9, atol=1e-10)
    assert sum(mine.grad is not None for mine, _ in pairs) > len(pairs) / 3
