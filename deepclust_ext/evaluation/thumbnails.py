"""Images of any kind, number of bands and size as small pictures within a page."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext.inference.images import IndexedImages

_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # of floats 1 is
_LOOKS = 128  # images that the range is taken of
_VALUES = 4096  # of one image and band that take part
_PERCENTILES = (0.5, 99.5)
_AT_ONCE = 16  # images in memory
_LOSSLESS = 28  # sides up to which a picture costs little without loss


class Thumbnails:
    """Small pictures of a data set's images, all drawn by one rule so that they can be compared.

    One band is drawn as gray; of two bands the first is magenta and the second green; of three or more the first three
    are red, green and blue. Black and white follow from the type. If images use less than a quarter of its range or
    exceed it, they are the percentiles 0.5 and 99.5 of a sample of images, for each band by itself unless there are
    three. ``note`` says what was done.

    Args:
        images: Map-style, of (C, H, W) or tuples that begin with one.
        side: Pixels of the longer side; smaller images keep their size.
        sample: Indices of the images that the range is taken from, of which at most the first 128 are used.

    Raises:
        TypeError: If an item is no image.
        ValueError: If an image cannot be read.
    """

    def __init__(self, images: Dataset[Any], side: int, sample: Sequence[int]) -> None:
        self.images = IndexedImages(images, any_size=True)
        self.side = side
        seen = list(self._read(sample[:_LOOKS]))
        channels = len(seen[0])
        self.bands = {1: [0], 2: [0, 1, 0]}.get(channels, [0, 1, 2])
        white = _WHITE.get(seen[0].dtype, 1.0)
        ends = np.array([_ends([image[band] for image in seen]) for band in self.bands])
        if len(self.bands) == channels == 3:  # or colors would change
            ends[:] = ends[:, 0].min(), ends[:, 1].max()
        low, high = ends[:, 0].min(), ends[:, 1].max()
        used = high - low
        # Values that are all equal have no range to draw; by their type they are at least as dark as they are.
        stretched = used > 0 and (low < 0 or high > white or used < white / 4)
        if not stretched:
            ends[:] = 0, white
        ends[:, 1] = np.where(ends[:, 1] > ends[:, 0], ends[:, 1], ends[:, 0] + 1)
        self.stretched = bool(stretched)
        self.low, self.high = ends.astype(np.float32).T
        self.note = _in_words(channels, ends if stretched else None)

    def pictures(self, places: Sequence[int]) -> Iterator[str]:
        """Yield images as data URIs: WebP, or PNG if there is no codec for WebP."""
        return (self._encoded(image) for image in self._read(places))

    def _read(self, places: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, len(places), _AT_ONCE):
            read = self.images.__getitems__([int(place) for place in places[start : start + _AT_ONCE]])
            yield from read[0] if isinstance(read, tuple) else (image for image, *_ in read)

    def _encoded(self, image: Tensor) -> str:
        drawn = image.detach().cpu()[self.bands].permute(1, 2, 0)
        if drawn.dtype == torch.uint8 and not self.stretched:
            pixels = drawn.numpy()
        else:
            shares = (drawn.to(torch.float32).numpy() - self.low) / (self.high - self.low)
            pixels = np.rint(np.nan_to_num(shares, posinf=1, neginf=0).clip(0, 1) * 255).astype(np.uint8)
        picture = Image.fromarray(pixels[:, :, 0] if len(self.bands) == 1 else pixels)
        picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        file, kind = io.BytesIO(), "webp" if features.check("webp") else "png"
        lossless = max(picture.size) <= _LOSSLESS
        picture.save(file, kind, **({"quality": 80, "method": 2, "lossless": lossless} if kind == "webp" else {}))
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _ends(bands: Sequence[Tensor]) -> tuple[float, float]:
    """Return the percentiles of the finite values of one band of several images; 0 and 0 if there are none."""
    some = [band.detach().cpu().flatten()[:: max(1, band.numel() // _VALUES)].double() for band in bands]
    values = torch.cat(some).numpy()
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, _PERCENTILES) if len(values) else (0.0, 0.0)
    return float(low), float(high)


def _in_words(
    channels: int,
    ends: NDArray[np.float64] | None,  # (bands, 2) what is black and white, where it is not by the type
) -> str:
    others = {1: [], 2: ["band 1 in magenta and band 2 in green"], 3: []}
    parts = others.get(channels, [f"bands 1, 2 and 3 of {channels} as red, green and blue"])
    if ends is not None:
        ranges = dict.fromkeys(f"{low:.4g} to {high:.4g}" for low, high in ends)
        parts = [*parts, f"values of {', '.join(ranges)} as black to white"]
    return f"Pictures show {'; '.join(parts)}." if parts else ""
