"""Augmentations of whole batches: identity at zero, known single changes, own random numbers for every image."""

import math

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import RandomAffine, RandomGamma

AUGMENTATIONS = [RandomAffine(), RandomGamma()]


def digits(batch: int = 6) -> Tensor:
    return torch.rand(batch, 1, 8, 8)


def still(**amounts: float) -> RandomAffine:
    """Return an affine augmentation that changes nothing but what is given."""
    return RandomAffine(**({"degrees": 0, "shear": 0, "scale": 0, "stretch": 0, "shift": 0} | amounts))


def test_without_amounts_nothing_changes() -> None:
    images = digits()
    torch.testing.assert_close(still()(images), images)
    assert torch.equal(RandomGamma(0.0)(images), images)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda module: type(module).__name__)
def test_every_image_gets_its_own_random_numbers(augmentation: nn.Module) -> None:
    results = augmentation(digits(1).expand(6, -1, -1, -1))
    assert results.shape == (6, 1, 8, 8)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 6


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda module: type(module).__name__)
def test_the_seed_decides_and_the_range_stays(augmentation: nn.Module) -> None:
    images = digits(200)
    torch.manual_seed(3)
    result = augmentation(images)
    torch.manual_seed(3)
    assert torch.equal(augmentation(images), result)
    assert 0 <= result.min() <= result.max() <= 1 + 1e-6


def test_shift_moves_the_center_of_mass_within_its_limit() -> None:
    images = torch.zeros(300, 1, 16, 16)
    images[:, :, 7:9, 7:9] = 1
    columns = still(shift=0.125)(images).sum(dim=(1, 2))
    centers = (columns * torch.arange(16)).sum(dim=1) / columns.sum(dim=1) - 7.5
    assert centers.abs().max() <= 2 + 1e-4  # an eighth of 16
    assert centers.abs().max() > 1.9
    assert centers.abs().min() < 0.1


def test_gamma_draws_powers_between_its_limits() -> None:
    images = torch.full((300, 1, 2, 2), 0.5)
    powers = -RandomGamma(0.7)(images).log2()
    assert math.exp(-0.7) - 1e-5 <= powers.min() < 0.55
    assert 1.8 < powers.max() <= math.exp(0.7) + 1e-5
    assert powers.log().mean() == pytest.approx(0, abs=0.1)
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert torch.equal(RandomGamma(2.0)(ends), ends)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda module: type(module).__name__)
def test_errors_name_the_argument(augmentation: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \(B, C, H, W\), got \(1, 8, 8\)"):
        augmentation(digits()[0])
    with pytest.raises(TypeError, match="images: expected a floating dtype, got torch.uint8; the view 'resize'"):
        augmentation(digits().byte())


def test_repr_shows_the_arguments() -> None:
    assert repr(RandomGamma(0.5)) == "RandomGamma(gamma=0.5)"
    assert repr(still(shear=0.1)) == "RandomAffine(degrees=0, shear=0.1, scale=0, stretch=0, shift=0)"
