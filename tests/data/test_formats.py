"""The table of docs/formats.md: every kind of valid file, written here, and the values that it must give."""

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from deepclust_ext.data import ImageError, read_image
from deepclust_ext.data.decode import jpeg_bits

imagecodecs = pytest.importorskip("imagecodecs", reason="not for this Python")
Array = NDArray[Any]
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
BY_TYPE = (RAMP / np.float32(65535))[:, :, None]
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (96, 128, 3)).astype(np.uint8)


def tiff(path: Path, values: Array, **settings: Any) -> Array:
    """Write a TIFF and return what ours reads."""
    tifffile.imwrite(path, values, **settings)
    return read_image(path).scaled()


def picture(path: Path, image: Image.Image, **settings: Any) -> Array:
    """Write a file by Pillow and return what ours reads, with no warning on the way."""
    image.save(path, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image(path).scaled()


def written(path: Path, data: bytes) -> Array:
    path.write_bytes(data)
    return read_image(path).scaled()


def test_gray_of_16_bits_as_png(tmp_path: Path) -> None:
    scaled = picture(tmp_path / "ramp.png", Image.fromarray(RAMP))
    np.testing.assert_array_equal(scaled, BY_TYPE)
    assert scaled.dtype == np.float32
    assert scaled.mean() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
class TestByteOrders:
    def test_unsigned(self, tmp_path: Path, order: Any, compression: Any) -> None:
        scaled = tiff(tmp_path / "ramp.tif", RAMP, byteorder=order, compression=compression)
        np.testing.assert_array_equal(scaled, BY_TYPE)

    def test_signed(self, tmp_path: Path, order: Any, compression: Any) -> None:
        values = (RAMP.astype(np.int32) - 32768).astype(np.int16)
        tifffile.imwrite(tmp_path / "signed.tif", values, byteorder=order, compression=compression)
        pixels = read_image(tmp_path / "signed.tif")
        np.testing.assert_array_equal(pixels.values[:, :, 0], values)  # -1 stays below 0
        np.testing.assert_array_equal(pixels.scaled(), BY_TYPE)  # (v + 32768) / 65535

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_floats_to_the_bit(self, tmp_path: Path, order: Any, compression: Any, dtype: str) -> None:
        values = RNG.random((20, 30)).astype(dtype)
        scaled = tiff(tmp_path / "float.tif", values, byteorder=order, compression=compression)
        np.testing.assert_array_equal(scaled[:, :, 0], values.astype(np.float32))


def test_missing_values_are_filled_and_do_not_set_the_range(tmp_path: Path) -> None:
    values = RNG.random((20, 30)).astype(np.float32)
    values[3, 4], values[5, 6] = np.nan, -9999
    tifffile.imwrite(tmp_path / "dem.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    pixels = read_image(tmp_path / "dem.tif")
    assert pixels.missing is not None
    assert pixels.missing.sum() == 2
    expected = values.copy()
    expected[3, 4] = expected[5, 6] = 0
    np.testing.assert_array_equal(pixels.scaled()[:, :, 0], expected)
    assert pixels.scaled(0.5, 1.0)[3, 4] == 0


def test_nodata_that_other_readers_refuse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([[-3.4028234663852886e38, 0.5], [-0.5, 1]], np.float32)
    for number, expected in (("-3.4028234663852886e+38", [0, 0.5, -0.5, 1]), ("-0,5", [values[0, 0], 0.5, 0, 1])):
        tifffile.imwrite(tmp_path / "dem.tif", values, extratags=[(42113, "s", 0, number, True)])
        np.testing.assert_array_equal(read_image(tmp_path / "dem.tif").scaled().ravel(), np.array(expected, np.float32))
    assert not caplog.records


def test_nodata_of_integers(tmp_path: Path) -> None:
    values = np.array([[-32768, 0], [1, 32767]], np.int16)
    tifffile.imwrite(tmp_path / "dem.tif", values, extratags=[(42113, "s", 0, "-32768", True)])
    pixels = read_image(tmp_path / "dem.tif")
    assert pixels.missing is not None
    assert pixels.missing[:, :, 0].tolist() == [[True, False], [False, False]]
    # A number that the type cannot hold marks nothing.
    tifffile.imwrite(tmp_path / "byte.tif", values.astype(np.uint8), extratags=[(42113, "s", 0, "-9999", True)])
    assert read_image(tmp_path / "byte.tif").missing is None


@pytest.mark.parametrize(
    "settings", [{"planarconfig": "separate"}, {"planarconfig": "separate", "compression": "zlib"}]
)
def test_planes_equal_interleaved_channels(tmp_path: Path, settings: Any) -> None:
    values = RNG.integers(0, 65536, (3, 40, 50)).astype(np.uint16)
    scaled = tiff(tmp_path / "planar.tif", values, photometric="rgb", **settings)
    np.testing.assert_array_equal(scaled, np.moveaxis(values, 0, 2) / np.float32(65535))
    interleaved = tiff(tmp_path / "contig.tif", np.moveaxis(values, 0, 2), photometric="rgb")
    np.testing.assert_array_equal(scaled, interleaved)


def test_color_with_an_extra_band_keeps_it(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    scaled = tiff(tmp_path / "nir.tif", values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(scaled, values / np.float32(255))


@pytest.mark.parametrize(
    ("bands", "dtype"), [(2, "uint8"), (2, "uint16"), (8, "uint16"), (13, "uint16"), (5, "float32")]
)
def test_bands(tmp_path: Path, bands: int, dtype: str) -> None:
    values = RNG.integers(0, 200, (40, 50, bands)).astype(dtype)
    scaled = tiff(tmp_path / "bands.tif", values, planarconfig="contig", photometric="minisblack")
    np.testing.assert_array_equal(scaled, values / np.float32({"uint8": 255, "uint16": 65535, "float32": 1}[dtype]))


def test_bands_that_were_written_as_slivers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"sliver.tif: .*40 planes of 50 x 13: .*planarconfig='contig'"):
        tiff(tmp_path / "sliver.tif", np.zeros((40, 50, 13), np.uint16), photometric="minisblack")


@pytest.mark.parametrize(
    "settings",
    [{"imagej": True, "metadata": {"axes": "ZYX"}}, {"ome": True, "metadata": {"axes": "CYX"}}, {"metadata": None}],
)
def test_of_a_stack_the_first_plane(tmp_path: Path, settings: Any) -> None:
    values = RNG.integers(0, 256, (5, 40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", values, photometric="minisblack", **settings)
    pixels = read_image(tmp_path / "stack.tif")
    np.testing.assert_array_equal(pixels.values[:, :, 0], values[0])
    assert pixels.notes == ("a stack: the first plane is taken",)


class TestTwelveBits:
    VALUES = (RAMP[:16] % 4096).astype(np.uint16)
    EXPECTED = (VALUES / np.float32(4095))[:, :, None]

    def test_packed_tiff(self, tmp_path: Path) -> None:
        rows = [imagecodecs.packints_encode(row, 12) for row in self.VALUES.astype(np.uint16)]
        path = tmp_path / "packed.tif"
        path.write_bytes(packed_tiff(b"".join(rows), 16, 256, bits=12))
        np.testing.assert_array_equal(read_image(path).scaled(), self.EXPECTED)

    def test_jpeg_2000(self, tmp_path: Path) -> None:
        data = imagecodecs.jpeg2k_encode(self.VALUES, bitspersample=12, level=0)
        np.testing.assert_array_equal(written(tmp_path / "a.jp2", data), self.EXPECTED)
        colors = np.stack([self.VALUES, self.VALUES[::-1], self.VALUES], axis=2)
        data = imagecodecs.jpeg2k_encode(colors, bitspersample=12, level=0)
        np.testing.assert_array_equal(written(tmp_path / "b.jp2", data), colors / np.float32(4095))

    @pytest.mark.parametrize("header", [b"P5 256 16 4095\n", b"P5\n# a comment 1 2\n256 16\n4095\n"])
    def test_pgm(self, tmp_path: Path, header: bytes) -> None:
        np.testing.assert_array_equal(
            written(tmp_path / "a.pgm", header + self.VALUES.astype(">u2").tobytes()), self.EXPECTED
        )

    def test_jpeg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        smooth = np.repeat(np.linspace(0, 4095, 64).round().astype(np.uint16)[None], 48, axis=0)
        data = imagecodecs.jpeg_encode(smooth, level=100, bitspersample=12)
        assert jpeg_bits(data) == 12
        scaled = written(tmp_path / "a.jpg", data)
        assert np.abs(scaled[:, :, 0] - smooth / 4095).max() < 0.005
        monkeypatch.setattr("deepclust_ext.data.decode.find_spec", lambda name: None)
        with pytest.raises(ImageError, match=r"a\.jpg: a JPEG of 12 bits needs imagecodecs: pip install .*\[codecs\]"):
            read_image(tmp_path / "a.jpg")

    def test_in_16_bits_cannot_be_told(self, tmp_path: Path) -> None:
        np.testing.assert_array_equal(
            tiff(tmp_path / "a.tif", self.VALUES), (self.VALUES / np.float32(65535))[:, :, None]
        )


def packed_tiff(data: bytes, height: int, width: int, bits: int) -> bytes:
    """Return a gray TIFF of one strip with samples of any number of bits, each row ending at a byte."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    end = 8 + len(data)
    return struct.pack("<2sHI", b"II", 42, end) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("values", [RAMP, (RAMP >> 8).astype(np.uint8)])
def test_polarity(tmp_path: Path, values: Array) -> None:
    largest = np.iinfo(values.dtype).max
    scaled = tiff(tmp_path / "white.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(scaled[:, :, 0], (largest - values) / np.float32(largest))  # 0 is white


def test_one_bit(tmp_path: Path) -> None:
    values = RNG.random((10, 13)) > 0.5
    expected = values.astype(np.float32)[:, :, None]
    np.testing.assert_array_equal(picture(tmp_path / "a.png", Image.fromarray(values)), expected)
    np.testing.assert_array_equal(tiff(tmp_path / "a.tif", values, photometric="minisblack"), expected)
    np.testing.assert_array_equal(tiff(tmp_path / "b.tif", values, photometric="miniswhite"), 1 - expected)


def test_palettes_in_any_order(tmp_path: Path) -> None:
    colors = np.array([[255, 0, 0], [0, 128, 0], [0, 0, 64], [9, 9, 9]], np.uint8)
    indices = RNG.integers(0, 3, (10, 12)).astype(np.uint8)
    scaled = []
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        image = Image.fromarray(np.argsort(order)[indices].astype(np.uint8), mode="P")
        image.putpalette(colors[order].tobytes())
        # The entry that is transparent is no color of the picture.
        scaled.append(picture(tmp_path / "palette.png", image, transparency=bytes([255, 255, 255, 0])))
    np.testing.assert_array_equal(scaled[0], colors[indices] / np.float32(255))
    np.testing.assert_array_equal(scaled[0], scaled[1])


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_what_alpha_hides_never_shows(tmp_path: Path, name: str) -> None:
    values = RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8)
    values[:, :, 3] = 0
    values[8:, :, 3] = 255
    settings: Any = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    scaled = picture(tmp_path / name, Image.fromarray(values), **settings)
    np.testing.assert_array_equal(scaled[:8], 1.0)  # white, the stated background
    np.testing.assert_array_equal(scaled[8:], values[8:, :, :3] / np.float32(255))


def test_alpha_of_16_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (16, 16, 4)).astype(np.uint16)
    values[:8, :, 3], values[8:, :, 3] = 0, 65535
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        if path.suffix == ".png":
            path.write_bytes(imagecodecs.png_encode(values))
        else:
            tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
        scaled = read_image(path).scaled()
        np.testing.assert_array_equal(scaled[:8], 1.0)
        np.testing.assert_array_equal(scaled[8:], values[8:, :, :3] / np.float32(65535))


def test_color_of_16_bits_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    np.testing.assert_array_equal(
        written(tmp_path / "a.png", imagecodecs.png_encode(values)), values / np.float32(65535)
    )
    monkeypatch.setattr("deepclust_ext.data.decode.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"a\.png: a PNG of 16 bits and colors or alpha needs imagecodecs"):
        read_image(tmp_path / "a.png")


def test_gray_level_that_stands_for_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1000], [40000, 65535]], np.uint16))
    scaled = picture(tmp_path / "a.png", image, transparency=1000)
    np.testing.assert_array_equal(scaled[:, :, 0], np.array([[0, 65535], [40000, 65535]], np.float32) / 65535)


@pytest.mark.parametrize("marker", [True, False])
def test_inks(tmp_path: Path, marker: bool) -> None:
    image = Image.new("CMYK", (16, 16), (35, 215, 225, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100)
    data = buffer.getvalue()
    if not marker:
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    scaled = written(tmp_path / "inks.jpg", data)
    assert np.abs(scaled * 255 - [220, 40, 30]).max() <= 2


def test_inks_in_tiff(tmp_path: Path) -> None:
    values = np.broadcast_to(np.array([35, 215, 225, 0], np.uint8), (16, 16, 4))
    scaled = tiff(tmp_path / "inks.tif", values, photometric="separated")
    assert np.abs(scaled * 255 - [220, 40, 30]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.webp"])
def test_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    # Pillow's own turning is the oracle, on the same picture in memory.
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    image = Image.fromarray(PICTURE)
    upright = image if turned is None else image.transpose(Image.Transpose(turned))
    if name == "a.tif":
        scaled = tiff(tmp_path / name, PICTURE, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        settings: Any = {"lossless": True} if name == "a.webp" else {}
        scaled = picture(tmp_path / name, image, exif=exif, **settings)
    assert scaled.shape[:2] == upright.size[::-1]
    if name == "a.jpg":  # noise that a JPEG does not keep: the picture must be nearer than any other turn
        assert np.corrcoef(scaled.ravel(), np.asarray(upright).ravel())[0, 1] > 0.5
    else:
        np.testing.assert_array_equal(scaled, np.asarray(upright) / np.float32(255))


@pytest.mark.parametrize("factor", [257, 1])
def test_palettes_of_tiff(tmp_path: Path, factor: int) -> None:
    indices = RNG.integers(0, 256, (10, 12)).astype(np.uint8)
    colormap = np.stack([np.arange(256)] * 3).astype(np.uint16) * np.uint16(factor)
    scaled = tiff(tmp_path / "palette.tif", indices, photometric="palette", colormap=colormap)
    np.testing.assert_array_equal(scaled, np.repeat(indices[:, :, None], 3, axis=2) / np.float32(255))


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 16), color) for color in ((250, 10, 10), (10, 250, 10))]
    for name in ("a.gif", "a.png", "a.webp"):
        settings: Any = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **settings)
        pixels = read_image(tmp_path / name)
        assert np.abs(pixels.scaled() * 255 - [250, 10, 10]).max() <= 1
        assert pixels.notes == ("animated: the first frame is taken",)


def test_first_frame_that_covers_a_part(tmp_path: Path) -> None:
    frame = np.zeros((4, 4), np.uint8)
    frame[1:] = 1
    image = Image.fromarray(frame, mode="P")
    image.putpalette([0, 0, 255, 255, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "GIF", optimize=False, background=0)
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", 10, 8)  # the canvas
    place = data.index(b"\x2c\0\0\0\0\x04\0\x04\0")
    data[place + 1 : place + 5] = struct.pack("<HH", 5, 2)  # the frame's left and top
    expected = np.broadcast_to(np.array([0, 0, 1], np.float32), (8, 10, 3)).copy()  # the file's background
    expected[3:6, 5:9] = [1, 0, 0]
    np.testing.assert_array_equal(written(tmp_path / "part.gif", bytes(data)), expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"no image at all", "no image of a kind that Pillow reads"),
        (b"II*\0" + bytes(20), "no TIFF that can be read|list index"),
        (b"\x89PNG\r\n\x1a\n", "no image"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"{tmp_path.name}/a\.png: .*({reason})"):
        written(tmp_path / "a.png", data)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.jp2"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.tif":
        tifffile.imwrite(path, PICTURE, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(PICTURE).save(path)
    data = path.read_bytes()
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ImageError, match=rf"{path.name}: "):
            read_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")


def test_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a.png", "a.tif"):
        if name == "a.tif":
            tifffile.imwrite(tmp_path / name, PICTURE, photometric="rgb")
        else:
            Image.fromarray(PICTURE).save(tmp_path / name)
        with pytest.raises(ImageError, match=f"{name}: .*200 pixels"):
            read_image(tmp_path / name)
