"""The operations of the strong view: PIL's results, their ranges, and how often each is drawn."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)

from PIL import Image, ImageEnhance, ImageOps

from deepclust_ext.data import RandomOperations, operations
from deepclust_ext.data.operations import OPERATIONS, torchvision_transforms

AFFINE = Image.Transform.AFFINE


def picture() -> Tensor:
    """Return a smooth uint8 image (3, 40, 50) with every value from 0 to 255 and some noise."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    channels = torch.stack([rows, columns, (rows - columns).abs()])
    return ((channels + 0.05 * torch.rand(3, 40, 50)).clamp(0, 1) * 255).to(torch.uint8)


def applied(name: str, image: Tensor, level: int, sign: int = 1) -> Tensor:
    result: Tensor = OPERATIONS[name](torchvision_transforms().functional, image, level, sign)
    return result


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
    ours, theirs = applied(name, image, level, sign), by_pil(name, image, level, sign)
    difference = (ours.int() - theirs.int()).abs()
    # Blends round in another order. A pixel that a turn or shear takes from between two may come from either.
    moved = name in ("rotate", "shear_x", "shear_y")
    assert float((difference > 1).double().mean()) <= (0.04 if moved else 0)
    floating = applied(name, image.float() / 255, level, sign) * 255
    steps = 2 ** (4 - 4 * level // 10) if name == "posterize" else 1  # floats are rounded down to the same steps
    assert float(((floating - theirs).abs() > steps + 0.5).double().mean()) <= (0.04 if moved else 0)


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
    values = [int(applied("posterize", image, level)[0]) for level in range(1, 10)]
    assert values == [240, 240, 248, 248, 252, 252, 252, 254, 254]


def test_solarize_inverts_from_231_down_to_26_on() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    for level, threshold in ((1, 231), (5, 128), (9, 26)):
        expected = torch.where(values >= threshold, 255 - values, values)
        assert torch.equal(applied("solarize", values, level), expected)
        floating = applied("solarize", values.float() / 255, level)
        torch.testing.assert_close(floating * 255, expected.float(), rtol=0, atol=1e-3)


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


def test_draws_are_even_and_half_of_them_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def spy(name: str) -> Any:
        def record(functional: Any, image: Tensor, level: int, sign: int) -> Tensor:
            seen.append((name, level, sign))
            return image

        return record

    monkeypatch.setattr(operations, "OPERATIONS", {name: spy(name) for name in OPERATIONS})
    module, image = RandomOperations(), torch.zeros(3, 4, 4)
    counts = []
    for _ in range(2000):
        before = len(seen)
        module(image)
        counts.append(len(seen) - before)
    # 5000 of 10000 draws are applied; deviations of the counts below are 50, 18, 22 and 35.
    assert len(seen) == pytest.approx(5000, abs=250)
    assert max(counts) == 5
    assert min(counts) == 0
    for position, choices, expected, deviation in ((0, 14, 357, 18), (1, 9, 556, 22), (2, 2, 2500, 35)):
        drawn = Counter(entry[position] for entry in seen)
        assert len(drawn) == choices
        assert all(count == pytest.approx(expected, abs=5 * deviation) for count in drawn.values()), drawn
    assert {entry[1] for entry in seen} == set(range(1, 10))
    assert {entry[2] for entry in seen} == {-1, 1}


def test_a_sixteenth_of_the_images_stays_as_it_is() -> None:
    image, module = picture(), RandomOperations()
    assert torch.equal(applied("autocontrast", image, 5), image)  # it has black and white in every channel
    same = sum(torch.equal(module(image), image) for _ in range(1000))
    # Five times either not applied or one of the two that change nothing here: (1 - 12 / 28) ** 5 = 0.061.
    assert same / 1000 == pytest.approx((4 / 7) ** 5, abs=0.03)


def test_settings_are_followed() -> None:
    image = picture()
    assert torch.equal(RandomOperations(num_operations=0)(image), image)
    assert torch.equal(RandomOperations(operation_p=0.0)(image), image)
    gray = (torch.rand(1, 12, 12) * 255).to(torch.uint8)
    module = RandomOperations(8, 1.0, (9, 9))
    for _ in range(40):
        for given in (gray, gray.float() / 255):
            result = module(given)
            assert (result.shape, result.dtype) == (given.shape, given.dtype)
            assert result.min() >= 0
            assert result.max() <= (255 if given is gray else 1 + 1e-6)
    assert repr(module) == "RandomOperations(num_operations=8, operation_p=1.0, levels=(9, 9))"


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="num_operations: expected at least 0, got -1"):
        RandomOperations(-1)
    with pytest.raises(ValueError, match="operation_p: expected a probability from 0 to 1, got 2"):
        RandomOperations(5, 2)
    with pytest.raises(ValueError, match=r"levels: expected two levels of 0 to 10, the lower first, got \(9, 1\)"):
        RandomOperations(5, 0.5, (9, 1))
