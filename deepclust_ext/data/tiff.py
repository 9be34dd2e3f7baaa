"""TIFF files, which other readers get wrong in silence: byte orders, bands, polarity, depth, missing values."""

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepclust_ext.data.pixels import (
    ImageError,
    Pixels,
    by_type,
    from_cmyk,
    inverted,
    oriented,
    over_background,
    reason_of,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Tags and values of TIFF 6.0, and GDAL's.
_ORIENTATION, _NODATA = 274, 42113
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_JPEG = (6, 7, 34892)
_MAX_BANDS = 32  # a stack of planes no wider than this is taken for bands that were written as planes

# It warns, for each file anew, of values of GDAL_NODATA that it does not take; here they are read without it.
logging.getLogger("tifffile").addFilter(lambda record: "GDAL_NODATA" not in record.getMessage())


def read_tiff(data: bytes) -> Pixels:
    """Return the first full image of a TIFF file; of a stack or of OME's channels, the first plane.

    Args:
        data: The whole file.

    Raises:
        ImageError: If it holds no image, or none that can be read without doubt.
    """
    from tifffile import TiffFile

    try:
        with TiffFile(io.BytesIO(data)) as tiff:
            pages: list[Any] = list(tiff.pages)
            page = next((page for page in pages if not page.is_reduced), pages[0])
            _check_layout(tiff, page)
            pixels = _read_page(page)
            planes = tiff.series[0].size // max(1, page.size) if tiff.series else 1
    except ImageError:
        raise
    except Exception as error:  # damaged tags and codecs raise nearly anything
        advice = "; pip install 'deepclust_ext[codecs]'" if "imagecodecs" in str(error) else ""
        raise ImageError(f"no TIFF that can be read: {reason_of(error)}{advice}") from error
    return pixels.with_notes("a stack: the first plane is taken") if planes > 1 else pixels


def _check_layout(tiff: Any, page: Any) -> None:
    if page.size == 0 or page.axes not in ("YX", "YXS", "SYX"):
        raise ImageError(f"expected a plane of one or more bands, got axes {page.axes!r} of shape {page.shape}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and page.imagelength * page.imagewidth > 2 * limit:
        raise ImageError(f"expected at most {2 * limit} pixels (PIL.Image.MAX_IMAGE_PIXELS), got {page.shape}")
    shape: tuple[int, ...] = tiff.series[0].shape if tiff.is_shaped and tiff.series else ()
    if page.axes == "YX" and len(shape) == 3 and shape[2] <= _MAX_BANDS and shape[2] < min(shape[:2]):
        raise ImageError(
            f"an array of shape {shape} stored as {shape[0]} planes of {shape[1]} x {shape[2]}: write "
            f"it with planarconfig='contig' if it is one image of {shape[2]} bands"
        )


def _read_page(page: Any) -> Pixels:
    values: NDArray[Any] = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, 2)
    nodata = page.tags.get(_NODATA)
    missing = None if nodata is None else _equal(values, str(nodata.value))
    bits = page.bitspersample if isinstance(page.bitspersample, int) else None
    pixels = by_type(values, bits, missing)
    colors = 1 if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE) else 3
    # Transparency first: what lies behind is no color of the file.
    if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        for place, kind in enumerate(page.extrasamples):
            if kind in (_ASSOCIATED_ALPHA, _ALPHA):
                pixels = over_background(pixels, colors + place, premultiplied=kind == _ASSOCIATED_ALPHA)
                break
    if page.photometric == _WHITE_IS_ZERO:
        pixels = inverted(pixels)
    elif page.photometric == _PALETTE:
        pixels = by_type(_looked_up(pixels.values[:, :, 0], page.colormap))
    elif page.photometric == _CMYK and pixels.values.shape[2] == 4:
        pixels = from_cmyk(pixels)
    elif page.photometric == _YCBCR and page.compression not in _JPEG:
        if pixels.values.dtype != np.uint8 or pixels.values.shape[2] != 3:
            raise ImageError(f"expected YCbCr of three uint8 channels, got {pixels.values.dtype} {page.shape}")
        image = Image.frombytes("YCbCr", page.shape[1::-1], np.ascontiguousarray(pixels.values).tobytes())
        pixels = by_type(np.asarray(image.convert("RGB")))
    elif page.photometric not in (_BLACK_IS_ZERO, _RGB, _YCBCR):
        raise ImageError(f"expected gray, RGB, palette, CMYK or YCbCr, got photometric {page.photometric}")
    orientation = page.tags.get(_ORIENTATION)
    return oriented(pixels, orientation and orientation.value)


def _equal(values: NDArray[Any], nodata: str) -> NDArray[np.bool_] | None:
    """Return where the values are the one that GDAL's tag names; None if the type cannot hold that one."""
    try:
        number = float(nodata.strip("\0 ").replace(",", "."))
    except ValueError as error:
        raise ImageError(f"expected a number in the tag GDAL_NODATA, got {nodata!r}") from error
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values == values.dtype.type(number))
    if values.dtype.kind not in "iu" or not number.is_integer():
        return None
    info = np.iinfo(values.dtype)
    return np.asarray(values == int(number)) if info.min <= number <= info.max else None


def _looked_up(indices: NDArray[Any], colormap: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    if colormap is None:
        raise ImageError("expected a color map for palette pixels, got none")
    # The map's numbers have 16 bits; files whose numbers end at 255 hold 8 bits.
    eight = colormap if int(colormap.max()) <= 255 else colormap >> 8
    return np.ascontiguousarray(eight.T[indices.astype(np.int64)].astype(np.uint8))
