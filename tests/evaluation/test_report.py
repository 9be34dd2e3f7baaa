"""The page of a run: what it holds, of images of any kind, and that nothing in them can act."""

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from deepclust_ext.evaluation import embedding_map as maps
from deepclust_ext.evaluation import kept, report
from deepclust_ext.evaluation.colors import palette
from deepclust_ext.evaluation.embedding_map import embedding_map
from deepclust_ext.evaluation.galleries import make_galleries
from deepclust_ext.evaluation.report import report_html
from deepclust_ext.evaluation.text import as_text
from tests.methods.methodsamples import METHODS, make_views


class Named(Dataset[Any]):
    """Images with names, and with files that were left out."""

    def __init__(self, images: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
        self.images = images
        self.names = [f"folder/{place}.png" for place in range(len(images))] if names is None else list(names)
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def gray(count: int) -> Named:
    """Images of the whole range that differ."""
    return Named([torch.tensor([[[0, 255], [place % 256, 0]]], dtype=torch.uint8) for place in range(count)])


def blobs(count: int, num_clusters: int = 3, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Rows (N, D) around as many centers as clusters, and shares (N, K)."""
    centers = torch.eye(num_clusters, dim)
    rows = normalize(centers[torch.arange(count) % num_clusters] + 0.1 * torch.randn(count, dim), dim=1)
    return rows, (rows @ centers.T / 0.1).softmax(dim=1)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def decoded(picture: str) -> Image.Image:
    head, body = picture.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{(image.format or '').lower()};base64"
    return image


def make(images: Dataset[Any], rows: Tensor, shares: Tensor, **settings: Any) -> dict[str, Any]:
    return data_of(report_html(images, rows, shares, **{"title": "a run", **settings}))


def test_galleries_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 0.9, 2.0, 2.1, 2.5])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    firsts = torch.tensor([0.7, 0.9, 0.8, 0.6, 0.1, 0.4, 0.3])
    shares = torch.stack([firsts, 1 - firsts, torch.zeros(7)], dim=1)
    found = make_galleries(rows, shares)
    assert found.clusters.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.seconds.tolist() == [1, 1, 1, 1, 0, 0, 0]
    # The mean of the first four points at about 0.29: nearest is 0.2, then 0.1, then 0, then 0.9.
    assert [part.tolist() for part in found.middle] == [[2, 1, 0, 3], [5, 4, 6], []]
    assert [part.tolist() for part in found.edge] == [[3, 0, 1, 2], [6, 4, 5], []]
    assert [part.tolist() for part in found.uncertain] == [[3, 0, 2, 1], [5, 6, 4], []]
    assert found.shown() == [2, 5, 3, 6, 1, 4, 0]
    assert found.most_typical_first().tolist() == [2, 5, 1, 4, 0, 6, 3]


def test_many_clusters_show_fewer_images_each() -> None:
    rows, shares = blobs(3000, 400, 400)
    assert max(map(len, make_galleries(rows, shares).middle)) == 6
    rows, shares = blobs(3000, 3)
    assert max(map(len, make_galleries(rows, shares).middle)) == 12


def test_the_page_holds_what_it_promises() -> None:
    rows, shares = blobs(40)
    images = gray(40)
    images.skipped = [("a.txt", "no image")]
    images.notes = ["40 images, kept in memory"]
    history = [{"epoch": 1.0, "lr": 0.1, "loss": 2.0}, {"epoch": 2.0, "lr": 0.1, "loss": 1.0, "late": float("nan")}]
    labels = ["cat", "dog", "ape"] * 13 + ["cat"]
    data = make(images, rows, shares, labels=labels, recipe="method: SACC\n", history=history)
    assert (data["title"], data["recipe"], data["count"], sum(data["exact"])) == ("a run", "method: SACC", 40, 40)
    assert [cluster["size"] for cluster in data["clusters"]] == [14, 13, 13]
    assert [len(cluster["middle"]) for cluster in data["clusters"]] == [12, 12, 12]
    assert [cluster["confidence"] for cluster in data["clusters"]] == pytest.approx(
        [float(shares[start::3, start].mean()) for start in range(3)]
    )
    places = [int(name.split("/")[1].removesuffix(".png")) for name in data["names"]]
    assert sorted(places) == list(range(40))
    # Neighbors are those of plain cosines, whatever order the page has.
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    for place, found, numbers in zip(places, data["neighbors"], data["cosines"], strict=True):
        assert [places[other] for other in found] == cosines[place].topk(12).indices.tolist()
        assert numbers == pytest.approx((1000 * cosines[place].topk(12).values).tolist(), abs=0.6)
    assert [data["cluster"][number] for number in range(40)] == [place % 3 for place in places]
    assert data["classes"] == ["ape", "cat", "dog"]
    assert [data["classes"][label] for label in data["label"]] == [labels[place] for place in places]
    assert data["confusion"]["counts"] == [[13, 0, 0], [0, 14, 0], [0, 0, 13]]
    assert [data["classColors"][data["classes"].index(name)] for name in ("cat", "dog", "ape")] == [0, 1, 2]
    assert data["clusters"][1]["classes"] == [[2, 13]]
    assert data["scores"]["acc"] == 1
    assert data["curves"] == {
        "epochs": [1, 2],
        "panels": [{"title": "loss", "lines": [{"name": "loss", "values": [2, 1]}]}],
    }
    assert (data["skipped"], data["numSkipped"]) == ([["a.txt", "no image"]], 1)
    assert data["notes"] == ["Map: t-SNE of all 40 images."]


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
    notes = {2: ["Pictures show band 1 in magenta and band 2 in green."]} | dict.fromkeys(
        (4, 13), [f"Pictures show bands 1, 2 and 3 of {channels} as red, green and blue."]
    )
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


@pytest.mark.parametrize("count", [1, 2, 3, 9, 20])
@pytest.mark.parametrize("num_clusters", [1, 2, 30])
@pytest.mark.parametrize("equal", [False, True])
def test_few_or_equal_images_and_few_or_empty_clusters(count: int, num_clusters: int, equal: bool) -> None:
    rows, shares = torch.randn(count, 5), torch.rand(count, num_clusters)
    if equal:
        rows, shares = rows[:1].expand(count, 5), shares[:1].expand(count, num_clusters)
    rows, shares = normalize(rows, dim=1), shares / shares.sum(dim=1, keepdim=True)
    labels = torch.arange(count) % 4
    data = make(gray(count), rows, shares, labels=labels, classes=["a", "b", "c", "d"])
    assert sum(cluster["size"] for cluster in data["clusters"]) == count
    assert [len(found) for found in data["neighbors"]] == [min(12, count - 1)] * count
    assert all(0 <= place <= 10_000 for place in data["x"] + data["y"])
    assert data["second"] == ([-1] * count if num_clusters == 1 else data["second"])
    empty = [cluster for cluster in data["clusters"] if not cluster["size"]]
    assert all(cluster["confidence"] is None and not cluster["middle"] for cluster in empty)


ATTACKS = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=alert(1)>",
    "\"'&amp;<!--",
    "a\nb\tc\u2028d",
    "\u202egnp.exe",
    "\udc80\udcff.png",
    "{{DIGEST}}",
    "\x00\x1b[31m",
]


def test_names_are_text_whatever_they_hold() -> None:
    images = Named([torch.zeros(1, 2, 2)] * len(ATTACKS), ATTACKS)
    images.skipped = [(name, name) for name in ATTACKS]
    images.notes = ATTACKS
    everything = "".join(ATTACKS)
    page = report_html(
        images,
        *blobs(len(ATTACKS)),
        title=everything,
        recipe=everything,
        labels=ATTACKS,
        history=[{"epoch": 1.0, everything: 2.0}],
        axes={everything: [everything]},
        scores={everything: 1.0},
    )
    page.encode("ascii")
    template = report._TEMPLATE.read_text(encoding="utf-8")
    for part in ("<script", "</script", "<img", "<!--"):
        assert page.lower().count(part) == template.lower().count(part), part
    (title,) = re.findall(r"<title>(.*?)</title>", page)
    assert title.startswith("&lt;/script&gt;")
    data = data_of(page)
    shown = [*data["names"], *data["classes"], *data["dataNotes"], data["title"], *data["scores"]]
    assert all(name.isprintable() for name in shown)
    assert set(data["names"]) == set(map(as_text, ATTACKS))
    assert as_text("a\nb\u202e\udc80é猫") == "a\\nb\\u202e\\udc80é猫"


def test_equal_input_gives_equal_bytes() -> None:
    rows, shares = blobs(60)
    pages = {report_html(gray(60), rows, shares, title="twice", labels=torch.arange(60) % 3) for _ in range(2)}
    assert len(pages) == 1


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, shares = blobs(300)
    monkeypatch.setattr(maps, "TSNE_ROWS", 40)
    assert len(make(gray(300), rows, shares)["pictures"]) == 300
    monkeypatch.setattr(kept, "CHARACTERS", 40_000)
    monkeypatch.setattr(report, "MAP_POINTS", 250)
    data = make(gray(300), rows, shares, labels=torch.arange(300) % 70)
    count = len(data["pictures"])
    assert 60 < count < 200
    assert sum(map(len, data["pictures"])) < 40_000
    assert (len(data["x"]), len(data["cluster"]), len(data["names"]), data["count"]) == (250, 250, count, 300)
    galleries = [gallery for cluster in data["clusters"] for gallery in (cluster["middle"], cluster["edge"])]
    assert [len(gallery) for gallery in galleries] == [12] * 6
    assert max(place for found in data["neighbors"] for place in found) < count
    places = [int(name.split("/")[1].removesuffix(".png")) for name in data["names"]]
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    for place, found, exact in zip(places, data["neighbors"], data["exact"], strict=True):
        assert found == cosines[place][places].topk(12).indices.tolist()
        if exact:
            assert [places[other] for other in found] == cosines[place].topk(12).indices.tolist()
    assert 0 < sum(data["exact"]) < count
    assert any(f"{count} of 300 images have pictures" in note for note in data["notes"])
    assert (len(data["confusion"]["rows"]), len(data["confusion"]["columns"])) == (60, 3)


def test_galleries_that_do_not_fit_keep_their_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "CHARACTERS", 6_000)
    data = make(gray(100), *blobs(100))
    counts = [len(cluster["middle"]) for cluster in data["clusters"]]
    assert 0 < max(counts) < 12
    assert max(counts) - min(counts) <= 1


@pytest.mark.slow
def test_sixty_thousand_photographs_stay_below_20_megabytes() -> None:
    class Noise(Named):
        def __getitem__(self, index: int) -> Tensor:
            generator = torch.Generator().manual_seed(index)
            return torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)

    rows, shares = blobs(60_000, 100, 128)
    images = Noise(gray(1).images * 60_000, [f"train/class_{place % 100}/{'x' * 60}{place}" for place in range(60_000)])
    page = report_html(images, rows, shares, title="large", labels=torch.arange(60_000) % 100)
    assert 13e6 < len(page) < 20e6
    assert len(data_of(page)["x"]) == 60_000


@pytest.mark.parametrize("name", METHODS)
def test_every_statistic_has_its_curve(name: str) -> None:
    method = METHODS[name].method()
    _, terms = method.training_step(make_views(method.num_views, 16), torch.arange(16) % 4)
    record = {name: float(term) for name, term in terms.items()}
    history = [{"epoch": epoch, "lr": 0.1, "seconds": 1.0} | record for epoch in (1.0, 2.0)]
    panels = make(gray(3), *blobs(3), history=history, axes=method.axes)["curves"]["panels"]
    assert {panel["title"]: [line["name"] for line in panel["lines"]] for panel in panels} == {
        title: list(names) for title, names in method.axes.items()
    }
    assert sorted(line["name"] for panel in panels for line in panel["lines"]) == sorted(record)


def test_terms_of_some_epochs_leave_gaps() -> None:
    history = [
        {"epoch": 1.0, "a": 2.0},
        {"epoch": 2.0, "b": float("inf")},
        {"epoch": 3.0, "a": np.float32(1), "b": 3.0},
    ]
    curves = make(gray(3), *blobs(3), history=history, axes={"both": ("a", "b", "never"), "none": ("never",)})["curves"]
    (panel,) = curves["panels"]
    assert panel["lines"] == [{"name": "a", "values": [2, None, 1]}, {"name": "b", "values": [None, None, 3]}]


def test_given_scores_are_shown_as_they_are() -> None:
    scores = {"acc": 0.5, "silhouette": None, "sizes": [1, 2], "nan": float("nan"), "knn_accuracy": 1}
    assert make(gray(3), *blobs(3), scores=scores)["scores"] == {"acc": 0.5, "knn_accuracy": 1}
    assert make(gray(3), *blobs(3))["confusion"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(2, 3)}, r"rows: expected a row for each of 3 images, at least one, got \(2, 3\)"),
        ({"rows": torch.zeros(3)}, r"rows: expected a row for each of 3 images, at least one, got \(3,\)"),
        ({"shares": torch.zeros(3, 0)}, r"shares: expected a row for each of 3 images, at least one, got \(3, 0\)"),
        ({"rows": torch.full((3, 2), torch.nan)}, "rows: expected finite numbers, got NaN or infinity"),
        ({"labels": [1, 2]}, r"labels: expected shape \(3,\), one for each image, got \(2,\)"),
        ({"labels": [0, 1, 2], "classes": ["a", "b"]}, "labels: expected integers from 0 to 1, .* got 0 to 2"),
        ({"labels": ["a", "b", "a"], "classes": ["a", "b"]}, "labels: expected integers from 0 to 1, .* got a to b"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    rows, shares = blobs(3)
    with pytest.raises(ValueError, match=message):
        report_html(gray(3), **{"rows": rows, "shares": shares, "title": "wrong", **change})


def test_an_image_that_cannot_be_read_is_named() -> None:
    class Damaged(Named):
        def __getitem__(self, index: int) -> Tensor:
            raise OSError("cut off")

    with pytest.raises(ValueError, match=r"data, image \d \(folder/\d.png\): .* OSError: cut off"):
        report_html(Damaged(gray(3).images), *blobs(3), title="damaged")


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
