"""augment_views over sizes, channels, types, every step alone and many in a row: each way through the kernels."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import augment_views, reference
from deepclust_ext.reference.augment_views import STEPS
from tests.helpers import DEVICES, EMULATED, same_bits

# Of images and of views. The kernels read and write them in places of their own, so not every pair is needed; but a
# half-precision result would hide what is wrong with the white of uint16.
DTYPES = [
    (torch.uint8, torch.bfloat16),
    (torch.uint16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.float64, torch.float32),
]
CHANNELS = [3, 4]  # colors in one thread, or one channel after the other

# (image, view): one pixel, larger, smaller, one side the same, both the same, long and thin
SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (3, 5)),
    ((7, 5), (9, 33)),
    ((41, 67), (17, 18)),
    ((9, 40), (9, 13)),
    ((18, 35), (18, 35)),
    ((3, 90), (50, 2)),
]

# Strengths of each step, its borders and beyond among them.
STRENGTHS: dict[str, list[float]] = {
    "none": [0.5],
    "brightness": [0.0, 0.6, 1.0, 1.4],
    "contrast": [0.0, 0.6, 1.0, 1.4],
    "saturation": [0.0, 0.6, 1.0, 1.4],
    "hue": [-2.3, -0.5, -0.1, 0.0, 0.1, 1 / 3, 0.5],
    "gray": [0.0],
    "blur": [-1.0, 0.0, 1e-30, 0.1, 1.0, 2.0, 100.0],
    "solarize": [-1.0, 0.0, 0.5, 128 / 255, 1.0, 2.0],
    "posterize": [1.0, 4.0, 7.0, 8.0],
    "autocontrast": [0.0],
    "equalize": [0.0],
    "sharpness": [0.0, 0.1, 1.0, 1.9],
    "rotate": [-30.0, 0.0, 0.5, 45.0, 90.0, 180.0],
    "shear_x": [-0.3, 0.0, 0.3, 1.0],
    "shear_y": [-0.3, 0.0, 0.3, 1.0],
    "shift_x": [-3.0, 0.0, 2.0, 100.0],
    "shift_y": [-3.0, 0.0, 2.0, 100.0],
    "gamma": [0.0, 0.5, 1.0, 1.7],
}
JUMPS = ("solarize", "posterize", "equalize", "rotate", "shear_x", "shear_y", "shift_x", "shift_y")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(count: int, channels: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images of levels of 8 bits, so that thresholds are hit."""
    levels = torch.randint(256, (count, channels, *size), generator=generator(count + channels))
    if dtype in (torch.uint8, torch.uint16):
        return (levels * (257 if dtype == torch.uint16 else 1)).to(dtype)
    return (levels.float() / 255).to(dtype)


def make_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes within images of a size, the whole image first."""
    shares = torch.rand(count, 4, generator=generator(1))
    sides = torch.tensor(size)
    lengths = (1 + shares[:, 2:] * sides).long().clamp(max=sides)
    lengths[:1] = sides
    starts = (shares[:, :2] * (sides - lengths + 1)).long()
    return torch.cat([starts, lengths], dim=1)


def programs(count: int, length: int, names: Sequence[str] = STEPS) -> tuple[Tensor, Tensor]:
    """Return steps and strengths, (count, length) each, of these names in any order."""
    drawn = generator(length)
    steps = torch.tensor([STEPS.index(name) for name in names])[
        torch.randint(len(names), (count, length), generator=drawn)
    ]
    strengths = torch.zeros(count, length)
    for place, step in enumerate(steps.flatten().tolist()):
        choice = STRENGTHS[STEPS[step]]
        strengths.view(-1)[place] = choice[int(torch.randint(len(choice), (), generator=drawn))]
    return steps, strengths


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}


def assert_like_reference(images: Tensor | Sequence[Tensor], device: str, exact: bool = False, **options: Any) -> None:
    """Require the reference's views, on the CPU, to 1e-5 or to the bit, and to the rounding of the result's dtype."""
    parts = [images] if isinstance(images, Tensor) else list(images)
    moved = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    views = augment_views(moved, **on(device, options)).cpu()
    rows = [part if part.dim() == 4 else part[None] for part in parts]
    expected = reference.augment_views(rows, **options)
    assert views.dtype == expected.dtype
    assert views.stride() == expected.stride()
    if exact:
        assert torch.equal(views, expected)
        return
    rounding = 0.0 if views.dtype == torch.float32 else torch.finfo(views.dtype).eps
    torch.testing.assert_close(views.float(), expected.float(), rtol=1e-5 + rounding, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("image", "view"), SIZES)
def test_sizes(image: tuple[int, int], view: tuple[int, int], channels: int, device: str) -> None:
    count = 4
    images = make_images(count, channels, image)
    flips = torch.arange(count) % 2 == 0
    numbers: dict[str, Any] = {"mean": [0.4] * channels, "std": [0.1 + 0.05 * c for c in range(channels)]}
    assert_like_reference(images, device, size=view)
    assert_like_reference(images, device, size=view, boxes=make_boxes(count, image), flips=flips, **numbers)
    turned = torch.randn(count, 2, 3, generator=generator(2))
    turned[0] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert_like_reference(images, device, size=view, boxes=make_boxes(count, image), flips=flips, matrices=turned)


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_outside_of_the_box_does_not_count(device: str) -> None:
    images = torch.full((1, 3, 20, 37), math.nan)
    box = make_images(1, 3, (9, 11))
    for top, left in ((0, 0), (5, 7), (11, 26)):
        around = images.clone()
        around[:, :, top : top + 9, left : left + 11] = box
        boxes = torch.tensor([[top, left, 9, 11]])
        for size in ((9, 11), (4, 5), (17, 30)):
            views = augment_views(around.to(device), size=size, boxes=boxes.to(device))
            assert same_bits(views, augment_views(box.to(device), size=size))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "result"), DTYPES, ids=str)
def test_types_and_layouts(dtype: torch.dtype, result: torch.dtype, device: str) -> None:
    for channels in (3, 4):
        images = make_images(3, channels, (20, 37), dtype)
        numbers: dict[str, Any] = {"mean": [0.4] * channels, "std": [0.25] * channels}
        options: dict[str, Any] = {"size": (9, 34), "dtype": result, "boxes": make_boxes(3, (20, 37)), **numbers}
        for layout in (images, images.contiguous(memory_format=torch.channels_last), images[:1].expand(3, -1, -1, -1)):
            for channels_last in (False, True):
                assert_like_reference(layout, device, channels_last=channels_last, **options)
        # Thresholds on levels of whole numbers: as they are, nothing is rounded before the comparison.
        steps = torch.full((3, 1), STEPS.index("solarize"))
        assert_like_reference(
            images, device, size=(20, 37), steps=steps, strengths=torch.full((3, 1), 128 / 255), dtype=result
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", STEPS)
def test_each_step(name: str, channels: int, device: str) -> None:
    strengths = torch.tensor(STRENGTHS[name]).view(-1, 1)
    steps = torch.full(strengths.shape, STEPS.index(name))
    for size in ((18, 35), (1, 1), (2, 5), (3, 3)):
        images = make_images(len(steps), channels, size)
        assert_like_reference(images, device, exact=name in JUMPS, size=size, steps=steps, strengths=strengths)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_more_pixels_than_a_strip(channels: int, device: str) -> None:
    size = (37, 40)
    steps = torch.tensor([[STEPS.index(name) for name in ("contrast", "brightness", "autocontrast")]])
    strengths = torch.tensor([[0.7, 1.1, 0.0]])
    images = make_images(1, channels, size)
    assert_like_reference(images, device, size=size, steps=steps, strengths=strengths)


@pytest.mark.parametrize("device", DEVICES)
def test_equalize_of_other_values(device: str) -> None:
    steps, strengths = torch.full((2, 1), STEPS.index("equalize")), torch.zeros(2, 1)
    between = torch.rand(2, 3, 18, 35, generator=generator(0))  # no levels of 8 bits
    few = torch.randint(3, (2, 3, 18, 35), generator=generator(0)) / 8
    for images in (between, few):
        assert_like_reference(images, device, exact=True, size=(18, 35), steps=steps, strengths=strengths)


@pytest.mark.parametrize("device", DEVICES)
def test_autocontrast_finds_extremes_in_any_row(device: str) -> None:
    rows = torch.arange(18)
    images = torch.full((18, 3, 18, 35), 0.5)
    images[rows, :, rows, rows] = 0.25
    images[rows, :, rows, 34 - rows] = 0.875
    steps, strengths = torch.full((18, 1), STEPS.index("autocontrast")), torch.zeros(18, 1)
    assert_like_reference(images, device, size=(18, 35), steps=steps, strengths=strengths)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [1, 9, 101])
def test_blur_kernels(kernel: int, device: str) -> None:
    strengths = torch.tensor([[0.5], [3.0]])
    steps = torch.full((2, 1), STEPS.index("blur"))
    for size in ((1, 1), (2, 40), (33, 4), (50, 12)):
        images = make_images(2, 3, size)
        assert_like_reference(images, device, size=size, steps=steps, strengths=strengths, blur_kernel=kernel)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    ("length", "names"),
    [(0, STEPS), (3, ("hue", "contrast")), (3, ("gamma", "blur", "rotate")), (20, STEPS), (40, ("brightness", "hue"))],
)
def test_steps_in_a_row_are_the_steps_one_by_one(length: int, names: Sequence[str], channels: int, device: str) -> None:
    count, size = 5, (11, 35)
    steps, strengths = programs(count, length, names)
    numbers: dict[str, Any] = {"mean": [0.4] * channels, "std": [0.2] * channels}
    images = make_images(count, channels, (13, 20)).to(device)
    matrices = torch.tensor([[0.9, 0.1, 1.0], [-0.2, 1.1, 0.5]]).expand(count, -1, -1).to(device)
    together = augment_views(
        images, size=size, matrices=matrices, steps=steps.to(device), strengths=strengths.to(device), **numbers
    )
    views = augment_views(images, size=size, matrices=matrices)
    for place in range(length):
        step, strength = steps[:, place : place + 1].to(device), strengths[:, place : place + 1].to(device)
        views = augment_views(views, size=size, steps=step, strengths=strength)
    one_by_one = augment_views(views, size=size, **numbers)
    if EMULATED or device != "cpu":
        assert same_bits(together, one_by_one)
    else:  # the CPU kernel rounds a step in a vector and in the rest of a row apart, and steps that jump enlarge that
        apart = ~torch.isclose(together, one_by_one, rtol=0, atol=1e-5)
        assert apart.double().mean() <= 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_images_of_many_sizes(device: str) -> None:
    sizes = [(1, 1), (5, 40), (33, 7), (12, 12), (20, 21)]
    for channels in (3, 4):
        images = [make_images(1, channels, size, torch.uint8)[0] for size in sizes]
        images[2] = images[2].transpose(1, 2)
        boxes = torch.cat([make_boxes(2, (image.shape[1], image.shape[2]))[1:] for image in images])
        assert_like_reference(images, device, size=(12, 12), boxes=boxes)
        order = (torch.arange(5).view(5, 1) + torch.arange(3)) % 3  # each image its own
        steps = torch.tensor([STEPS.index(name) for name in ("contrast", "blur", "autocontrast")])[order]
        strengths = torch.tensor([0.7, 1.5, 0.0])[order]
        assert_like_reference(images, device, size=(12, 12), steps=steps, strengths=strengths)


@pytest.mark.parametrize("device", DEVICES)
def test_several_images_of_each_size(device: str) -> None:
    parts = [make_images(count, 3, size).to(device) for count, size in ((2, (9, 7)), (3, (5, 12)))]
    views = torch.ops.deepclust_ext.augment_views(parts, (5, 6))
    assert same_bits(views, torch.cat([augment_views(part, size=(5, 6)) for part in parts]))


@pytest.mark.parametrize("device", DEVICES)
def test_more_images_than_there_is_room_for(device: str) -> None:
    times = 13 if EMULATED or device == "cpu" else 333
    images = make_images(3, 3, (6, 5)).to(device)
    names = [STEPS.index(name) for name in ("blur", "contrast", "equalize", "blur")]
    steps = torch.tensor(names).roll(1).expand(3, -1).to(device)
    strengths = torch.linspace(0.5, 1.5, 3)[:, None].expand(-1, len(names)).to(device)
    few = augment_views(images, size=(6, 5), steps=steps, strengths=strengths)
    many = augment_views(
        images.repeat(times, 1, 1, 1), size=(6, 5), steps=steps.repeat(times, 1), strengths=strengths.repeat(times, 1)
    )
    assert same_bits(many, few.repeat(times, 1, 1, 1))


@pytest.mark.parametrize("device", DEVICES)
def test_no_images(device: str) -> None:
    for channels_last in (False, True):
        views = augment_views(
            torch.empty(0, 3, 4, 5, dtype=torch.uint8, device=device), size=(6, 7), channels_last=channels_last
        )
        assert views.shape == (0, 3, 6, 7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STEPS)
def test_no_number_leads_out_of_the_image(name: str, device: str) -> None:
    images = make_images(4, 3, (9, 34))
    for place, value in enumerate((math.nan, math.inf, -math.inf, 1e30)):
        images[place, 0, 4, 20] = value
    op = torch.ops.deepclust_ext.augment_views  # which takes what the public function refuses on the CPU
    strange = torch.tensor([[math.nan], [math.inf], [-math.inf], [1e30]])
    steps = torch.full((4, 1), STEPS.index(name), device=device)
    for strengths in (strange, torch.full((4, 1), STRENGTHS[name][-1])):
        views = op([images.to(device)], (9, 34), steps=steps, strengths=strengths.to(device))
        assert views.shape == images.shape


@pytest.mark.parametrize("device", DEVICES)
def test_no_matrix_leads_out_of_the_image(device: str) -> None:
    op = torch.ops.deepclust_ext.augment_views  # as above
    numbers = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    images, matrices = make_images(4, 3, (9, 34)), numbers.view(4, 1, 1).expand(4, 2, 3)
    assert op([images.to(device)], (9, 34), matrices=matrices.to(device)).shape == images.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["brightness", "contrast", "hue", "saturation", "posterize", "autocontrast", "gamma"])
def test_nan_stays_nan(name: str, device: str) -> None:
    images = make_images(2, 3, (9, 34))
    images[0, 1, 4, 20] = images[1, 1, 8, 33] = math.nan  # within vectors, and behind the last whole one
    steps, strengths = torch.full((2, 1), STEPS.index(name)), torch.full((2, 1), STRENGTHS[name][-1])
    views = augment_views(images.to(device), size=(9, 34), steps=steps.to(device), strengths=strengths.to(device))
    expected = reference.augment_views([images], size=(9, 34), steps=steps, strengths=strengths)
    assert torch.equal(views.isnan().cpu(), expected.isnan())


@pytest.mark.parametrize("device", DEVICES)
def test_cuda_cuts_boxes_and_skips_unknown_steps(device: str) -> None:
    if not EMULATED and device == "cpu":
        pytest.skip("an error on the CPU")
    images = make_images(4, 3, (9, 34)).to(device)
    far = 2**63 - 1
    boxes = torch.tensor([[-3, -3, 90, 5], [7, 33, 5, 5], [far, 100, far, 1], [2, -far, 0, -far]])
    cut = torch.tensor([[0, 0, 9, 2], [7, 33, 2, 1], [8, 33, 1, 1], [2, 0, 1, 1]])
    steps = torch.tensor([[1, -1, 18, 2**40]]).expand(4, -1).to(device)
    strengths = torch.full((4, 4), 0.5, device=device)
    views = torch.ops.deepclust_ext.augment_views(
        [images], (5, 6), boxes=boxes.to(device), steps=steps, strengths=strengths
    )
    expected = augment_views(
        images, size=(5, 6), boxes=cut.to(device), steps=steps[:, :1].contiguous(), strengths=strengths[:, :1]
    )
    assert same_bits(views, expected)
