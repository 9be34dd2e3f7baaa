"""Augmentations of whole batches: identity at zero, known single changes, own random numbers for every image."""

import math

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.data import RandomAffine, RandomGamma, RandomTurn

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


def disc(height: int, width: int) -> Tensor:
    """Return a disc with a diameter of 32 pixels in the middle of an image."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 <= 16**2).float().view(1, 1, height, width)


def extent(image: Tensor) -> tuple[int, int]:
    """Return how many rows and columns have a pixel above one half."""
    return int((image > 0.5).any(dim=-1).sum()), int((image > 0.5).any(dim=-2).sum())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 192), (192, 64)])
def test_turns_and_shears_are_those_of_pixels(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = disc(height, width)
    assert extent(image) == (32, 32)
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.ones(size, **kind))  # the most of everything
    for degrees in (30.0, 45.0, 90.0):
        turned = still(degrees=degrees)(image)
        assert extent(turned) == (32, 32)
        assert float(turned.sum()) == pytest.approx(float(image.sum()), rel=0.01)
    # x' = x + y: every row is as long as before, and the lowest moves 16 pixels more than the middle.
    sheared = still(shear=1.0)(image)
    assert extent(sheared)[0] == 32
    torch.testing.assert_close(sheared.sum(dim=-1), image.sum(dim=-1), rtol=0, atol=1e-3)
    columns = torch.arange(width) + 0.5
    for row in range(height // 2 - 15, height // 2 + 15):
        line = sheared[0, 0, row]
        center = float((line * columns).sum() / line.sum()) - width / 2
        assert center == pytest.approx(-(row + 0.5 - height / 2), abs=1e-3)


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
    with pytest.raises(
        TypeError, match="images: expected uint8, uint16 or a floating dtype of 16 bits or more, got torch.int64"
    ):
        augmentation(digits().long())


@pytest.mark.parametrize("name", ["degrees", "shear", "scale", "stretch", "shift"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_amounts_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a finite number of at least 0, got {value}"):
        still(**{name: value})
    with pytest.raises(ValueError, match=f"gamma: expected a finite number of at least 0, got {value}"):
        RandomGamma(value)
    with pytest.raises(TypeError, match=f"{name}: expected a number, got '15'"):
        still(**{name: "15"})  # type: ignore[arg-type]


def test_repr_shows_the_arguments() -> None:
    assert repr(RandomGamma(0.5)) == "RandomGamma(gamma=0.5)"
    assert repr(still(shear=0.1)) == "RandomAffine(degrees=0, shear=0.1, scale=0, stretch=0, shift=0)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_turns_are_all_four_and_whole(dtype: torch.dtype) -> None:
    image = torch.arange(9).reshape(1, 1, 3, 3).to(dtype)
    before = image.clone()
    torch.manual_seed(0)
    turned = RandomTurn()(image.expand(64, -1, -1, -1))
    assert torch.equal(image, before)
    assert turned.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    scale = 255 if dtype == torch.uint8 else 1
    seen = {tuple((one.double() * scale).round().flatten().tolist()) for one in turned}
    assert seen == {tuple(torch.rot90(before[0, 0], turn).double().flatten().tolist()) for turn in range(4)}


def test_turns_need_squares() -> None:
    with pytest.raises(ValueError, match=r"images: expected squares \(B, C, S, S\), got \(2, 1, 3, 4\)"):
        RandomTurn()(torch.rand(2, 1, 3, 4))
