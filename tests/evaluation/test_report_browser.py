"""The page of a run in a real browser: Chromium, driven as a person would use it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from torch import Tensor

from deepclust_ext.evaluation.report import report_html
from tests.evaluation.pages import Named, blobs

HOSTILE = "<img src='https://example.org/x.png' onerror=\"document.title='taken'\"></script><script>alert(1)</script>"


class Page:
    """A page in a browser, and what a person can do with it."""

    def __init__(self, driver: Chrome, path: Path) -> None:
        self.driver, self.address = driver, path.as_uri()
        self.open()

    def open(self) -> None:
        self.driver.get(self.address)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def panel_is_open(self) -> bool:
        return bool(self.run("return document.getElementById('panel').open"))

    def pixel(self, image: int) -> list[int]:
        """Return the color of the map where an image is."""
        script = """const [x, y] = place(arguments[0]);
            const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
            copy.drawImage(canvas, -x * devicePixelRatio, -y * devicePixelRatio);
            return [...copy.getImageData(0, 0, 1, 1).data];"""
        return [int(value) for value in self.run(script, image)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and service):
        assert not os.environ.get("CI"), "expected chromium and chromedriver, Debian's chromium and chromium-driver"
        pytest.skip("no chromium and chromedriver, Debian's packages chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,1000")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(service))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, shares = _rows()
    images = Named([torch.full((3, 8, 12), 5 * place, dtype=torch.uint8) for place in range(50)])
    images.names[0] = HOSTILE
    images.skipped = [(HOSTILE, "no image")]
    page = report_html(
        images,
        rows,
        shares,
        title=HOSTILE,
        recipe="method: SACC\nepochs: 3\n",
        history=[{"epoch": float(epoch), "loss": 1 / epoch, "rank": 3.0} for epoch in (1, 2, 3)],
        axes={"loss": ("loss",), "rank": ("rank",)},
        labels=[HOSTILE if place % 3 == 2 else "ab"[place % 2] for place in range(50)],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    rows, shares = blobs(50)
    return rows, torch.cat([shares, torch.zeros(50, 1)], dim=1)  # the last cluster is empty


@pytest.fixture
def page(driver: Chrome, written: Path) -> Iterator[Page]:
    """The page anew; whatever a test does, nothing is logged and no request leaves the file."""
    driver.get("about:blank")
    for kind in ("browser", "performance"):  # what came before is not of the page
        driver.get_log(kind)  # type: ignore[no-untyped-call]
    page = Page(driver, written)
    yield page
    errors = driver.get_log("browser")  # type: ignore[no-untyped-call]
    assert errors == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]  # type: ignore[no-untyped-call]
    requests = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert {address for address in requests if not address.startswith("data:")} == {page.address}


def test_everything_is_there_and_names_are_text(page: Page) -> None:
    assert page.driver.title == HOSTILE
    assert page.find("#title").text == HOSTILE
    assert len(page.all("script")) == 2
    assert len(page.all("img[onerror]")) == 0
    headings = [heading.text for heading in page.all("h2") if heading.is_displayed()]
    assert headings == ["Map", "Clusters", "Scores", "Training", "Recipe", "About"]
    assert [link.text for link in page.all("#sections a")] == headings
    assert len(page.all(".card")) == 4
    assert "no images" in page.find("#cluster-3").text
    assert len(page.all("#cluster-0 .strip")) == 3
    assert len(page.all(".confusion tbody tr")) == 3
    assert page.find("#recipe pre").text == "method: SACC\nepochs: 3"
    assert [len(curve.get_attribute("d") or "") > 10 for curve in page.all(".curve > svg path")] == [True, True]
    images = page.run("return [...document.querySelectorAll('img')].map((image) => [image.alt, image.id])")
    assert all(alt for alt, place in images if place != "picture")


def test_a_click_shows_neighbors_and_escape_closes(page: Page) -> None:
    thumb = page.all("#cluster-1 .thumb")[2]
    name = thumb.get_attribute("title")
    thumb.click()
    assert page.panel_is_open()
    assert page.find("#panel-name").text == name
    assert page.find("#facts dd").text == "1"
    neighbors = page.all("#neighbors .thumb")
    assert page.find("#neighbors-heading").text == "Nearest neighbors among all 50 images, with cosines"
    rows, _ = _rows()
    place = int(str(name).split("/")[1].removesuffix(".png"))
    cosines = rows @ rows[place]
    cosines[place] = -2
    titles = [
        page.run("return data.names.indexOf(arguments[0])", button.get_attribute("title")) for button in neighbors
    ]
    nearest = [f"folder/{other}.png" if other else HOSTILE for other in cosines.topk(12).indices.tolist()]
    assert titles == [page.run("return data.names.indexOf(arguments[0])", name) for name in nearest]
    size = page.run("const image = document.getElementById('picture'); return [image.naturalWidth, image.clientWidth]")
    assert size[0] == 12
    assert size[1] >= 300
    neighbors[1].click()
    assert page.find("#panel-name").text == nearest[1]
    page.find("#back").click()
    assert page.find("#panel-name").text == name
    page.press(Keys.ESCAPE)
    assert not page.panel_is_open()
    assert page.run("return document.activeElement === arguments[0]", thumb)


def test_arrow_keys_go_along_a_gallery(page: Page) -> None:
    first, second, third = page.all("#cluster-0 .thumb")[:3]
    page.run("arguments[0].focus()", first)
    page.press(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement === arguments[0]", second)
    page.press(Keys.ENTER)
    assert page.find("#place").text == "2 of 12"
    page.press(Keys.ARROW_RIGHT)
    assert page.find("#panel-name").text == third.get_attribute("title")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.find("#panel-name").text == first.get_attribute("title")
    page.press(Keys.ESCAPE)
    assert not page.panel_is_open()


def test_the_map_switches_colors_and_shows_images(page: Page) -> None:
    page.run("document.getElementById('map').scrollIntoView()")
    point = page.run("return data.cluster.findIndex((cluster, place) => cluster === 1 && data.label[place] === 2)")
    by_cluster = page.pixel(point)
    page.find("#coloring input[value=label] + span").click()
    assert [entry.text.split("\n")[0] for entry in page.all("#legend button")] == [HOSTILE, "a", "b"]
    assert page.pixel(point) != by_cluster
    page.find("#coloring input[value=cluster] + span").click()
    assert page.pixel(point) == by_cluster
    entries = page.all("#legend button")
    assert [entry.text.split("\n")[0] for entry in entries] == ["Cluster 0", "Cluster 1", "Cluster 2", "Cluster 3"]
    entries[0].click()
    assert entries[0].get_attribute("aria-pressed") == "true"
    assert page.pixel(point) != by_cluster  # pale, as are all of other clusters
    entries[0].click()
    x, y = page.run("return place(arguments[0])", point)
    width, height = page.run("return [canvas.clientWidth, canvas.clientHeight]")
    at = ActionChains(page.driver).move_to_element_with_offset(page.find("#plane"), x - width / 2, y - height / 2)
    at.perform()
    name = page.run("return data.names[arguments[0]]", page.run("return hovered"))
    assert page.find("#tip bdi").text == name
    at.click().perform()
    assert page.panel_is_open()
    assert page.find("#panel-name").text == name
    page.press(Keys.ESCAPE)
    page.run("canvas.focus()")
    page.press(Keys.ARROW_RIGHT, Keys.ENTER)
    assert page.panel_is_open()


def test_the_theme_is_the_systems_until_one_is_chosen(page: Page) -> None:
    def background() -> int:
        color = page.run("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))

    for system, dark in (("dark", True), ("light", False)):
        media = {"features": [{"name": "prefers-color-scheme", "value": system}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.open()
        assert (background() < 150) == dark
        before = page.pixel(0)
        assert page.find("#theme").text == ("Light" if dark else "Dark")
        page.find("#theme").click()
        assert (background() < 150) != dark
        assert page.pixel(0) != before


@pytest.mark.parametrize("width", [400, 760, 1600])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.run("return document.documentElement.scrollWidth") == width
    page.all("#cluster-0 .thumb")[0].click()
    panel = page.run("return document.getElementById('panel').getBoundingClientRect().toJSON()")
    assert panel["right"] == width
    assert panel["left"] >= 0
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_clusters_can_be_ordered(page: Page) -> None:
    page.run(
        "const order = document.getElementById('order'); order.value = 'size'; order.dispatchEvent(new Event('change'))"
    )
    sizes = page.run(
        "return [...document.querySelectorAll('.card')].map((card) => data.clusters[card.id.split('-')[1]].size)"
    )
    assert sizes == sorted(sizes, reverse=True)
