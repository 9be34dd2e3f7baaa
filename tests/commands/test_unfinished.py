"""Commands on a run that has not ended: its images are opened once, and its clusters are those of k-means."""

from pathlib import Path
from typing import Any

import pytest

from deepclust_ext import recipes
from deepclust_ext.__main__ import main
from deepclust_ext.data import load_images
from tests.commands.test_cluster import HADIS
from tests.runs.runfolders import write_images, write_recipe

#: What a run writes when it has ended.
RESULTS = ("centers.npy", "clusters.csv", "report.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, other images, a run of HaDis that has ended, and the same as it was before its end."""
    folder = tmp_path_factory.mktemp("unfinished")
    write_images(folder / "new", count=2)
    recipe = recipes.dump(recipes.changed(recipes.load(write_recipe(folder)), HADIS))
    (folder / "hadis.yaml").write_text(recipe)
    images, out = str(write_images(folder / "images")), folder / "ended"
    assert main(["train", images, "--recipe", str(folder / "hadis.yaml"), "--out", str(out)]) == 0
    (folder / "run").mkdir()
    for path in out.iterdir():
        if path.is_file() and path.name not in RESULTS:
            (folder / "run" / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [
        (["cluster", "run", "--out", "table.csv", "--overwrite"], ["images"]),
        (["cluster", "run", "new", "--out", "new.csv"], ["new", "images"]),
        (["embed", "run", "--out", "rows.npz"], ["images"]),
        (["evaluate", "run", "--labels", "folders"], ["images"]),
        (["report", "run", "--labels", "folders", "--out", "page.html"], ["images"]),
        (["export", "run", "--out", "network.safetensors"], ["images"]),
        (["sweep", "run", "--clusters", "2:3"], ["images"]),
        (["boost", "run", "--epochs", "3", "--out", "boosted"], ["images"]),
    ],
)
def test_images_are_opened_once(
    arguments: list[str], opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def load(*sources: str, **settings: Any) -> Any:
        found.extend(Path(source).name for source in sources)
        return load_images(*sources, **settings)

    monkeypatch.chdir(folder)
    monkeypatch.setattr("deepclust_ext.runs.source.load_images", load)
    assert main(arguments) == 0
    assert found == opened


def test_the_clusters_are_those_of_the_end(folder: Path) -> None:
    assert main(["cluster", str(folder / "run"), "--out", str(folder / "same.csv")]) == 0
    assert (folder / "same.csv").read_bytes() == (folder / "ended" / "clusters.csv").read_bytes()
