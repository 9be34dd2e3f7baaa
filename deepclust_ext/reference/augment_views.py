"""A view of every image from parameters drawn beforehand, in plain PyTorch, image by image."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

from deepclust_ext.reference.tangents import refuse_tangents

#: What a step of an image does, by its number; see :func:`deepclust_ext.augment_views` for the formulas.
STEPS = (
    "none",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "gray",
    "blur",
    "solarize",
    "posterize",
    "autocontrast",
    "equalize",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "shift_x",
    "shift_y",
    "gamma",
)
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}


def augment_views(
    images: Sequence[Tensor],  # of (n, C, H, W), whose n add up to B
    *,
    size: tuple[int, int],
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
    """Make every view, one image after the other; see :func:`deepclust_ext.augment_views`.

    Computes in float32, and of images in float64 in float64.
    """
    refuse_tangents("augment_views", *images)
    views = []
    for place, image in enumerate(image for part in images for image in part):
        wide = torch.float64 if image.dtype == torch.float64 else torch.float32
        view = image.detach().to(wide) / WHITE.get(image.dtype, 1.0)
        if boxes is not None:
            top, left, height, width = boxes[place].tolist()
            view = view[:, top : top + height, left : left + width]
        if view.shape[1:] != size:
            view = _resized(view, size)
        if flips is not None and flips[place]:
            view = view.flip(2)
        if matrices is not None:
            view = _moved(view, matrices[place].to(wide), "bilinear")
        if steps is not None and strengths is not None:
            with torch.autocast(view.device.type, enabled=False):
                for step, strength in zip(steps[place].tolist(), strengths[place].tolist(), strict=True):
                    view = _step(view, STEPS[step], strength, blur_kernel)
        if mean is not None and std is not None:
            view = (view - view.new_tensor(mean).view(-1, 1, 1)) / view.new_tensor(std).view(-1, 1, 1)
        views.append(view)
    first = images[0] if len(images) else torch.empty(0, 0, *size, device="cpu")
    result = torch.stack(views) if views else first.new_empty((0, first.shape[1], *size), dtype=torch.float32)
    return result.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _resized(view: Tensor, size: tuple[int, int]) -> Tensor:
    if size[1] == 1 < size[0]:  # as a row: of a column, torch 2.14 spreads the first pixel over all of the result
        return _resized(view.mT, (1, size[0])).mT
    return interpolate(view[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _step(view: Tensor, name: str, strength: float, blur_kernel: int) -> Tensor:
    colored = len(view) == 3
    if name in ("saturation", "hue", "gray") and not colored:
        return view
    gray = _gray(view) if colored else view.mean(0, keepdim=True)
    if name == "brightness":
        return (view * strength).clamp(0, 1)
    if name == "contrast":
        return _blend(view, gray.mean(), strength)
    if name == "saturation":
        return _blend(view, gray, strength)
    if name == "hue":
        return _hue(view, strength)
    if name == "gray":
        return gray.expand_as(view).clone()
    if name == "blur":
        return _blur(view, strength, blur_kernel)
    if name == "sharpness":
        return _sharpness(view, strength)
    if name in _MOVES:
        moved = view.new_tensor(_MOVES[name](strength, view.shape[1], view.shape[2]))
        return _moved(view, moved, "nearest")
    return _POINTS[name](view, strength)


def _gray(view: Tensor) -> Tensor:
    red, green, blue = view.unbind(0)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[None]


def _blend(view: Tensor, other: Tensor, share: float) -> Tensor:
    return (view * share + other * (1 - share)).clamp(0, 1)


def _hue(view: Tensor, shift: float) -> Tensor:
    """Turn the hue of RGB -> HSV, of the hexcone model, by a share of the circle."""
    red, green, blue = view.unbind(0)
    largest, smallest = view.amax(0), view.amin(0)
    chroma = largest - smallest
    gray = largest == smallest
    saturation = chroma / torch.where(gray, 1, largest)
    divisor = torch.where(gray, 1, chroma)
    from_red, from_green, from_blue = ((largest - channel) / divisor for channel in (red, green, blue))
    sector = torch.where(
        largest == red,
        from_blue - from_green,
        torch.where(largest == green, 2 + from_red - from_blue, 4 + from_green - from_red),
    )
    hue = (sector / 6 + 1 + shift) % 1
    sixth = (hue * 6).floor()
    rest = hue * 6 - sixth
    low = (largest * (1 - saturation)).clamp(0, 1)
    falling = (largest * (1 - saturation * rest)).clamp(0, 1)
    rising = (largest * (1 - saturation * (1 - rest))).clamp(0, 1)
    channels = [
        (largest, rising, low),
        (falling, largest, low),
        (low, largest, rising),
        (low, falling, largest),
        (rising, low, largest),
        (largest, low, falling),
    ]
    turned = torch.zeros_like(view)
    for number, colors in enumerate(channels):
        turned = torch.where(sixth.long() % 6 == number, torch.stack(colors), turned)
    return turned


def _blur(view: Tensor, sigma: float, kernel: int) -> Tensor:
    """Convolve with a Gaussian, rows and columns one after the other, the border mirrored without its edge."""
    for axis in (1, 2):
        radius = min(kernel // 2, view.shape[axis] - 1)
        places = torch.arange(-radius, radius + 1, dtype=view.dtype, device=view.device)
        weights = torch.exp(-0.5 * (places / sigma).square()) if sigma > 0 else (places == 0).to(view.dtype)
        weights = weights / weights.sum()
        border = (0, 0, radius, radius) if axis == 1 else (radius, radius, 0, 0)
        shape = (1, 1, -1, 1) if axis == 1 else (1, 1, 1, -1)
        view = conv2d(pad(view[:, None], border, mode="reflect"), weights.view(shape))[:, 0]
    return view


def _sharpness(view: Tensor, share: float) -> Tensor:
    """Blend with the image smoothed by 3 x 3 weights of 1 and 5 in the middle, except at the border."""
    if min(view.shape[1:]) <= 2:
        return view
    weights = view.new_ones(1, 1, 3, 3)
    weights[0, 0, 1, 1] = 5
    smooth = view.clone()
    smooth[:, 1:-1, 1:-1] = conv2d(view[:, None], weights / 13)[:, 0]
    return _blend(view, smooth, share)


def _autocontrast(view: Tensor) -> Tensor:
    low, high = view.amin((1, 2), keepdim=True), view.amax((1, 2), keepdim=True)
    return torch.where(low == high, view, (view - low) / torch.where(low == high, 1, high - low)).clamp(0, 1)


def _equalize(view: Tensor) -> Tensor:
    """Spread the histogram of 256 levels of every channel evenly."""
    levels = (view * (256 - 1e-3)).to(torch.uint8).long()
    channels = []
    for channel in levels:
        counts = torch.bincount(channel.flatten(), minlength=256)
        last = int(counts[counts > 0][-1])
        step = (int(counts.sum()) - last) // 255
        if step:
            before = counts.cumsum(0) - counts
            table = ((before + step // 2) // step).clamp(0, 255)
            channel = table[channel]
        channels.append(channel)
    return torch.stack(channels).to(view.dtype) / 255


_POINTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda view, strength: view,
    "solarize": lambda view, threshold: torch.where(view >= threshold, 1 - view, view),
    "posterize": lambda view, bits: (view * 2**bits).floor().clamp(0, 2**bits - 1) / 2**bits,
    "autocontrast": lambda view, strength: _autocontrast(view),
    "equalize": lambda view, strength: _equalize(view),
    "gamma": lambda view, power: view.pow(power),
}

# Where a pixel of the result comes from: [x, y] = matrix [x', y', 1], in pixels from the image's middle.
_MOVES: dict[str, Callable[[float, int, int], list[list[float]]]] = {
    "rotate": lambda degrees, height, width: [
        [math.cos(math.radians(degrees)), -math.sin(math.radians(degrees)), 0],
        [math.sin(math.radians(degrees)), math.cos(math.radians(degrees)), 0],
    ],
    # About the upper left corner.
    "shear_x": lambda factor, height, width: [[1, factor, factor * height / 2], [0, 1, 0]],
    "shear_y": lambda factor, height, width: [[1, 0, 0], [factor, 1, factor * width / 2]],
    "shift_x": lambda pixels, height, width: [[1, 0, -pixels], [0, 1, 0]],
    "shift_y": lambda pixels, height, width: [[1, 0, 0], [0, 1, -pixels]],
}


def _moved(view: Tensor, matrix: Tensor, mode: str) -> Tensor:
    """Take every pixel from where the matrix (2, 3) says, 0 from outside."""
    height, width = view.shape[1:]
    y = torch.arange(height, dtype=view.dtype, device=view.device).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width, dtype=view.dtype, device=view.device) - (width - 1) / 2
    from_x = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]) * (2 / width)
    from_y = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]) * (2 / height)
    grid = torch.stack([from_x, from_y], dim=-1)[None]
    return grid_sample(view[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
