"""Reads the pixels of an image file of any usual kind; docs/formats.md lists the values."""

import io
import re
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deepclust_ext.data import tiff
from deepclust_ext.data.pixels import ImageError, Pixels, by_type, oriented, over_background, reason_of

CODECS = "pip install 'deepclust_ext[codecs]'"
_ORIENTATION = 274  # Exif's tag
# Kind, width, height and largest value of the header of a PGM or PPM file, with spaces or comments between.
_PNM = re.compile(rb"(P[2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")


def read_image(path: Path) -> Pixels:
    """Return the image in a file: its stored values, never cut to 8 bits, turned upright, without transparency.

    Colors of palettes, inks (CMYK) and YCbCr become red, green and blue. The first image of an animation or stack is
    taken. Bands beyond color are kept. If the file leaves a choice, the result's ``notes`` say what was chosen.

    Args:
        path: A file that Pillow or tifffile reads: JPEG, PNG, WebP, GIF, BMP, PNM, JPEG 2000, TIFF and others.

    Raises:
        ImageError: If the file is missing, truncated, too large (``PIL.Image.MAX_IMAGE_PIXELS``) or no image.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait forever
            raise ImageError("expected a file, got a folder or a device")
        return read_tiff_or_other(path.read_bytes())
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{path}: {reason}") from error


def read_tiff_or_other(data: bytes) -> Pixels:
    """Return the image in the bytes of a file; see :func:`read_image`."""
    if not data:
        raise ImageError("expected an image, got an empty file")
    if data.startswith(tiff.SIGNATURES):
        return tiff.read_tiff(data)
    try:
        if data.startswith(b"\xff\xd8") and jpeg_bits(data) == 12:
            return _twelve_bit_jpeg(data)
        with Image.open(io.BytesIO(data)) as image:
            notes = ("animated: the first frame is taken",) if getattr(image, "is_animated", False) else ()
            orientation = image.getexif().get(_ORIENTATION)
            return oriented(_read_deep(image, data) or _read_with_pillow(image), orientation).with_notes(*notes)
    except UnidentifiedImageError as error:
        raise ImageError("no image of a kind that Pillow reads") from error
    except (ImageError, OSError):
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ImageError(f"no image that can be read: {reason_of(error)}") from error


def jpeg_bits(data: bytes) -> int | None:
    """Return the bits of a sample by the frame header of a JPEG file, None without one."""
    for marker, segment in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and segment:
            return segment[0]
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the segments before the first scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA or length < 2:
            return
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


def _twelve_bit_jpeg(data: bytes) -> Pixels:
    pixels = by_type(_with_codec("jpeg", data, "a JPEG of 12 bits"), 12)
    exif = Image.Exif()
    for marker, segment in _jpeg_segments(data):
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif.load(segment)
    return oriented(pixels, exif.get(_ORIENTATION))


def _read_deep(image: Image.Image, data: bytes) -> Pixels | None:
    """Return an image of more than 8 bits of which Pillow would keep 8 or change the scale; None for all others."""
    if image.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
        return _without_alpha(by_type(_with_codec("png", data, "a PNG of 16 bits and colors or alpha")))
    if image.format == "AVIF":
        flags = data[data.index(b"av1C") + 6]  # of the box of that name, where depths are
        if flags & 64:
            bits = 12 if flags & 32 else 10
            return _without_alpha(by_type(_with_codec("avif", data, f"an AVIF of {bits} bits"), bits))
    if image.format == "JPEG2000":
        start = data.index(b"\xff\x4f\xff\x51")  # the codestream's first two markers
        bits, signed = (data[start + 42] & 127) + 1, bool(data[start + 42] & 128)
        if bits > 8 and image.mode.startswith("I;16"):
            # Pillow moves the highest bit to the 16th, and the range of signed values to 0 to 65535.
            values = np.asarray(image) >> (16 - bits)
            return by_type(values, bits)
        if bits > 8 or signed:
            pixels = by_type(_with_codec("jpeg2k", data, f"a JPEG 2000 of {bits} bits and colors"), bits)
            return _without_alpha(pixels) if image.mode in ("LA", "RGBA") else pixels
    return _read_pnm(data) if image.format == "PPM" else None


def _without_alpha(pixels: Pixels) -> Pixels:
    """Return decoded gray or color without its alpha; a color that marks transparent pixels counts as alpha."""
    alpha = {2: 1, 4: 3}.get(pixels.values.shape[2])
    return pixels if alpha is None else over_background(pixels, alpha)


def _read_pnm(data: bytes) -> Pixels | None:
    """Return the first image of a PGM or PPM file with values up to any number; None for other kinds of PNM."""
    header = _PNM.match(data)
    if header is None:
        return None
    kind, (width, height, largest) = header[1], map(int, header.groups()[1:])
    shape = (height, width, 3 if kind in (b"P3", b"P6") else 1)
    dtype, count, start = np.dtype(np.uint8 if largest < 256 else ">u2"), prod(shape), header.end()
    if kind in (b"P5", b"P6"):
        values = np.frombuffer(data, dtype, min(count, (len(data) - start) // dtype.itemsize), start)
    else:
        values = np.array(re.sub(rb"#[^\n]*", b"", data[start:]).split()[:count], np.int64)
    if values.size < count:
        raise ImageError(f"expected {count} values, got {values.size}: the file is truncated")
    if not 0 <= values.min() <= values.max() <= largest:
        raise ImageError(f"expected values of 0 to {largest}, as the file says, got {values.min()} to {values.max()}")
    return by_type(values.astype(dtype.newbyteorder("=")).reshape(shape)).with_high(largest)


def _read_with_pillow(image: Image.Image) -> Pixels:
    mode, transparent = image.mode, image.info.get("transparency")
    if mode.startswith("I;16"):
        pixels = by_type(np.asarray(image).astype(np.uint16))
        if isinstance(transparent, int):  # one gray level that stands for nothing
            alpha = np.where(pixels.values == transparent, 0, 65535).astype(np.uint16)
            return over_background(by_type(np.concatenate([pixels.values, alpha], axis=2)), 1)
        return pixels
    if mode in ("1", "F") and transparent is None:
        return by_type(np.asarray(image))
    if mode in ("I", "F"):
        raise ImageError(f"expected pixels of 8 or 16 bits in {image.format}, got mode {mode}")
    gray = mode in ("1", "L", "LA", "La")
    if transparent is not None or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return over_background(by_type(np.asarray(image.convert("LA" if gray else "RGBA"))), 1 if gray else 3)
    return by_type(np.asarray(image if gray or mode == "RGB" else image.convert("RGB")))


def _with_codec(name: str, data: bytes, what: str) -> NDArray[Any]:
    if find_spec("imagecodecs") is None:
        raise ImageError(f"{what} needs imagecodecs: {CODECS}")
    import imagecodecs

    try:
        values: NDArray[Any] = getattr(imagecodecs, f"{name}_decode")(data)
    except Exception as error:  # every codec has an error class of its own
        raise ImageError(f"{what} that cannot be read: {reason_of(error)}") from error
    return values
