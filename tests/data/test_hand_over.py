"""What images are handed over as: whole numbers where these are exact, floats elsewhere, one type for a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepclust_ext.data import PerImage, RandomAffine, load_images, make_view, read_image
from deepclust_ext.inference import IndexedImages

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
WORDS = RNG.integers(0, 65536, (3, 20, 30, 3)).astype(np.uint16)
FLOATS = RNG.random((3, 20, 30)).astype(np.float32)
WHITE = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
NODATA = [(42113, "s", 0, "7", True)]

Writer = Callable[[Path], object]


def png(values: NDArray[Any]) -> Writer:
    return lambda path: Image.fromarray(values).save(path.with_suffix(".png"))


def tiff(values: NDArray[Any], **settings: Any) -> Writer:
    return lambda path: tifffile.imwrite(path.with_suffix(".tif"), values, **settings)


def pgm(values: NDArray[Any], white: int) -> Writer:
    data = values.astype(">u2" if white > 255 else np.uint8).tobytes()
    return lambda path: path.with_suffix(".pgm").write_bytes(f"P5 30 20 {white}\n".encode() + data)


with_missing = WORDS[0, :, :, 0].copy()
with_missing[3:5] = 7
alpha = np.dstack([BYTES[0], BYTES[1, :, :, 0]])

#: What is in a folder, and what its images are handed over as.
KINDS: dict[str, tuple[list[Writer], torch.dtype]] = {
    "8 bits": ([png(values) for values in BYTES], torch.uint8),
    "8 bits with alpha": ([png(BYTES[0]), png(alpha)], torch.uint8),
    "16 bits": ([tiff(values, photometric="rgb") for values in WORDS], torch.uint16),
    "8 and 16 bits": ([png(BYTES[0]), tiff(WORDS[1], photometric="rgb")], torch.uint16),
    "gray among color": ([png(BYTES[0]), png(BYTES[1, :, :, 0])], torch.uint8),
    "1 bit": ([png(values > 0.5) for values in FLOATS], torch.uint8),
    "4 bits": ([pgm(BYTES[0, :, :, 0] // 16, 15)], torch.uint8),
    "12 bits": ([pgm(WORDS[0, :, :, 0] // 16, 4095)], torch.float32),
    "8 and 12 bits": ([png(BYTES[0, :, :, 0]), pgm(WORDS[0, :, :, 0] // 16, 4095)], torch.float32),
    "signed 8 bits": ([tiff(BYTES[0, :, :, 0].astype(np.int8))], torch.uint8),
    "signed 16 bits": ([tiff(values.astype(np.int16)[:, :, 0]) for values in WORDS], torch.uint16),
    "32 bits": ([tiff(WORDS[0, :, :, 0].astype(np.uint32) << 16)], torch.float32),
    "floats": ([tiff(values) for values in FLOATS], torch.float32),
    "8 bits and floats": ([png(BYTES[0, :, :, 0]), tiff(FLOATS[0])], torch.float32),
    "missing values": ([tiff(with_missing, extratags=NODATA)], torch.uint16),
    "missing floats": ([tiff(np.where(FLOATS[0] < 0.1, np.nan, FLOATS[0]))], torch.float32),
}


def between_0_and_1(image: Tensor) -> Tensor:
    return image.float() / WHITE[image.dtype]


def written(folder: Path, kind: str) -> torch.dtype:
    writers, dtype = KINDS[kind]
    for place, write in enumerate(writers):
        write(folder / str(place))
    return dtype


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_its_files_hold(tmp_path: Path, kind: str, cache: str) -> None:
    dtype = written(tmp_path, kind)
    images = load_images(tmp_path, cache=cache, cache_folder=tmp_path / "cache")
    assert images.dtype == dtype
    source = IndexedImages(images)
    batch, _ = source.collate(source.__getitems__([*range(len(images)), 0]))
    assert isinstance(batch, Tensor)
    for place, name in enumerate(images.names):
        expected = torch.from_numpy(read_image(tmp_path / name).scaled()).permute(2, 0, 1)
        torch.testing.assert_close(
            between_0_and_1(images[place]), expected.expand(images.channels, -1, -1), rtol=0, atol=1e-7
        )
        assert images[place].dtype == dtype
        assert torch.equal(batch[place], images[place])
    assert torch.equal(batch[-1], images[0])
    images[0].zero_()
    assert images[0].any()  # a copy


@pytest.mark.parametrize("values", [BYTES, WORDS.astype(np.int16), FLOATS, FLOATS > 0.5, WORDS.astype(np.uint32)])
def test_arrays_too(values: NDArray[Any]) -> None:
    kept, mapped = load_images(values, cache="ram"), load_images(values)
    for images in (kept, mapped):
        assert images.dtype == {"i": torch.uint16, "b": torch.uint8}.get(values.dtype.kind, images.dtype)
        assert torch.equal(torch.stack(list(images)), torch.as_tensor(images.images_at([0, 1, 2])))
    assert torch.equal(torch.stack(list(kept)), torch.stack(list(mapped)))


VIEWS = {
    "weak": make_view("contrastive", size=16, blur_p=0.5),
    "strong": make_view("strong", size=16, mean=None, std=None),
    "resize": make_view("resize", size=16),
    "affine": RandomAffine(),
    "per image": PerImage(lambda image: image.flip(2) - 0.5),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_views_give_what_they_gave_of_floats(tmp_path: Path, kind: str, view: str) -> None:
    written(tmp_path, kind)
    images = torch.stack(list(load_images(tmp_path)))
    torch.manual_seed(3)
    found = VIEWS[view](images)
    torch.manual_seed(3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, VIEWS[view](between_0_and_1(images)), rtol=0, atol=1e-6)


def test_percentiles_make_floats_of_all(tmp_path: Path) -> None:
    values = [image[:, :, 0] for image in WORDS]
    for place, image in enumerate(values):
        tiff(image)(tmp_path / str(place))
    for settings in ({}, {"cache": "ram"}, {"size": 8}):
        images = load_images(tmp_path, scale="percentile", **settings)
        assert images.dtype == torch.float32
        assert images.range is not None
        low, high = images.range.low, images.range.high
        if not settings.get("size"):
            np.testing.assert_allclose(images[1][0], (values[1] - low) / (high - low), atol=1e-6)


def test_bits_become_grays_where_they_are_resized(tmp_path: Path) -> None:
    png(np.tile([[True, False], [False, True]], (8, 8)))(tmp_path / "a")
    assert load_images(tmp_path, size=4)[0].float().std() < 10
    assert load_images(tmp_path, size=4)[0].float().mean() == pytest.approx(127.5, abs=1)


def test_no_test_view_is_refused_for_whole_numbers(tmp_path: Path) -> None:
    from deepclust_ext.inference import embed
    from tests.methods.methodsamples import METHODS

    values = RNG.integers(0, 256, (12, 8, 8)).astype(np.uint8)
    method = METHODS["sacc"].method()
    with pytest.raises(TypeError, match="images: expected a floating dtype, got torch.uint8; a view that makes one"):
        embed(method, load_images(values))
    rows = embed(method, load_images(values), test_view=make_view("resize", size=8))
    torch.testing.assert_close(rows, method.embed(torch.from_numpy(values)[:, None] / 255))
