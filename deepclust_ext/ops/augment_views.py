"""augment_views: a view of every image of a batch, from parameters that were drawn beforehand."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import (
    can_look_at,
    check_bool,
    check_integer,
    check_number,
    check_size,
    check_tensor,
    counted,
)
from deepclust_ext.reference.augment_views import STEPS

MAX_CHANNELS = 64
_IMAGE_DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_VIEW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def augment_views(
    images: Tensor | Sequence[Tensor],  # (B, C, H, W), or B of (C, H, W)
    *,
    size: int | tuple[int, int],
    boxes: Tensor | None = None,  # (B, 4) int64
    flips: Tensor | None = None,  # (B,) bool
    matrices: Tensor | None = None,  # (B, 2, 3) float32
    steps: Tensor | None = None,  # (B, S) int64
    strengths: Tensor | None = None,  # (B, S) float32
    blur_kernel: int = 23,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    r"""Make a view of every image: crop, resize, flip, move, then each image's own steps, then normalize.

    Each image runs through, in this order and in float32:

    ======== ===========================================================================================================
    values   v / 255 for uint8, v / 65535 for uint16; floating values are not changed
    crop     the rows and columns of its box
    resize   bilinear with antialias, as ``torch.nn.functional.interpolate``; skipped if the crop has that size
    flip     left and right
    move     bilinear: a pixel at [x, y] from the middle comes from ``matrix @ [x, y, 1]``, 0 from outside the image
    steps    in the image's own order, see below
    values   (v - mean) / std of each channel
    ======== ===========================================================================================================

    A step is given by a number, its index in ``deepclust_ext.data.STEPS``, and a strength f. Each is torchvision's
    function of that name on a floating image v in [0, 1]. y is the gray value 0.2989 r + 0.587 g + 0.114 b, or for
    images without three channels the mean of the channels:

    ============= ======================================================================================================
    none          v
    brightness    clamp(f v)
    contrast      clamp(f v + (1 - f) mean(y)), the mean over the image
    saturation    clamp(f v + (1 - f) y)
    hue           the hue of HSV turned by f of the circle
    gray          y in all channels
    blur          Gaussian of f pixels, ``blur_kernel`` wide or as wide as the image lets it, borders mirrored
    solarize      1 - v where v >= f
    posterize     floor(2^f v) / 2^f
    autocontrast  each channel's smallest value to 0 and largest to 1
    equalize      each channel's histogram of 256 levels spread evenly
    sharpness     clamp(f v + (1 - f) s), s smoothed by 3 x 3 weights of 1 and 5 in the middle, border excepted
    rotate        by f degrees, counterclockwise; like the next four it takes the nearest pixel, and 0 from outside
    shear_x       rows shifted by f times their distance from the top; shear_y: columns, from the left
    shift_x       by f pixels to the right; shift_y: down
    gamma         v^f
    ============= ======================================================================================================

    Saturation, hue and gray do not change images without three channels. The results are constants: no gradient reaches
    the images. They do not depend on the number of threads.

    Args:
        images: A tensor of images of one size, or a sequence of images of any sizes; 1 to 64 channels; uint8, uint16 or
            floating. B may be 0 for a tensor.
        size: Height and width of the views, or one number for both.
        boxes: Top, left, height and width in pixels of the part of each image that its view shows; by default the whole
            image. A box beyond its image is an error on the CPU. On CUDA, where checking would wait for the device, the
            box is clipped.
        flips: Which views are mirrored; by default none.
        matrices: Where the pixels come from, see *move*; by default nothing is moved. A number that is not finite, here
            or in ``strengths``, is an error on the CPU; on CUDA the pixels of that view are undefined.
        steps: Numbers of steps, S for each image; by default none. An unknown number is an error on the CPU, and is
            skipped on CUDA.
        strengths: One for each step.
        blur_kernel: Side of the blur's kernel in pixels; odd.
        mean: One number for each channel; given together with ``std``. By default views are not normalized.
        std: One positive number for each channel.
        dtype: Dtype of the views: float32, float16 or bfloat16.
        channels_last: Whether the views have the memory format ``torch.channels_last``.

    Returns:
        The views (B, C, height, width).

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
        >>> steps = torch.tensor([[STEPS.index("brightness")]])
        >>> views = augment_views(
        ...     images, size=2, boxes=torch.tensor([[0, 0, 2, 2]]), steps=steps, strengths=torch.tensor([[51.0]])
        ... )
        >>> views
        tensor([[[[0.0000, 0.2000],
                  [0.8000, 1.0000]]]])

    Source: the views of SACC, https://arxiv.org/abs/2206.00380, and HaDis, https://arxiv.org/abs/2401.14038.
    """
    parts, size = _parts(images), _size(size)
    blur_kernel = check_integer(blur_kernel, "blur_kernel", 1)
    channels_last = check_bool(channels_last, "channels_last")
    _check(parts, size, boxes, flips, matrices, steps, strengths, blur_kernel, mean, std, dtype)
    if not _extension.uses_native(parts[0].device.type):
        return reference.augment_views(
            parts,
            size=size,
            boxes=boxes,
            flips=flips,
            matrices=matrices,
            steps=steps,
            strengths=strengths,
            blur_kernel=blur_kernel,
            mean=mean,
            std=std,
            dtype=dtype,
            channels_last=channels_last,
        )
    views: Tensor = torch.ops.deepclust_ext.augment_views.default(
        parts, size, boxes, flips, matrices, steps, strengths, blur_kernel, mean, std, dtype, channels_last
    )
    return views


def _parts(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the images as a list of tensors (n, C, H, W)."""
    if isinstance(images, Tensor):
        check_tensor(images, "images")
        return [images]
    if not isinstance(images, Sequence):
        raise TypeError(f"images: expected a tensor or a sequence of tensors, got {type(images).__name__}")
    if not images:
        raise ValueError("images: expected at least one, got an empty sequence")
    for place, image in enumerate(images):
        check_tensor(image, f"images, {place}")
        if image.dim() != 3:
            raise ValueError(f"images, {place}: expected shape (C, H, W), got {tuple(image.shape)}")
    return [image.unsqueeze(0) for image in images]


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    is_one = isinstance(size, (Integral, torch.SymInt))
    sides = (size, size) if is_one else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2:
        raise TypeError(f"size: expected an integer, or two, got {size!r}")
    height, width = (check_size(side, "size") for side in sides)
    return height, width


def _check(
    parts: Sequence[Tensor],  # of (n, C, H, W)
    size: tuple[int, int],
    boxes: Tensor | None,  # (B, 4)
    flips: Tensor | None,  # (B,)
    matrices: Tensor | None,  # (B, 2, 3)
    steps: Tensor | None,  # (B, S)
    strengths: Tensor | None,  # (B, S)
    blur_kernel: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
) -> None:
    first = parts[0]
    for part in parts:
        if part.dim() != 4 or not 1 <= part.shape[1] <= MAX_CHANNELS or min(part.shape[2:]) < 1:
            shape = tuple(part.shape)
            raise ValueError(f"images: expected (B, C, H, W), 1 to {MAX_CHANNELS} channels and a pixel, got {shape}")
        if part.dtype not in _IMAGE_DTYPES:
            raise TypeError(f"images: expected uint8, uint16 or a floating dtype, got {part.dtype}")
        for name, own, other in (
            ("dtype", part.dtype, first.dtype),
            ("number of channels", part.shape[1], first.shape[1]),
            ("device", part.device, first.device),
        ):
            if own != other:
                raise (TypeError if name == "dtype" else ValueError)(
                    f"images: expected one {name}, got {other} and {own}"
                )
    count = sum(part.shape[0] for part in parts)
    length = None if steps is None or not isinstance(steps, Tensor) or steps.dim() != 2 else steps.shape[1]
    parameters: tuple[tuple[str, Tensor | None, tuple[int | None, ...], torch.dtype], ...] = (
        ("boxes", boxes, (count, 4), torch.int64),
        ("flips", flips, (count,), torch.bool),
        ("matrices", matrices, (count, 2, 3), torch.float32),
        ("steps", steps, (count, length), torch.int64),
        ("strengths", strengths, (count, length), torch.float32),
    )
    for name, tensor, expected, wanted in parameters:
        _check_parameter(name, tensor, expected, wanted, first.device)
    if (steps is None) != (strengths is None):
        raise ValueError("steps, strengths: expected both or neither")
    if blur_kernel < 1 or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel: expected an odd number of pixels above 0, got {blur_kernel}")
    if (mean is None) != (std is None):
        raise ValueError("mean, std: expected both or neither")
    given: tuple[tuple[str, Any], ...] = (("mean", mean), ("std", std))
    for name, numbers in given:
        if numbers is not None and not (isinstance(numbers, Sequence) or np.ndim(numbers) == 1):
            raise TypeError(f"{name}: expected a sequence of numbers, got {type(numbers).__name__}")
        if numbers is not None and len(numbers) != first.shape[1]:
            channels = counted(first.shape[1], "number")
            raise ValueError(f"{name}: expected {channels}, one for each channel, got {len(numbers)}")
        if numbers is not None and not all(math.isfinite(check_number(number, name)) for number in numbers):
            raise ValueError(f"{name}: expected finite numbers, got {tuple(numbers)}")
    if std is not None and not all(number > 0 for number in std):
        raise ValueError(f"std: expected finite numbers above 0, got {tuple(std)}")
    if dtype not in _VIEW_DTYPES:
        raise TypeError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    if can_look_at(first):
        _check_values(parts, boxes, matrices, steps, strengths)


def _check_parameter(
    name: str, tensor: Tensor | None, shape: tuple[int | None, ...], kind: torch.dtype, device: torch.device
) -> None:
    if tensor is None:
        return
    check_tensor(tensor, name)
    if tensor.dtype != kind:
        raise TypeError(f"{name}: expected dtype {kind}, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        expected = f"({', '.join('S' if side is None else str(side) for side in shape)})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} like images, got {tensor.device}")


def _check_values(
    parts: Sequence[Tensor],  # of (n, C, H, W)
    boxes: Tensor | None,  # (B, 4)
    matrices: Tensor | None,  # (B, 2, 3)
    steps: Tensor | None,  # (B, S)
    strengths: Tensor | None,  # (B, S)
) -> None:
    """Require boxes within their images, known steps and finite numbers; by NumPy, which is faster in small calls."""
    if boxes is not None and len(boxes):
        sides = np.array([part.shape[2:] for part in parts])
        if len(parts) > 1:
            sides = sides.repeat([part.shape[0] for part in parts], axis=0)
        box = boxes.numpy()
        corners, lengths = box[:, :2], box[:, 2:]
        fits = (corners >= 0) & (lengths >= 1) & (lengths <= sides - corners)  # no sum, which may overflow
        if not fits.all():
            place = int(fits.all(axis=1).argmin())
            height, width = np.broadcast_to(sides, corners.shape)[place]
            raise ValueError(
                f"boxes, {place}: expected a box within {height} x {width} pixels, got {box[place].tolist()}"
            )
    if steps is not None and steps.numel():
        lowest, highest = (int(end) for end in steps.aminmax())
        if lowest < 0 or highest >= len(STEPS):
            raise ValueError(f"steps: expected 0 to {len(STEPS) - 1}, got {lowest} to {highest}")
    for name, tensor in (("matrices", matrices), ("strengths", strengths)):
        if tensor is None or not tensor.numel():
            continue
        finite = np.isfinite(tensor.detach().numpy()).reshape(len(tensor), -1)
        if not finite.all():
            place = int(finite.all(axis=1).argmin())
            raise ValueError(f"{name}, {place}: expected finite numbers, got {tensor[place].tolist()}")


def _fake(
    images: Sequence[Tensor],  # of (n, C, H, W)
    size: tuple[int, int],
    boxes: Tensor | None = None,  # (B, 4)
    flips: Tensor | None = None,  # (B,)
    matrices: Tensor | None = None,  # (B, 2, 3)
    steps: Tensor | None = None,  # (B, S)
    strengths: Tensor | None = None,  # (B, S)
    blur_kernel: int = 23,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    count = sum(part.shape[0] for part in images)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((count, images[0].shape[1], *size), dtype=dtype, device=images[0].device, memory_format=layout)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::augment_views", _fake)
