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

    Of one band the value is gray, of two the first is magenta and the second green, of three or more the first three
    are red, green and blue. What is black and white goes by the type, unless images use less than a quarter of its
    range or leave it; then by percentiles 0.5 and 99.5 of a sample of images, each band for itself if there are not
    just three. ``note`` says what was done.

    Args:
        images: Map-style, of (C, H, W) or tuples that begin with one.
        side: Pixels of the longer side; smaller images stay as they are.
        sample: Places of the images that the range is taken of, the first 128 at most.

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
        self.low = ends[:, 0] if stretched else np.zeros(len(ends))
        self.high = ends[:, 1] if stretched else np.full(len(ends), white)
        self.high = np.where(self.high > self.low, self.high, self.low + 1)
        self.note = _in_words(channels, self.low, self.high, stretched=stretched)

    def pictures(self, places: Sequence[int]) -> Iterator[str]:
        """Yield images as data URIs, WebP or without its codec PNG."""
        return (self._encoded(image) for image in self._read(places))

    def _read(self, places: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, len(places), _AT_ONCE):
            read = self.images.__getitems__([int(place) for place in places[start : start + _AT_ONCE]])
            yield from read[0] if isinstance(read, tuple) else (image for image, *_ in read)

    def _encoded(self, image: Tensor) -> str:
        values = np.nan_to_num(_as_float(image[self.bands]), posinf=np.inf, neginf=-np.inf).transpose(1, 2, 0)
        shares = ((values - self.low) / (self.high - self.low)).clip(0, 1)
        pixels = np.rint(shares * 255).astype(np.uint8)
        picture = Image.fromarray(pixels[:, :, 0] if len(self.bands) == 1 else pixels)
        picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        file, kind = io.BytesIO(), "webp" if features.check("webp") else "png"
        lossless = max(picture.size) <= _LOSSLESS
        picture.save(file, kind, **({"quality": 80, "method": 2, "lossless": lossless} if kind == "webp" else {}))
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _as_float(image: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = image.detach().cpu().to(torch.float64).numpy()
    return array


def _ends(images: Sequence[Tensor]) -> tuple[float, float]:
    """Return the percentiles of the finite values of one band; 0 and 0 where there are none."""
    values = np.concatenate([_as_float(image.flatten()[:: max(1, image.numel() // _VALUES)]) for image in images])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, _PERCENTILES) if len(values) else (0.0, 0.0)
    return float(low), float(high)


def _in_words(channels: int, low: NDArray[np.float64], high: NDArray[np.float64], *, stretched: bool) -> str:
    drawn = {1: "", 2: "band 1 in magenta and band 2 in green", 3: ""}.get(
        channels, f"bands 1, 2 and 3 of {channels} as red, green and blue"
    )
    ends = ", ".join(f"{dark:.4g} to {bright:.4g}" for dark, bright in dict.fromkeys(zip(low, high, strict=True)))
    parts = [part for part in (drawn, f"values from {ends} as black to white" if stretched else "") if part]
    return f"Pictures show {'; '.join(parts)}." if parts else ""
