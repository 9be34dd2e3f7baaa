"""What the page of a run draws: pictures of images of any kind, the map, and colors."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import features

from deepclust_ext.evaluation import embedding_map as maps
from deepclust_ext.evaluation.colors import palette
from deepclust_ext.evaluation.embedding_map import embedding_map
from tests.evaluation.pages import Named, blobs, decoded, gray, make


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float16, torch.bool])
def test_images_of_any_bands_and_type(channels: int, dtype: torch.dtype) -> None:
    white = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    half = torch.zeros(channels, 8, 8)
    half[:, :, 4:] = 1
    half[1:2] = 1 - half[1:2]  # the second band is the other way round
    images = [(half * white).to(dtype), (torch.ones(channels, 8, 8) * white).to(dtype)]
    data = make(Named(images), *blobs(2))
    picture = decoded(data["pictures"][data["names"].index("folder/0.png")])
    left, right = picture.convert("RGB").getpixel((0, 0)), picture.convert("RGB").getpixel((7, 7))
    colors = {1: ((0, 0, 0), (255, 255, 255)), 2: ((0, 255, 0), (255, 0, 255))}
    assert (left, right) == colors.get(channels, ((0, 255, 0), (255, 0, 255)))
    three = f"Pictures show bands 1, 2 and 3 of {channels} as red, green and blue."
    notes = {2: ["Pictures show band 1 in magenta and band 2 in green."], 4: [three], 13: [three]}
    assert data["notes"][1:] == notes.get(channels, [])


@pytest.mark.parametrize(
    ("low", "high", "dtype", "drawn"),
    [
        (0, 255, torch.uint8, False),
        (10, 40, torch.uint8, True),  # dark
        (100, 4095, torch.uint16, True),  # twelve bits
        (0, 65535, torch.uint16, False),
        (-1000, 3000, torch.float32, True),
        (0, 1, torch.float32, False),
        (0.1, 0.2, torch.float64, True),
        (-5, 5, torch.int64, True),
    ],
)
def test_what_is_black_and_white(low: float, high: float, dtype: torch.dtype, drawn: bool) -> None:
    image = torch.full((1, 8, 8), float(high))
    image[:, :, :4] = low
    data = make(Named([image.to(dtype)] * 2), *blobs(2))
    picture = decoded(data["pictures"][0]).convert("L")
    assert (picture.getpixel((0, 0)), picture.getpixel((7, 7))) == (0, 255)
    assert data["notes"][1:] == ([f"Pictures show values of {low:g} to {high:g} as black to white."] if drawn else [])


def test_bands_of_different_ranges_are_drawn_each_for_itself() -> None:
    image = torch.arange(16.0).view(1, 4, 4) * torch.tensor([1.0, 100.0, 10000.0, 7.0]).view(4, 1, 1)
    data = make(Named([image] * 2), *blobs(2))
    picture = decoded(data["pictures"][0])
    assert picture.getpixel((3, 3)) == (255, 255, 255)
    # In three bands that would change colors.
    data = make(Named([image[:3]] * 2), *blobs(2))
    red, green, blue = decoded(data["pictures"][0]).getpixel((3, 3))  # type: ignore[misc]
    assert red <= green < 5 < blue == 255


def test_images_of_any_size() -> None:
    shapes = [(300, 20), (1, 500), (7, 5), (2000, 1)]
    data = make(Named([torch.zeros(3, *shape, dtype=torch.uint8) for shape in shapes]), *blobs(4))
    sizes = {name: decoded(picture).size for name, picture in zip(data["names"], data["pictures"], strict=True)}
    assert sizes == {
        "folder/0.png": (11, 160),
        "folder/1.png": (160, 1),
        "folder/2.png": (5, 7),
        "folder/3.png": (1, 160),
    }


def test_missing_values_are_black() -> None:
    image = torch.ones(1, 8, 8)
    image[0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, *[0.0] * 5])
    picture = decoded(make(Named([image] * 2), *blobs(2))["pictures"][0]).convert("L")
    assert [picture.getpixel((place, 0)) for place in range(4)] == [0, 255, 0, 0]
    assert make(Named([torch.full((1, 4, 4), torch.nan)] * 2), *blobs(2))["pictures"]


def test_without_its_codec_pictures_are_png(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoded(make(gray(2), *blobs(2))["pictures"][0]).format == "WEBP"
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    assert decoded(make(gray(2), *blobs(2))["pictures"][0]).format == "PNG"


def test_the_map_keeps_neighbors_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = blobs(120)
    points, note = embedding_map(rows)
    assert note == "t-SNE of all 120 images"
    assert_apart(points)
    monkeypatch.setattr(maps, "TSNE_ROWS", 60)
    points, note = embedding_map(rows)
    assert note.startswith("t-SNE of 60 images drawn at random")
    assert_apart(points)
    points, note = embedding_map(rows[:5])
    assert note == "principal components of all 5 images"
    assert points.min() >= 0
    assert points.max() <= 1


def assert_apart(points: Any) -> None:
    """Require that a point's own group of three is nearer to it than the middles of the others."""
    middles = np.stack([np.median(points[start::3], axis=0) for start in range(3)])
    distances = np.linalg.norm(points[:, None] - middles, axis=2)
    assert (distances.argmin(axis=1) == np.arange(len(points)) % 3).mean() > 0.97


@pytest.mark.parametrize(("theme", "page"), [("light", 1.0), ("dark", 0.0096)])  # luminance of its surface
@pytest.mark.parametrize("count", [0, 1, 2, 10, 12, 13, 36, 60])
def test_colors_stand_out_and_apart(theme: str, page: float, count: int) -> None:
    colors = palette(count, theme)
    assert len(colors) == count
    parts = np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in colors]).reshape(-1, 3)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    contrast = (np.maximum(luminance, page) + 0.05) / (np.minimum(luminance, page) + 0.05)
    assert (contrast >= 3).all()  # WCAG 2.1, 1.4.11
    distances = np.linalg.norm(parts[:, None] - parts, axis=2) + 9 * np.eye(count)
    assert count < 2 or distances.min() > (0.18 if count <= 12 else 0.045)
