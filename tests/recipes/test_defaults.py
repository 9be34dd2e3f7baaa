"""A recipe for any images: every row of the table builds and steps, and goes by what the images are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepclust_ext.data import Digits, Images, load_images
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.build import check_images, make_trainer
from deepclust_ext.recipes.defaults import SCHEDULES, SECONDS, default_recipe, seconds_per_image
from deepclust_ext.recipes.files import _check_view, _checked_model
from deepclust_ext.recipes.look import look

METHODS = sorted(SCHEDULES)


def scans(count: int, side: int, width: int | None = None) -> NDArray[np.uint8]:
    """Return strokes on black."""
    generator = np.random.default_rng(0)
    images = np.zeros((count, side, width or side), np.uint8)
    for image in images:
        row, column = generator.integers(image.shape[0]), generator.integers(image.shape[1])
        image[row, :] = 255
        image[:, column] = 200
    return images


def noise(count: int, side: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return images without any order, so without an up, each of its own contrast and color."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, side, side, channels)) * generator.random((count, 1, 1, 1))
    return (images * generator.random((count, 1, 1, channels))).astype(np.uint8)


def photographs(count: int, side: int) -> NDArray[np.uint8]:
    """Return images that are brighter at the top, where the sky is."""
    sky = np.linspace(0.0, 155.0, side)[::-1].reshape(side, 1, 1)
    return (sky + np.random.default_rng(0).integers(0, 100, (count, side, side, 3))).astype(np.uint8)


def read(images: NDArray[Any]) -> Images:
    return load_images(images, cache="none")


def view_names(view: Any) -> list[str]:
    """Return the names of a view and all its parts."""
    return [view["name"], *(name for part in view.get("views", ()) for name in view_names(part))]


def assert_builds(recipe: Recipe, images: Images, out: Path) -> None:
    """Require what a recipe of a file must be, and epochs that learn."""
    for view in (*recipe.views, recipe.test_view):
        _check_view(view, recipe.name)
    assert _checked_model(recipe, recipe.name) == recipe.model
    check_images(recipe, images)
    phases = tuple(replace(phase, epochs=1) for phase in recipe.phases)
    trainer = make_trainer(replace(recipe, phases=phases), images, out)
    history = trainer.fit()
    assert all(trainer.steps_per_epoch(phase) for phase in phases)
    assert all(np.isfinite(list(record.values())).all() for record in history)
    assert len(trainer.cluster()) == len(images)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("scans", scans(50, 8)),
        ("scans", scans(50, 28)),
        ("scans", scans(50, 20, 12)),
        ("photographs", photographs(220, 40)),
        ("textures", noise(220, 32)),
        ("textures", noise(220, 16, 1)),
        ("photographs", noise(20, 30, 13)),
    ],
)
def test_every_row_of_the_table_trains(name: str, images: NDArray[Any], method: str, tmp_path: Path) -> None:
    data = read(images)
    recipe, reasons = default_recipe(data, 3, method=method, device="cpu")
    assert recipe.name == f"{method.lower()}-{name}"
    assert recipe.data.images == len(images)
    assert any(f"{len(images):,} " in reason for reason in reasons)
    few = read(images[:64])  # enough of them for some steps
    assert_builds(replace(recipe, data=replace(recipe.data, images=len(few))), few, tmp_path / "run")


def test_scans_have_clusters_of_other_sizes_and_views_that_keep_the_strokes() -> None:
    sacc, _ = default_recipe(read(scans(50, 16)), 3, method="SACC", device="cpu")
    clc, _ = default_recipe(read(scans(50, 16)), 3, method="CLC", device="cpu")
    assert sacc.model["entropy_weight"] == 2
    assert sacc.views[0] == sacc.views[1] != sacc.views[2]
    assert clc.views == (sacc.views[0], sacc.views[0])
    others, _ = default_recipe(read(photographs(220, 40)), 3, method="SACC", device="cpu")
    assert "entropy_weight" not in others.model


def test_clusters_of_k_means_come_first_and_have_the_last_word_with_sacc() -> None:
    def schedule(method: str, images: NDArray[Any]) -> list[tuple[str | None, int]]:
        recipe, _ = default_recipe(read(images), 3, method=method, device="cpu")
        assert all((phase.pseudo_labels == "once") == (phase.passes["images"] == "labels") for phase in recipe.phases)
        return [(phase.passes["images"], phase.epochs) for phase in recipe.phases]

    grays, colors = scans(2000, 8), photographs(2000, 16)
    for images in (grays, colors):
        assert schedule("SACC", images) == [("instance", 30), ("labels", 10), ("all", 60), ("labels", 20)]
    assert schedule("CLC", grays) == [("instance", 30), ("labels", 30), ("all", 60)]
    assert schedule("CLC", colors) == [("instance", 30), ("labels", 10), ("all", 80)]


def test_colors_are_seen_alike_by_hadis_and_clc() -> None:
    for method in ("HaDis", "CLC"):
        recipe, _ = default_recipe(read(photographs(220, 40)), 3, method=method, device="cpu")
        assert recipe.views[0] == recipe.views[1]
        assert "strong" not in view_names(recipe.views[0])


def test_hadis_is_the_method_where_none_is_named() -> None:
    recipe, _ = default_recipe(read(scans(50, 8)), 3)
    assert recipe.method == "HaDis"


@pytest.mark.parametrize("method", METHODS)
def test_images_of_any_size_and_mode(method: str, tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for place in range(30):
        height, width = generator.integers(9, 70, 2)
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        picture.convert(["L", "RGB", "RGBA", "P", "1"][place % 5]).save(tmp_path / f"{place}.png")
    images = load_images(tmp_path)
    assert images.image_size is None
    recipe, reasons = default_recipe(images, 4, method=method)
    assert "different sizes" in reasons[0]
    assert_builds(recipe, images, tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_scans_are_never_flipped(method: str) -> None:
    for images in (scans(20, 8), scans(300, 28), 255 - scans(300, 28), np.repeat(scans(20, 16)[..., None], 3, axis=3)):
        recipe, _ = default_recipe(read(images), 2, method=method)
        names = {name for view in recipe.views for name in view_names(view)}
        assert names <= {"sequential", "resize", "affine", "gamma"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "clusters"), [(2, 1), (2, 2), (3, 2), (50, 10), (50, 50), (600, 10), (3000, 300)])
def test_batches_fit_the_images_and_the_clusters(count: int, clusters: int, method: str) -> None:
    recipe, _ = default_recipe(read(scans(count, 8)), clusters, method=method)
    assert 2 <= recipe.batch_size <= max(2, count - 1)
    if 4 * clusters < count:
        assert recipe.batch_size >= 4 * clusters


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [1, 5, 8, 13, 28, 32, 64, 65, 100, 224])
def test_the_canvas_fits_the_network(side: int, method: str, tmp_path: Path) -> None:
    for images in (scans(8, side), photographs(8, side)):
        recipe, _ = default_recipe(read(images), 2, method=method, device="cpu")
        assert 8 <= recipe.data.size <= 64
        check_images(recipe, read(images))
        recipe, _ = default_recipe(read(images), 2, method=method, device="cuda")
        assert recipe.data.size in {32, 64, 96, 224} or recipe.backbone.name.startswith("small")
        check_images(recipe, read(images))


@pytest.mark.parametrize(
    ("count", "side", "method"),
    [(count, 32, method) for count in (50, 600, 3000) for method in METHODS] + [(60000, 8, "HaDis")],
)
def test_a_run_without_a_gpu_ends_in_time(count: int, side: int, method: str) -> None:
    recipe, reasons = default_recipe(read(scans(count, side)), 10, method=method, device="cpu")
    if count <= 3000:
        assert recipe.epochs * count * seconds_per_image(side) <= SECONDS
    assert f"{recipe.epochs} epochs" in reasons[-1]
    assert "of one core" in reasons[-1]


def test_whether_images_have_an_up() -> None:
    digits = Digits()
    upright = look(read((digits.images[:, 0] * 255).to(torch.uint8).numpy()))
    assert upright.up is not None
    assert upright.up > 0.5
    assert upright.plain > 0.4
    generator = np.random.default_rng(0)
    turned = np.stack([np.rot90(image[0], int(generator.integers(4))) for image in digits.images.numpy()])
    none = look(read(turned))
    assert none.up is not None
    assert abs(none.up) < 0.1
    assert look(read(noise(100, 8))).up is None


def test_patches_of_photographs_have_an_up_and_turned_ones_have_none() -> None:
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    patches = []
    for photograph in load_sample_images().images:
        for _ in range(150):
            top, left = generator.integers(photograph.shape[0] - 64), generator.integers(photograph.shape[1] - 64)
            patches.append(photograph[top : top + 64 : 2, left : left + 64 : 2])
    recipe, _ = default_recipe(read(np.stack(patches)), 2)
    assert recipe.name == "hadis-photographs"
    turned = np.stack([np.rot90(patch, int(generator.integers(4))) for patch in patches])
    recipe, _ = default_recipe(read(turned), 2)
    assert recipe.name == "hadis-textures"
    assert all("turn" in view_names(view) for view in recipe.views)


@pytest.mark.parametrize(
    ("count", "clusters", "options", "error", "message"),
    [
        (5, 6, {}, ValueError, "num_clusters: expected 1 to 5, the number of images, got 6"),
        (5, 0, {}, ValueError, "num_clusters: expected .*1"),
        (5, 2.5, {}, TypeError, "num_clusters: expected"),
        (1, 1, {}, ValueError, "images: expected at least 2 images, got 1"),
        (5, 2, {"method": "hadis"}, ValueError, "method: expected one of .*'hadis'; did you mean 'HaDis'"),
    ],
)
def test_what_cannot_be_is_named(count: int, clusters: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        default_recipe(read(scans(count, 8)), clusters, **options)
    with pytest.raises(TypeError, match="images: expected"):
        default_recipe([1, 2], 2)  # type: ignore[arg-type]
