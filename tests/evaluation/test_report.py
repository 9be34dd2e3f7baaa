"""The page of a run: what it holds, what it leaves out, and that nothing in its data can act."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepclust_ext.evaluation import embedding_map, kept, report
from deepclust_ext.evaluation.galleries import make_galleries
from deepclust_ext.evaluation.report import report_html
from deepclust_ext.evaluation.text import as_text
from tests.evaluation.pages import Named, blobs, data_of, gray, make
from tests.methods.methodsamples import METHODS, every_statistic


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


def test_equal_input_gives_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the map and the points on it are drawn at random, whatever random numbers were taken before."""
    monkeypatch.setattr(embedding_map, "TSNE_ROWS", 30)
    monkeypatch.setattr(report, "MAP_POINTS", 50)
    monkeypatch.setattr(kept, "CHARACTERS", 12_000)
    rows, shares = blobs(60)
    pages = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        pages.add(report_html(gray(60), rows, shares, title="twice", labels=torch.arange(60) % 3))
    (page,) = pages
    assert len(data_of(page)["pictures"]) < 50 == len(data_of(page)["x"])


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, shares = blobs(300)
    monkeypatch.setattr(embedding_map, "TSNE_ROWS", 40)
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
    images = Noise(
        [torch.zeros(0)] * 60_000, [f"train/class_{place % 100}/{'x' * 60}{place}" for place in range(60_000)]
    )
    page = report_html(images, rows, shares, title="large", labels=torch.arange(60_000) % 100)
    assert 13e6 < len(page) < 20e6
    assert len(data_of(page)["x"]) == 60_000


@pytest.mark.parametrize("name", METHODS)
def test_every_statistic_has_its_curve(name: str) -> None:
    method = METHODS[name].method()
    record = every_statistic(method)
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
