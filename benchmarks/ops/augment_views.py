"""augment_views against torchvision applied per image and kornia applied to the batch.

Rows and dims of a case are the pixels of a side; the number of images stands in its name. Ours gets parameters that
were drawn beforehand, and so does "torchvision functionals", whose results are compared. What draws its own is only
asked for finite values of the right shape; "ours with the drawing" is RandomViews. Everybody gets uint8 and
gives float32: the harness hands out floating images in [0, 1], of which the bytes are taken once, before the clock.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import Function
from benchmarks.floors import BF16, Work, WorkOf
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import augment_views, reference
from deepclust_ext.data.views import IMAGENET_MEAN, IMAGENET_STD, strong_view, weak_view
from deepclust_ext.reference.augment_views import STEPS

MODES = ("forward",)
TRUTH = reference.augment_views
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own

BLUR_KERNEL = 23
JITTER = (("brightness", 1.0, 0.4), ("contrast", 1.0, 0.4), ("saturation", 1.0, 0.4), ("hue", 0.0, 0.1))
_bytes: dict[int, tuple[Tensor, Tensor]] = {}  # by where images lie: these, which keeps the place theirs, and as uint8


def bytes_of(images: Tensor) -> Tensor:
    """Return images (1, B, C, H, W) of values v / 255 as uint8 (B, C, H, W)."""
    known = _bytes.get(images.data_ptr())
    if known is None or known[0] is not images:
        known = _bytes[images.data_ptr()] = images, images[0].mul(255).round().to(torch.uint8)
    return known[1]


def make_ours(images: Tensor, **options: Any) -> Tensor:
    """Make all views at once."""
    views = bytes_of(images)
    placed: dict[str, Any] = {k: v.to(views.device) if isinstance(v, Tensor) else v for k, v in options.items()}
    if views.shape[2] < options["size"][0]:  # fewer rows, with which the harness warms up before it measures memory
        del placed["boxes"]
    return augment_views(views, **placed)


def load_steps() -> dict[str, Function]:
    """Return torchvision's functions of an image (C, H, W) and a strength, by the names of steps."""
    from torchvision.transforms.v2 import functional

    def move(image: Tensor, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
        degrees = [math.degrees(math.atan(factor)) for factor in shear]
        moved: Tensor = functional.affine(image, 0.0, [int(pixels) for pixels in shift], 1.0, degrees, center=[0, 0])
        return moved

    return {
        "none": lambda image, _: image,
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
        "gray": lambda image, _: functional.rgb_to_grayscale(image, 3),
        "blur": lambda image, sigma: functional.gaussian_blur(image, [BLUR_KERNEL] * 2, [sigma] * 2),
        "autocontrast": lambda image, _: functional.autocontrast(image),
        "equalize": lambda image, _: functional.equalize(image),
        "sharpness": functional.adjust_sharpness,
        "posterize": lambda image, bits: functional.posterize(image, int(bits)),
        "solarize": lambda image, threshold: functional.solarize(image, round(255 * threshold)),  # of uint8
        "rotate": functional.rotate,
        "shear_x": lambda image, factor: move(image, shear=(factor, 0)),
        "shear_y": lambda image, factor: move(image, shear=(0, factor)),
        "shift_x": lambda image, pixels: move(image, shift=(pixels, 0)),
        "shift_y": lambda image, pixels: move(image, shift=(0, pixels)),
    }


def load_functionals() -> Function:
    """Return torchvision's functions, image by image, with the parameters that ours has."""
    from torchvision.transforms.v2 import functional

    steps = load_steps()

    def make(images: Tensor, **options: Any) -> Tensor:
        views = []
        for i, image in enumerate(bytes_of(images)):  # of fewer rows, torchvision pads the boxes
            view = functional.resized_crop(image / 255, *options["boxes"][i].tolist(), options["size"], antialias=True)
            view = functional.horizontal_flip(view) if options["flips"][i] else view
            for step, strength in zip(options["steps"][i].tolist(), options["strengths"][i].tolist(), strict=True):
                view = steps[STEPS[step]](view, strength)
            views.append(view)
        return torch.stack(views)

    return make


def load_torchvision(view: str, side: int) -> Function:
    """Return torchvision's modules, image by image, which draw for themselves; uint8 up to the end."""
    from torchvision.transforms import v2

    steps = load_steps()

    def operate(image: Tensor) -> Tensor:
        for _ in range(5):
            if float(torch.rand(())) < 0.5:
                name, strength = draw_operation(lambda low, high: low + (high - low) * float(torch.rand(())), side)
                image = steps[name](image, strength)
        return image

    transforms: list[Any] = [
        v2.RandomResizedCrop(side),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if view != "weak":
        transforms.append(v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, (0.1, 2.0))], p=0.5))
    if view == "strong":
        transforms.append(operate)
    transforms.append(v2.ToDtype(torch.float32, scale=True))
    if view == "strong":
        transforms.append(v2.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    module = v2.Compose(transforms)
    return lambda images: torch.stack([module(image) for image in bytes_of(images)])


def random_views(view: str, side: int) -> Function:
    """Return this package's module, which draws the parameters too."""
    module = strong_view(side) if view == "strong" else weak_view(side, blur_p=0.5 if view == "blur" else 0.0)
    return lambda images: module(bytes_of(images))


def load_kornia(blur: bool, side: int) -> Function:
    """Return kornia's modules for the batch, which draw for themselves."""
    from kornia import augmentation

    modules: list[nn.Module] = [
        augmentation.RandomResizedCrop((side, side), scale=(0.08, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
    ]
    if blur:
        modules.append(augmentation.RandomGaussianBlur((BLUR_KERNEL, BLUR_KERNEL), (0.1, 2.0), p=0.5))
    module = nn.Sequential(*modules)
    return lambda images: module(bytes_of(images) / 255)


def check_shape(result: Tensor, inputs: tuple[Tensor, ...], _: Mapping[str, Any]) -> str | None:
    """Return what is wrong with views whose parameters nobody knows."""
    fits = result.shape == inputs[0].shape[1:] and result.dtype == torch.float32 and bool(result.isfinite().all())
    return None if fits else f"WRONG: {result.dtype} {tuple(result.shape)}"


PROVIDERS = {
    "ours": Provider(lambda: make_ours),
}
YARDSTICK = Yardstick(
    "one conversion", lambda images, **_: bytes_of(images) / 255, lambda images, **_: int(images.numel())
)


def random_images(count: int, height: int, width: int) -> tuple[Tensor]:
    """Return images (1, count, 3, height, width) of bytes / 255, smooth with noise as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(images.shape, generator=generator) - 0.5
    return ((images + 0.2 * noise).clamp(0, 1).mul(255).round().div(255)[None],)


def draw_parameters(view: str, count: int, side: int) -> dict[str, Any]:
    """Return parameters in torchvision's distributions; boxes as of a square image, cut where they do not fit."""
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    boxes, steps = [], []
    for _ in range(count):
        area, ratio = uniform(0.08, 1.0) ** 0.5 * side, uniform(-0.2877, 0.2877)
        width, height = (max(1, min(side, round(area * 2.71828 ** (sign * ratio / 2)))) for sign in (1, -1))
        boxes.append([round(uniform(0, side - height)), round(uniform(0, side - width)), height, width])
        order = torch.randperm(4, generator=generator).tolist()
        own = [(name, uniform(middle - reach, middle + reach)) for name, middle, reach in (JITTER[i] for i in order)]
        own = own if uniform(0, 1) < 0.8 else [("none", 0.0)] * 4
        own.append(("gray" if uniform(0, 1) < 0.2 else "none", 0.0))
        if view != "weak":
            own.append(("blur", uniform(0.1, 2.0)) if uniform(0, 1) < 0.5 else ("none", 0.0))
        if view == "strong":
            own += [draw_operation(uniform, side) if uniform(0, 1) < 0.5 else ("none", 0.0) for _ in range(5)]
        steps.append(own)
    return {
        "size": (side, side),
        "boxes": torch.tensor(boxes),
        "flips": torch.rand(count, generator=generator) < 0.5,
        "steps": torch.tensor([[STEPS.index(name) for name, _ in own] for own in steps]),
        "strengths": torch.tensor([[strength for _, strength in own] for own in steps]),
        "blur_kernel": BLUR_KERNEL,
    }


def draw_operation(uniform: Function, side: int) -> tuple[str, float]:
    """Return one of SACC's operations and its strength at a level of 1 to 9."""
    level, sign = int(uniform(1, 10)), 1 if uniform(0, 1) < 0.5 else -1
    operations = {
        "none": 0.0,
        "autocontrast": 0.0,
        "equalize": 0.0,
        **dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), 0.05 + 0.09 * level),
        "posterize": 4.0 + int(0.4 * level),
        "solarize": (256 - 25.6 * level) / 255,
        "rotate": 3.0 * level * sign,
        **dict.fromkeys(("shear_x", "shear_y"), 0.03 * level * sign),
        **dict.fromkeys(("shift_x", "shift_y"), float(int(0.03 * level * side) * sign)),
    }
    return list(operations.items())[int(uniform(0, len(operations)))]


def view_work(rows: int, dims: int, dtype: str, *, view: str, count: int) -> Work:
    """Return the least: bytes read and views written; two taps each way, 12 for the colors, half of all blurred."""
    values = 3 * rows * dims * count
    multiply_adds = 4 + 12 + (BLUR_KERNEL + 1 if view != "weak" else 0)  # equal weights once: 12 each way, of half
    return Work({BF16: 2 * multiply_adds * values}, values * (1 + 4))


def make_case(view: str, count: int, side: int) -> Case:
    """Return a case of one of the views "weak", "blur" and "strong"."""
    options = draw_parameters(view, count, side)
    rivals = {"torchvision": Provider(partial(load_torchvision, view, side), check=check_shape)}
    if view == "strong":
        options |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    else:
        rivals["torchvision functionals"] = Provider(lambda: partial(load_functionals(), **options))
        rivals["kornia"] = Provider(partial(load_kornia, view == "blur", side), check=check_shape)
    return Case(
        f"{view}-b{count}",
        side,
        side,
        partial(random_images, count),
        rivals=rivals,
        beside={"ours with the drawing": random_views(view, side)},
        options=options,
        works={"forward": partial(view_work, view=view, count=count)},
    )


CASES = [
    make_case("weak", 128, 32),
    make_case("blur", 32, 96),
    make_case("blur", 16, 224),
    make_case("strong", 16, 224),
]
SERIES = [make_case("weak", 32, side) for side in (32, 64, 128)]
CUDA_CASES = [make_case("weak", 256, 32), make_case("blur", 128, 96), make_case("blur", 64, 224)]
