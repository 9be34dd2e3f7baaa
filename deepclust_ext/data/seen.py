"""Facts about an image that has been read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from deepclust_ext.data.pixels import ImageError, Pixels

PERCENTILES = (0.1, 99.9)
_SAMPLES = 4096  # values of an image that take part in the percentiles


@dataclass(frozen=True)
class PixelRange:
    """What becomes 0 and 1 in images of one stored type, as percentiles of a data set give it.

    Attributes:
        low: Value that becomes 0.
        high: Value that becomes 1.
        dtype: Name of the stored type.
        white: Value of white in that type.
    """

    low: float
    high: float
    dtype: str
    white: float


@dataclass(frozen=True)
class Seen:
    """An image's kind, a checksum, and a sample of its values.

    Attributes:
        shape: (H, W, C).
        dtype: Name of the type of its values.
        low: Value of black.
        high: Value of white.
        missing: Number of missing values.
        reach: Smallest and largest value, for floats and for integers of 32 bits or more.
        notes: What was chosen if the file left a choice.
        checksum: See :func:`checksum`.
        sample: Some of its values, if they were requested.
        exact_type: See :attr:`~deepclust_ext.data.pixels.Pixels.exact_type`.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    missing: int
    reach: tuple[float, float] | None
    notes: tuple[str, ...]
    checksum: int
    sample: NDArray[Any] | None
    exact_type: np.dtype[Any]


def look_at(pixels: Pixels, *, sampled: bool) -> Seen:
    """Return the facts about an image, with or without a sample of its values."""
    values = pixels.values
    wide = values.dtype.kind == "f" or values.dtype.itemsize >= 4
    there = values.reshape(-1) if pixels.missing is None else values[~pixels.missing]
    return Seen(
        shape=values.shape,
        dtype=values.dtype.name,
        low=pixels.low,
        high=pixels.high,
        missing=values.size - there.size,
        reach=(float(there.min()), float(there.max())) if wide and there.size else None,
        notes=pixels.notes,
        checksum=checksum(pixels),
        sample=np.array(there[:: max(1, len(there) // _SAMPLES)]) if sampled else None,
        exact_type=pixels.exact_type,
    )


def checksum(pixels: Pixels) -> int:
    """Return a checksum that distinguishes images."""
    kind = (pixels.values.shape, pixels.values.dtype.name, pixels.low, pixels.high)
    start = crc32(repr(kind).encode())
    if pixels.missing is not None and pixels.missing.any():
        start = crc32(np.packbits(pixels.missing).data, start)
    return crc32(np.ascontiguousarray(pixels.values).data, start)


def check_types(images: Sequence[Seen], names: Sequence[str], dtype: str, white: float, whose: str) -> None:
    """Require that all images have the stored type of a range; otherwise an ImageError names the image."""
    for name, image in zip(names, images, strict=True):
        if (image.dtype, image.high) != (dtype, white):
            raise ImageError(
                f"{name}: scale='percentile' expected {dtype} up to {white:g} as in {whose}, got {image.dtype} up to "
                f"{image.high:g}"
            )


def percentiles(images: Sequence[Seen], names: Sequence[str]) -> PixelRange:
    """Return the values at 0.1 and 99.9 percent of all images, whose samples are there.

    Raises:
        ImageError: If the images differ in type or white, or all values are missing.
    """
    dtype, white = images[0].dtype, images[0].high
    check_types(images, names, dtype, white, names[0])
    values = np.concatenate([image.sample for image in images if image.sample is not None])
    if not len(values):
        raise ImageError(f"{names[0]}: scale='percentile' expected values, got none that is not missing")
    low, high = (float(end) for end in np.percentile(values.astype(np.float64), PERCENTILES))
    return PixelRange(low, high if high > low else low + 1.0, dtype, white)
