"""The operations of the strong view: PIL's results, and their ranges."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from deepclust_ext import augment_views
from deepclust_ext.data import OPERATIONS, STEPS, RandomViews

AFFINE = Image.Transform.AFFINE


def picture() -> Tensor:
    """Return a smooth uint8 image (3, 40, 50) with every value from 0 to 255 and some noise."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    channels = torch.stack([rows, columns, (rows - columns).abs()])
    return ((channels + 0.05 * torch.rand(3, 40, 50)).clamp(0, 1) * 255).to(torch.uint8)


def applied(name: str, image: Tensor, level: int, sign: int = 1) -> Tensor:
    """Return the floating image (C, H, W) after an operation; a shift is by a share of the side along it."""
    step, strength, either = OPERATIONS[name]
    side = image.shape[2] if name == "shift_x" else image.shape[1]
    steps = torch.tensor([[STEPS.index(step)]])
    strengths = torch.tensor([[(sign if either else 1) * strength(level, side)]])
    return augment_views(image[None], size=(image.shape[1], image.shape[2]), steps=steps, strengths=strengths)[0]


def by_pil(name: str, image: Tensor, level: int, sign: int) -> Tensor:
    """The operation by PIL, with the numbers that its docstring gives."""
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    factor = 0.05 + 0.09 * level
    shear = 0.03 * level * sign
    right, down = sign * int(0.03 * level * 50), sign * int(0.03 * level * 40)
    results: dict[str, Any] = {
        "identity": lambda: pil,
        "autocontrast": lambda: ImageOps.autocontrast(pil),
        "equalize": lambda: ImageOps.equalize(pil),
        "brightness": lambda: ImageEnhance.Brightness(pil).enhance(factor),
        "color": lambda: ImageEnhance.Color(pil).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(pil).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(pil).enhance(factor),
        "posterize": lambda: ImageOps.posterize(pil, 4 + 4 * level // 10),
        "solarize": lambda: ImageOps.solarize(pil, 256 - 256 * level // 10),
        "rotate": lambda: pil.rotate(3 * level * sign),
        # PIL takes where a pixel comes from. Both directions are drawn, so that the sign of a shear is free.
        "shear_x": lambda: pil.transform(pil.size, AFFINE, (1, shear, 0, 0, 1, 0)),
        "shear_y": lambda: pil.transform(pil.size, AFFINE, (1, 0, 0, shear, 1, 0)),
        "shift_x": lambda: pil.transform(pil.size, AFFINE, (1, 0, -right, 0, 1, 0)),
        "shift_y": lambda: pil.transform(pil.size, AFFINE, (1, 0, 0, 0, 1, -down)),
    }
    return torch.from_numpy(np.array(results[name]())).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [1, 4, 9])
@pytest.mark.parametrize("sign", [1, -1])
def test_equals_pil(name: str, level: int, sign: int) -> None:
    image = picture()
    ours, theirs = applied(name, image, level, sign) * 255, by_pil(name, image, level, sign)
    difference = (ours - theirs).abs()
    # PIL rounds to whole numbers. A pixel that a turn or shear takes from between two may come from either.
    moved = name in ("rotate", "shear_x", "shear_y")
    steps = 2 ** (4 - 4 * level // 10) if name == "posterize" else 1  # floats are rounded down to the same steps
    assert float((difference > steps + 0.5).double().mean()) <= (0.04 if moved else 0)


def test_enhancements_go_from_a_seventh_to_six_sevenths() -> None:
    image = torch.full((3, 2, 2), 0.5)
    assert [round(float(applied("brightness", image, level).max()), 6) for level in (1, 9)] == [0.07, 0.43]
    color = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    gray = 0.2989  # of red
    assert float(applied("color", color, 1)[0]) == pytest.approx(0.14 + 0.86 * gray, abs=1e-3)
    halves = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
    contrast = applied("contrast", halves, 9)
    torch.testing.assert_close(contrast[0, 0], torch.tensor([0.07, 0.93]), rtol=0, atol=1e-3)


def test_posterize_keeps_four_to_seven_bits() -> None:
    image = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    values = [float(applied("posterize", image, level)[0]) for level in range(1, 10)]
    assert values == [15 / 16, 15 / 16, 31 / 32, 31 / 32, 63 / 64, 63 / 64, 63 / 64, 127 / 128, 127 / 128]


def test_solarize_inverts_from_231_down_to_26_on() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    for level, threshold in ((1, 231), (5, 128), (9, 26)):
        expected = torch.where(values >= threshold, 255 - values, values)
        torch.testing.assert_close(applied("solarize", values, level) * 255, expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_shift_is_by_whole_pixels_of_the_side_and_leaves_black(sign: int) -> None:
    image = torch.rand(3, 40, 50) + 0.1
    for level, pixels in ((1, 1), (9, 13)):  # 3 and 27 percent of 50, rounded down
        moved, kept = applied("shift_x", image, level, sign), 50 - pixels
        new, old = (moved[..., pixels:], image[..., :kept]) if sign > 0 else (moved[..., :kept], image[..., pixels:])
        assert torch.equal(new, old)
        assert not (moved[..., :pixels] if sign > 0 else moved[..., kept:]).any()


def test_a_turn_is_up_to_27_degrees() -> None:
    image = torch.zeros(1, 101, 101)
    image[0, 50, 90] = 1  # 40 to the right of the center
    for level, degrees in ((1, 3.0), (9, 27.0)):
        for sign in (1, -1):
            _, row, column = applied("rotate", image, level, sign).nonzero().double().mean(dim=0).tolist()
            assert np.degrees(np.arctan2(50 - row, column - 50)) == pytest.approx(sign * degrees, abs=1)


def test_a_sixteenth_of_the_images_stays_as_it_is() -> None:
    image = picture()[:, :, :40]
    image[:, 0, 0], image[:, 0, 1] = 0, 255  # black and white in every channel: autocontrast changes nothing
    still = RandomViews(
        40, scale=(1, 1), ratio=(1, 1), flip_p=0, jitter_p=0, grayscale_p=0, num_operations=5, operation_p=0.5
    )
    views = still(image.expand(1000, -1, -1, -1))
    same = ((views - image / 255).abs().amax(dim=(1, 2, 3)) < 1e-5).double().mean()
    # Five times either not applied or one of the two that change nothing here: (1 - 12 / 28) ** 5 = 0.061.
    assert float(same) == pytest.approx((4 / 7) ** 5, abs=0.03)
