"""Each step against torchvision, all against the reference, edges and messages of augment_views."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepclust_ext import augment_views, reference
from deepclust_ext.reference.augment_views import STEPS
from tests.helpers import EMULATED, results_by_instruction_set

CHANNELS = (1, 3, 4, 13)
SIZES = ((1, 1), (2, 2), (1, 9), (5, 7), (33, 18), (3, 301))
DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32)

#: Smallest and largest strength of each step; of some, whole ones only.
STRENGTHS = {
    **dict.fromkeys(STEPS, (0.0, 1.0)),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), (0.0, 2.0)),
    "hue": (-0.5, 0.5),
    "blur": (0.1, 2.0),
    "posterize": (1.0, 8.0),
    "rotate": (-40.0, 40.0),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.3)),
    **dict.fromkeys(("shift_x", "shift_y"), (-6.0, 6.0)),
    "gamma": (0.3, 2.5),
}
WHOLE = ("posterize", "shift_x", "shift_y")
#: What gives another result altogether where a value differs in its last bit. They are not tested after other steps.
JUMPS = ("solarize", "posterize", "equalize", "autocontrast")


def draw_images(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    drawn = torch.rand(shape, generator=generator)
    if dtype.is_floating_point:
        return drawn.to(dtype)
    return (drawn * torch.iinfo(dtype).max).to(torch.int32).to(dtype)


def draw_strength(generator: torch.Generator, name: str) -> float:
    low, high = STRENGTHS[name]
    drawn = low + (high - low) * float(torch.rand((), generator=generator))
    return float(round(drawn)) if name in WHOLE else drawn


def draw_steps(generator: torch.Generator, count: int, length: int, names: Sequence[str]) -> dict[str, Any]:
    """Return steps and strengths of so many images, in random order and with repetitions."""
    drawn = [
        [names[int(torch.randint(len(names), (), generator=generator))] for _ in range(length)] for _ in range(count)
    ]
    strengths = [[draw_strength(generator, name) for name in row] for row in drawn]
    return {
        "steps": torch.tensor([[STEPS.index(name) for name in row] for row in drawn]).reshape(count, length).long(),
        "strengths": torch.tensor(strengths).reshape(count, length).float(),
    }


def one_step(name: str, strength: float, count: int = 1) -> dict[str, Any]:
    return {"steps": torch.full((count, 1), STEPS.index(name)), "strengths": torch.full((count, 1), strength)}


def by_reference(images: Tensor | Sequence[Tensor], **options: Any) -> Tensor:
    parts = [images] if isinstance(images, Tensor) else [image[None] for image in images]
    return reference.augment_views(parts, **options)


def assert_near(images: Tensor | Sequence[Tensor], tolerance: float = 1e-5, **options: Any) -> None:
    torch.testing.assert_close(
        augment_views(images, **options), by_reference(images, **options), atol=tolerance, rtol=0
    )


# Each step is torchvision's.

Functional = Callable[[Any, Tensor, float], Tensor]
TORCHVISION: dict[str, Functional] = {
    "brightness": lambda f, image, strength: f.adjust_brightness(image, strength),
    "contrast": lambda f, image, strength: f.adjust_contrast(image, strength),
    "saturation": lambda f, image, strength: f.adjust_saturation(image, strength),
    "hue": lambda f, image, strength: f.adjust_hue(image, strength),
    "gray": lambda f, image, strength: f.rgb_to_grayscale(image, num_output_channels=len(image)),
    "blur": lambda f, image, strength: f.gaussian_blur(image, [23, 23], [strength, strength]),
    "solarize": lambda f, image, strength: f.solarize(image, strength),
    "posterize": lambda f, image, strength: f.posterize(image, int(strength)),
    "autocontrast": lambda f, image, strength: f.autocontrast(image),
    "equalize": lambda f, image, strength: f.equalize(image),
    "sharpness": lambda f, image, strength: f.adjust_sharpness(image, strength),
    "rotate": lambda f, image, strength: f.rotate(image, strength),
    "shear_x": lambda f, image, strength: f.affine(
        image, 0.0, [0, 0], 1.0, [math.degrees(math.atan(strength)), 0.0], center=[0, 0]
    ),
    "shear_y": lambda f, image, strength: f.affine(
        image, 0.0, [0, 0], 1.0, [0.0, math.degrees(math.atan(strength))], center=[0, 0]
    ),
    "shift_x": lambda f, image, strength: f.affine(image, 0.0, [int(strength), 0], 1.0, [0.0, 0.0]),
    "shift_y": lambda f, image, strength: f.affine(image, 0.0, [0, int(strength)], 1.0, [0.0, 0.0]),
    "gamma": lambda f, image, strength: f.adjust_gamma(image, strength),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TORCHVISION)
def test_step_is_that_of_torchvision(name: str, channels: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is not installed")
    generator = torch.Generator().manual_seed(0)
    for height, width in ((32, 32), (33, 65), (12, 40)):
        for _ in range(3):
            image, strength = torch.rand(channels, height, width, generator=generator), draw_strength(generator, name)
            ours = augment_views(image[None], size=(height, width), **one_step(name, strength))[0]
            theirs = TORCHVISION[name](functional, image, torch.tensor(strength).item())
            away = (ours - theirs).abs() > 1e-5
            # Where a shear's pixel lies between two, rounding alone decides, and theirs has the angle's too.
            assert away.float().mean() <= (0.01 if name.startswith("shear") else 0), f"{name} {strength}"


def test_resize_is_that_of_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is not installed")
    generator = torch.Generator().manual_seed(0)
    for height, width, size in ((500, 375, 224), (333, 777, 96), (40, 25, 32), (90, 90, 91), (1, 300, 7)):
        image = torch.rand(3, height, width, generator=generator)
        theirs = functional.resize(image, [size, size], antialias=True)
        torch.testing.assert_close(augment_views(image[None], size=size)[0], theirs, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("backend")
def test_column_is_resized() -> None:
    """Where torch is wrong: it gives all of the result the first pixel's value."""
    column, size = torch.tensor([0.0, 0.5, 1.0, 0.25]), (8, 1)
    expected = augment_views(column.view(1, 1, 1, 4), size=(1, 8)).flatten()
    assert expected[::7].tolist() == [0, 0.25]
    assert augment_views(column.view(1, 1, 4, 1), size=size).flatten().tolist() == pytest.approx(expected.tolist())
    assert expected.tolist() == pytest.approx([0, 0.125, 0.375, 0.625, 0.875, 0.8125, 0.4375, 0.25])


# All is that of the reference.


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", STEPS)
def test_step_is_that_of_the_reference(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for place, (height, width) in enumerate(SIZES):
        for channels in CHANNELS:
            for dtype in (DTYPES[place % 5], DTYPES[(place + channels) % 5]):
                images = draw_images(generator, 2, channels, height, width, dtype=dtype)
                options = draw_steps(generator, 2, 1, [name])
                exact = name in (*JUMPS, "none", "rotate", "shear_x", "shear_y", "shift_x", "shift_y")
                assert_near(images, 1e-7 if exact else 1e-5, size=(height, width), blur_kernel=9, **options)


@pytest.mark.parametrize("kernel", [1, 3, 23, 1001])
def test_blur_of_any_width(kernel: int) -> None:
    images = torch.rand(2, 3, 19, 40, generator=torch.Generator().manual_seed(0))
    for sigma in (0.0, -1.0, 1e-30, 0.4, 7.0, 1e30):
        assert_near(images, size=(19, 40), blur_kernel=kernel, **one_step("blur", sigma, 2))


@pytest.mark.parametrize("seed", range(24))
def test_everything_is_that_of_the_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    channels, count, dtype = CHANNELS[seed % 4], whole(1, 3), DTYPES[seed % 5]
    images = [draw_images(generator, channels, whole(1, 60), whole(1, 60), dtype=dtype) for _ in range(count)]
    boxes = []
    for image in images:
        top, left = (whole(0, side - 1) for side in image.shape[1:])
        boxes.append([top, left, whole(1, image.shape[1] - top), whole(1, image.shape[2] - left)])
    moves = torch.eye(2, 3) + 0.2 * torch.randn(count, 2, 3, generator=generator)
    smooth = [name for name in STEPS if name not in JUMPS]
    assert_near(
        images,
        1e-4,  # up to 20 steps, each of which may double what came before
        size=(whole(1, 40), whole(1, 40)),
        boxes=torch.tensor(boxes),
        flips=torch.rand(count, generator=generator) < 0.5,
        matrices=moves if seed % 2 else None,
        blur_kernel=2 * whole(0, 12) + 1,
        mean=[0.4] * channels,
        std=[0.5] * channels,
        channels_last=seed % 3 == 0,
        **draw_steps(generator, count, seed % 21, smooth),
    )


@given(st.data())
def test_boxes(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    images = torch.arange(2 * height * width).reshape(1, 2, height, width).remainder(251).to(torch.uint8)
    boxes, flips = torch.tensor([[top, left, rows, columns]]), torch.tensor([data.draw(st.booleans())])
    assert_near(images, size=size, boxes=boxes, flips=flips)
    part = images[:, :, top : top + rows, left : left + columns]
    same = augment_views(images, size=(rows, columns), boxes=boxes)
    assert torch.equal(same, part / 255)
    assert torch.equal(
        augment_views(part, size=size, flips=flips), augment_views(images, size=size, boxes=boxes, flips=flips)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.usefixtures("backend")
def test_result_is_as_asked(dtype: torch.dtype, channels_last: bool, count: int) -> None:
    images = draw_images(torch.Generator().manual_seed(0), count, 3, 9, 8)
    views = augment_views(images, size=(5, 4), dtype=dtype, channels_last=channels_last)
    assert views.shape == (count, 3, 5, 4)
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(views, augment_views(images, size=(5, 4)).to(dtype), atol=0, rtol=0)


def test_a_view_depends_on_nothing_but_its_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = draw_images(generator, 5, 3, 40, 31)
    options = draw_steps(generator, 5, 6, STEPS)
    together = augment_views(images, size=24, **options)
    listed = augment_views(list(images), size=24, **options)
    alone = [
        augment_views(images[i : i + 1], size=24, **{k: v[i : i + 1] for k, v in options.items()}) for i in range(5)
    ]
    assert torch.equal(together, listed)
    assert torch.equal(together, torch.cat(alone))


def test_a_pixel_changes_no_other() -> None:
    """What the library's power is left to, such as the smallest number there is, stands for itself alone."""
    plain = torch.rand(1, 1, 5, 13, generator=torch.Generator().manual_seed(0))
    images = plain.clone()
    images[0, 0, ::2, ::3] = torch.tensor([0.0, 1e-45, 3e38, -0.1, 1e-42])
    steps, strengths = torch.full((1, 1), STEPS.index("gamma")), torch.full((1, 1), 0.4)
    changed, same = (augment_views(x, size=(5, 13), steps=steps, strengths=strengths) for x in (images, plain))
    untouched = images == plain
    assert 0 < int(untouched.sum()) < images.numel()
    assert torch.equal(changed[untouched], same[untouched])


@pytest.mark.skipif(EMULATED, reason="the emulated device has no threads of its own")
def test_same_bits_on_any_number_of_threads() -> None:
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    images, options = draw_images(generator, 7, 3, 50, 41), draw_steps(generator, 7, 8, STEPS)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(augment_views(images, size=32, **options))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.skipif(EMULATED, reason="the emulated device has no instruction sets")
def test_instruction_sets_agree() -> None:
    best, baseline = results_by_instruction_set("""
import torch
from deepclust_ext.reference.augment_views import STEPS
images = torch.arange(3 * 21 * 26).mul(7919).remainder(251).to(torch.uint8).reshape(1, 3, 21, 26)
for size in ((21, 26), (30, 13)):
    for name in STEPS if size[0] == 21 else ("contrast", "hue", "blur", "gamma", "sharpness"):
        steps, strengths = torch.full((1, 1), STEPS.index(name)), torch.full((1, 1), 0.75)
        views = deepclust_ext.augment_views(images, size=size, steps=steps, strengths=strengths)
        print(*(x.hex() for x in views.flatten().tolist()))
""")
    for ours, plain in zip(best, baseline, strict=True):
        assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 1e-6


# What must not crash, and messages.


@pytest.mark.parametrize("name", STEPS)
def test_values_that_are_no_colors(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 17, 13, generator=generator)
    for i, value in enumerate((math.nan, math.inf, -math.inf, 1e30, -1e30, -0.5)):
        images[i, :, ::3, ::2] = value
    op = torch.ops.deepclust_ext.augment_views  # which takes what the public function refuses
    for strength in (0.5, 0.0, -1.0, 1e30, -1e30, math.nan, math.inf, -math.inf):
        views = op([images], (17, 13), **one_step(name, strength, 6))
        op([images], (9, 20), **one_step(name, strength, 6))
        if name == "equalize":
            assert bool(views.isfinite().all())
    moves = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0]).reshape(6, 1, 1).expand(6, 2, 3)
    assert bool((op([torch.ones(6, 1, 5, 5)], (5, 5), matrices=moves)[:3] == 0).all())


@pytest.mark.skipif(EMULATED, reason="there the CUDA kernel answers, which test_views_sweep gives such boxes and steps")
def test_direct_call_cuts_boxes_and_skips_unknown_steps() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    op = torch.ops.deepclust_ext.augment_views
    for box, part in (
        ([-5, -5, 99, 99], image),
        ([1, 2, 99, 99], image[:, :, 1:, 2:]),
        ([9, 9, 0, -1], image[:, :, 2:, 3:]),
    ):
        assert torch.equal(op([image], part.shape[2:], boxes=torch.tensor([box])), part / 255)
    for unknown in (-1, len(STEPS), 1 << 40, -(1 << 40)):
        steps, strengths = torch.tensor([[unknown]]), torch.ones(1, 1)
        assert torch.equal(op([image], [3, 4], steps=steps, strengths=strengths), image / 255)


def images_of(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (1, {}, TypeError, "images: expected a tensor or a sequence of tensors, got int"),
        ([], {}, ValueError, "images: expected at least one"),
        ([1], {}, TypeError, "images, 0: expected a tensor, got int"),
        ([images_of(1, 3, 4, 4)], {}, ValueError, r"images, 0: expected shape \(C, H, W\), got \(1, 3, 4, 4\)"),
        (images_of(3, 4, 4), {}, ValueError, r"images: expected \(B, C, H, W\)"),
        (images_of(1, 65, 4, 4), {}, ValueError, "1 to 64 channels"),
        (images_of(1, 3, 0, 4), {}, ValueError, "a pixel"),
        (images_of(1, 3, 4, 4).int(), {}, TypeError, "images: expected uint8, uint16 or a floating dtype"),
        (
            [images_of(3, 4, 4), images_of(1, 4, 4)],
            {},
            ValueError,
            "images: expected one number of channels, got 3 and 1",
        ),
        (images_of(1, 3, 4, 4), {"size": 0}, ValueError, "size: expected at least 1, got 0"),
        (images_of(1, 3, 4, 4), {"size": 2.0}, TypeError, "size: expected an integer, or two, got 2.0"),
        (images_of(1, 3, 4, 4), {"boxes": torch.zeros(1, 4)}, TypeError, "boxes: expected dtype torch.int64"),
        (images_of(1, 3, 4, 4), {"boxes": torch.zeros(2, 4).long()}, ValueError, r"boxes: expected shape \(1, 4\)"),
        (
            images_of(2, 3, 4, 4),
            {"boxes": torch.tensor([[0, 0, 4, 4], [0, 1, 4, 4]])},
            ValueError,
            r"boxes, 1: expected a box within 4 x 4 pixels, got \[0, 1, 4, 4\]",
        ),
        (images_of(1, 3, 4, 4), {"flips": torch.zeros(2).bool()}, ValueError, r"flips: expected shape \(1\)"),
        (
            images_of(1, 3, 4, 4),
            {"matrices": torch.zeros(1, 3, 3)},
            ValueError,
            r"matrices: expected shape \(1, 2, 3\)",
        ),
        (images_of(1, 3, 4, 4), {"steps": torch.zeros(1, 2).long()}, ValueError, "steps, strengths: expected both"),
        (
            images_of(1, 3, 4, 4),
            one_step("none", 0.0) | {"steps": torch.tensor([[18]])},
            ValueError,
            "expected 0 to 17",
        ),
        (images_of(1, 3, 4, 4), {"blur_kernel": 4}, ValueError, "blur_kernel: expected an odd number"),
        (images_of(1, 3, 4, 4), {"blur_kernel": 3.0}, TypeError, "blur_kernel: expected an integer, got 3.0"),
        (images_of(1, 3, 4, 4), {"mean": [0.5] * 3}, ValueError, "mean, std: expected both or neither"),
        (images_of(1, 3, 4, 4), {"mean": [0.5], "std": [0.5]}, ValueError, "mean: expected 3 numbers"),
        (images_of(1, 1, 4, 4), {"mean": [math.nan], "std": [1.0]}, ValueError, r"mean: expected finite .* \(nan,\)"),
        (images_of(1, 1, 4, 4), {"mean": ["a"], "std": [1.0]}, TypeError, "mean: expected a number, got 'a'"),
        (
            images_of(2, 3, 4, 4),
            {"matrices": torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, math.nan], [0, 1, 0]]])},
            ValueError,
            r"matrices, 1: expected finite numbers, got \[\[1.0, 0.0, nan\], \[0.0, 1.0, 0.0\]\]",
        ),
        *(
            (images_of(1, 3, 4, 4), one_step(name, value), ValueError, f"strengths, 0: expected finite .*{value}")
            for name, value in (("rotate", math.nan), ("blur", math.inf), ("posterize", -math.inf))
        ),
        (images_of(1, 1, 4, 4), {"mean": [0.5], "std": [0.0]}, ValueError, "std: expected finite numbers above 0"),
        (images_of(1, 3, 4, 4), {"dtype": torch.float64}, TypeError, "dtype: expected float32, float16 or bfloat16"),
    ],
)
@pytest.mark.usefixtures("backend")
def test_messages(images: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        augment_views(images, **{"size": 4} | options)


@pytest.mark.parametrize(
    "box", [[2**63 - 1, 0, 1, 9], [2**62, 0, 2**62, 9], [0, 2**63 - 1, 9, 1], [0, 0, 2**63 - 1, 9]]
)
def test_boxes_whose_sum_overflows_are_refused(box: list[int]) -> None:
    with pytest.raises(ValueError, match="boxes, 0: expected a box within 9 x 9 pixels"):
        augment_views(torch.rand(1, 3, 9, 9), size=8, boxes=torch.tensor([box]))
