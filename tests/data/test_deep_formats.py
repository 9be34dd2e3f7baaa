"""Files of more than 8 bits, or of another largest value, that Pillow would cut to 8 or round."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deepclust_ext.data import ImageError, read_image

RNG = np.random.default_rng(0)


def written(path: Path, data: bytes) -> NDArray[Any]:
    path.write_bytes(data)
    return read_image(path).scaled()


@pytest.mark.parametrize("largest", [1, 100, 255, 256, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_pnm_up_to_any_number(tmp_path: Path, kind: str, largest: int) -> None:
    channels = 3 if kind in ("P3", "P6") else 1
    values = RNG.integers(0, largest + 1, (5, 7, channels))
    values.flat[0] = largest
    data = f"{kind}\n# 1 2 3\n7 5 # wide and high\n{largest}\n".encode()
    if kind in ("P5", "P6"):
        data += values.astype(">u2" if largest > 255 else "u1").tobytes()
    else:
        data += b"# values\n" + b"\n".join(str(value).encode() for value in values.ravel().tolist())
    np.testing.assert_array_equal(written(tmp_path / "a.ppm", data), values.astype(np.float32) / np.float32(largest))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"P5 2 2 100\n" + bytes([0, 101, 1, 2]), "expected values of 0 to 100, as the file says, got 0 to 101"),
        (b"P6 2 2 4095\n" + bytes(23), "expected 12 values, got 11: the file is truncated"),
        (b"P2 2 2 100\n1 2 3\n", "expected 4 values, got 3: the file is truncated"),
        (b"P2 2 2 100\n1 2 3 -4\n", "expected values of 0 to 100, as the file says, got -4 to 3"),
        (b"P2 2 2 100\n1 2 3 x\n", "no image that can be read"),
    ],
)
def test_pnm_that_is_damaged(tmp_path: Path, data: bytes, fault: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.ppm: {fault}"):
        written(tmp_path / "a.ppm", data)


def test_a_color_of_16_bits_that_stands_for_nothing(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="not for this Python")
    values = RNG.integers(0, 65536, (4, 6, 3)).astype(np.uint16)
    data = imagecodecs.png_encode(values)
    color = values[1, 2].astype(">u2").tobytes()
    place = data.index(b"IDAT") - 4
    chunk = b"tRNS" + color
    data = (
        data[:place]
        + len(color).to_bytes(4, "big")
        + chunk
        + imagecodecs.zlib_crc32(chunk).to_bytes(4, "big")
        + data[place:]
    )
    expected = values / np.float32(65535)
    expected[1, 2] = 1
    np.testing.assert_array_equal(written(tmp_path / "a.png", data), expected)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, channels: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="not for this Python")
    values = RNG.integers(0, 2**bits, (16, 24, channels)).astype(np.uint16)
    if channels == 4:
        values[:8, :, 3], values[8:, :, 3] = 0, 2**bits - 1
    data = imagecodecs.avif_encode(values.squeeze(2) if channels == 1 else values, level=100, bitspersample=bits)
    scaled, expected = written(tmp_path / "a.avif", data), values[:, :, :3] / np.float32(2**bits - 1)
    if channels == 4:
        expected[:8] = 1
    np.testing.assert_array_equal(scaled, expected)
    monkeypatch.setattr("deepclust_ext.data.decode.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=rf"a\.avif: an AVIF of {bits} bits needs imagecodecs: pip install"):
        read_image(tmp_path / "a.avif")


def damaged_tiff(path: Path) -> bytes:
    """Return a TIFF whose width is two numbers."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
    data = path.read_bytes()
    place = data.index(struct.pack("<HHI", 256, 4, 1))
    return data[: place + 4] + struct.pack("<I", 2) + data[place + 8 :]


def damaged_avif(path: Path) -> bytes:
    """Return an AVIF whose pixels are no code."""
    pytest.importorskip("PIL", "11.3", reason="this Pillow reads no AVIF")
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)
    data = path.read_bytes()
    place = data.index(b"mdat") + 4
    return data[:place] + bytes(len(data) - place)


@pytest.mark.parametrize(("name", "damaged"), [("a.tif", damaged_tiff), ("a.avif", damaged_avif)])
def test_damage_that_readers_do_not_foresee(tmp_path: Path, name: str, damaged: Callable[[Path], bytes]) -> None:
    with pytest.raises(ImageError, match=rf"{name}: no (TIFF|image) that can be read: ."):
        written(tmp_path / name, damaged(tmp_path / name))


def test_an_orientation_that_is_no_number_turns_nothing(tmp_path: Path) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    tags = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 274, 2, 4, b"top\0", 0)  # a text of four letters
    segment = b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif()[274] == "top"
    assert read_image(tmp_path / "a.jpg").values.shape == (6, 8, 1)


def test_jpeg_2000_with_alpha(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="not for this Python")
    values = RNG.integers(0, 65536, (8, 10, 4)).astype(np.uint16)
    values[:4, :, 3], values[4:, :, 3] = 0, 65535
    expected = values[:, :, :3] / np.float32(65535)
    expected[:4] = 1
    data = imagecodecs.jpeg2k_encode(values, level=0, colorspace="SRGB")
    np.testing.assert_array_equal(written(tmp_path / "a.jp2", data), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_2000_of_signed_12_bits(tmp_path: Path, channels: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="not for this Python")
    values = RNG.integers(-2048, 2048, (8, 10, channels)).astype(np.int16)
    data = imagecodecs.jpeg2k_encode(values.squeeze(2) if channels == 1 else values, bitspersample=12, level=0)
    np.testing.assert_allclose(written(tmp_path / "a.jp2", data), (values + 2048) / 4095, atol=1e-7)
