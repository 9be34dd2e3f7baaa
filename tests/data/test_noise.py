"""Noise as a view."""

import pytest
import torch

from deepclust_ext.data import RandomNoise, make_view


def test_noise_has_its_deviation_and_keeps_dtype_and_seed() -> None:
    images = torch.full((40, 3, 8, 8), 0.5)
    torch.manual_seed(0)
    noisy = make_view("noise", std=0.2)(images)
    torch.manual_seed(0)
    assert torch.equal(noisy, RandomNoise(0.2)(images))
    assert float(noisy.std()) == pytest.approx(0.2, rel=0.05)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
    for dtype in (torch.float16, torch.float64):
        torch.manual_seed(0)
        torch.testing.assert_close(RandomNoise(0.2)(images.to(dtype)), noisy.to(dtype))
    white = RandomNoise(0.0)(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    assert white.tolist() == torch.ones(1, 1, 2, 2).tolist()


def test_wrong_noise() -> None:
    with pytest.raises(ValueError, match="std: expected a finite number of at least 0, got -1"):
        RandomNoise(-1)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, C, H, W\)"):
        RandomNoise()(torch.zeros(3, 8, 8))
