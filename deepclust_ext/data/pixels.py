"""A decoded image: its stored values, the range that they may have, and which of them are missing."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What is white in the integers that images can be handed over in; of floats 1 is.
WHITE: dict[np.dtype[Any], int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
# What shows through transparent pixels, as a share of the range: white, as on a page.
BACKGROUND = 1.0
# Where a value is missing, as a share of the range.
MISSING = 0.0


class ImageError(ValueError):
    """A file from which no image can be read; the message says why."""


def reason_of(error: Exception) -> str:
    """Return the message of a decoder's error, or the error's name if it has no message."""
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Pixels:
    """A decoded image with its stored values.

    Attributes:
        values: (H, W, C) of any real dtype.
        low: The value that is black.
        high: The value that is white, or the largest of a band.
        missing: (H, W, C) bool, where the file has no value; None if no value is missing.
        notes: What was chosen if the file leaves a choice, for the user.
    """

    values: NDArray[Any]
    low: float
    high: float
    missing: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def scaled(self, low: float | None = None, high: float | None = None) -> NDArray[np.float32]:
        """Return (values - low) / (high - low) as (H, W, C) float32, not clipped, ``MISSING`` where there is no value.

        Args:
            low: What becomes 0; by default what is black by the stored type.
            high: What becomes 1; by default what is white by the stored type.
        """
        low, high = self.low if low is None else low, self.high if high is None else high
        # Integers of 32 bits have more digits than float32.
        wide: Any = np.float64 if self.values.dtype.itemsize >= 4 and self.values.dtype.kind in "iu" else np.float32
        scaled: NDArray[np.float32] = ((self.values.astype(wide) - wide(low)) / wide(high - low)).astype(np.float32)
        if self.missing is not None:
            scaled[self.missing] = MISSING
        return scaled

    @property
    def exact_type(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and float32 in which all values are exact once black and white are set."""
        integers = self.values.dtype.kind in "iu"
        for dtype, white in WHITE.items():
            if integers and white % (self.high - self.low) == 0:
                return dtype
        return np.dtype(np.float32)

    def as_type(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return ``scaled`` times the white of a type, ``exact_type`` or a larger one, in which values stay exact.

        Args:
            dtype: uint8, uint16 or float32.
        """
        if dtype not in WHITE:
            return self.scaled()
        low, factor = int(self.low), WHITE[dtype] // int(self.high - self.low)
        values = self.values
        if (low, factor) != (0, 1):
            values = (values.astype(np.int32) - low) * factor
        if self.missing is not None:
            values = np.where(self.missing, 0, values)
        return values.astype(dtype, copy=False)

    def with_high(self, high: float) -> "Pixels":
        """Return the same image with another largest value."""
        return replace(self, high=float(high))

    def with_notes(self, *notes: str) -> "Pixels":
        """Return the same image with more notes."""
        return replace(self, notes=self.notes + notes)


def by_type(values: NDArray[Any], bits: int | None = None, missing: NDArray[np.bool_] | None = None) -> Pixels:
    """Return an image whose range is that of its stored type.

    Args:
        values: (H, W) or (H, W, C).
        bits: Bits of a stored integer, if fewer than those of its dtype.
        missing: Where there is no value, in the same shape.

    Raises:
        ImageError: If the values are complex or no numbers.
    """
    if values.dtype.kind == "b":
        values, bits = values.astype(np.uint8), 1
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        low, high = 0.0, 1.0
        missing = _or(missing, ~np.isfinite(values))
    elif values.dtype.kind in "iu":
        bits = bits or np.iinfo(values.dtype).bits
        low = -(2.0 ** (bits - 1)) if values.dtype.kind == "i" else 0.0
        high = low + 2**bits - 1
    else:
        raise ImageError(f"expected real numbers as pixels, got {values.dtype}")
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 2:
        values, missing = values[:, :, None], None if missing is None else missing[:, :, None]
    return Pixels(values, low, high, missing if missing is not None and missing.any() else None)


def over_background(pixels: Pixels, channel: int, *, premultiplied: bool = False) -> Pixels:
    """Return an image without its alpha channel, laid over ``BACKGROUND``.

    Args:
        pixels: Image with alpha, which has the same range as the colors.
        channel: Index of alpha.
        premultiplied: Whether the colors are already multiplied by alpha.
    """
    colors = np.delete(pixels.scaled(), channel, axis=2).astype(np.float64)
    alpha = pixels.scaled()[:, :, channel : channel + 1].astype(np.float64)
    shown = colors * (1 if premultiplied else alpha) + BACKGROUND * (1 - alpha)
    return replace(_stored_like(pixels, shown), missing=_without(pixels.missing, channel))


def from_cmyk(pixels: Pixels) -> Pixels:
    """Return red, green and blue from four inks (H, W, 4), the largest value being most ink: (1 - ink) (1 - black)."""
    inks = pixels.scaled().astype(np.float64)
    return replace(_stored_like(pixels, (1 - inks[:, :, :3]) * (1 - inks[:, :, 3:])), missing=None)


def inverted(pixels: Pixels) -> Pixels:
    """Return an image whose largest value was black, with black the smallest."""
    low, high = (pixels.values.dtype.type(end) for end in (pixels.low, pixels.high))
    return replace(pixels, values=(high - pixels.values + low).astype(pixels.values.dtype))


def oriented(pixels: Pixels, orientation: object) -> Pixels:
    """Return an image turned as the tag Orientation (1 to 8, TIFF 6.0 section 8) says; other values change nothing."""

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        if orientation in (5, 6, 7, 8):  # rows and columns are exchanged
            array = array.swapaxes(0, 1)
        if orientation in (3, 4, 7, 8):  # the first row is the bottom
            array = array[::-1]
        if orientation in (2, 3, 6, 7):  # the first column is the right
            array = array[:, ::-1]
        return np.ascontiguousarray(array)

    if orientation not in range(2, 9):
        return pixels
    missing = None if pixels.missing is None else turn(pixels.missing).astype(np.bool_)
    return replace(pixels, values=turn(pixels.values), missing=missing)


def _stored_like(pixels: Pixels, scaled: NDArray[np.float64]) -> Pixels:
    """Return values given as shares of the range, in the type and range of an image."""
    values = scaled * (pixels.high - pixels.low) + pixels.low
    if pixels.values.dtype.kind in "iu":
        values = np.rint(values).clip(pixels.low, pixels.high)
    return replace(pixels, values=values.astype(pixels.values.dtype))


def _or(first: NDArray[np.bool_] | None, second: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return second if first is None else first | second


def _without(missing: NDArray[np.bool_] | None, channel: int) -> NDArray[np.bool_] | None:
    return None if missing is None else np.delete(missing, channel, axis=2)
