"""DeepClusterer: kinds of X, what it leaves, that a copy is the same to the bit, and errors."""

import copy
import doctest
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepclust_ext import DeepClusterer, recipes
from deepclust_ext.data import Images, load_images
from deepclust_ext.recipes import Recipe
from deepclust_ext.recipes.schema import Backbone
from tests.forks import run_python

SETTINGS: dict[str, Any] = {"recipe": "sacc-digits", "epochs": 1, "device": "cpu"}


def scans(count: int = 24) -> Any:
    """Gray images (N, 8, 8) of squares in one of three places, uint8."""
    images = np.random.RandomState(0).randint(0, 60, (count, 8, 8)).astype(np.uint8)
    for place, image in enumerate(images):
        top = 2 * (place % 3)
        image[top : top + 4, top : top + 4] += 180
    return images


@pytest.fixture(scope="module")
def fitted() -> DeepClusterer:
    return DeepClusterer(n_clusters=3, **SETTINGS).fit(scans())


def results(clusterer: DeepClusterer, images: Any) -> list[Any]:
    parts = clusterer.predict(images), clusterer.predict_proba(images), clusterer.transform(images)
    return [*(part.tolist() for part in parts), clusterer.score(images)]


def test_what_a_fit_leaves(fitted: DeepClusterer) -> None:
    assert fitted.labels_.shape == (24,)
    assert fitted.labels_.dtype == np.int64
    assert fitted.labels_.tolist() == fitted.predict(scans()).tolist()
    assert fitted.cluster_centers_.shape == (3, fitted.transform(scans()).shape[1])
    assert fitted.n_features_in_ == 64
    assert fitted.n_iter_ == len(fitted.history_) == 1
    assert fitted.recipe_.method == "SACC"
    assert (fitted.recipe_.data.images, fitted.recipe_.data.num_clusters) == (24, 3)
    shares = fitted.predict_proba(scans(7))
    assert shares.shape == (7, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert shares.argmax(axis=1).tolist() == fitted.predict(scans(7)).tolist()
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(scans()), axis=1), 1, rtol=1e-5)
    assert fitted.get_feature_names_out()[0] == "deepclusterer0"


def files_of(folder: Path) -> list[Path]:
    for place, image in enumerate(scans()):
        Image.fromarray(image).save(folder / f"{place:02}.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("kind", ["N1HW", "NHW1", "tensor", "list", "floats", "folder", "paths", "texts", "Images"])
def test_kinds_of_images_are_the_same_images(fitted: DeepClusterer, kind: str, tmp_path: Path) -> None:
    images = scans()
    if kind in ("folder", "paths", "texts"):
        paths = files_of(tmp_path)
        given: Any = {"folder": tmp_path, "paths": paths, "texts": list(map(str, paths))}[kind]
    else:
        given = {
            "N1HW": images[:, None],
            "NHW1": images[..., None],
            "tensor": torch.from_numpy(images),
            "list": (images / 255).astype(np.float32).tolist(),
            "floats": (images / 255).astype(np.float32),
            "Images": load_images(images, cache="none"),
        }[kind]
    clusterer = DeepClusterer(n_clusters=3, **SETTINGS).fit(given)
    np.testing.assert_allclose(clusterer.transform(images), fitted.transform(images), rtol=1e-4, atol=1e-5)
    assert clusterer.predict(given).tolist() == clusterer.labels_.tolist()
    assert clusterer.labels_.tolist() == fitted.labels_.tolist()
    assert clusterer.names_ is not None
    assert len(clusterer.names_) == 24


def test_images_in_color_are_told_by_their_smaller_side() -> None:
    images = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    last, first = (
        DeepClusterer(n_clusters=2, **SETTINGS).fit(each) for each in (images, np.moveaxis(images, 3, 1).copy())
    )
    assert last.transform(images).tolist() == first.transform(images).tolist()
    assert last.n_features_in_ == 3 * 64
    with pytest.raises(ValueError, match="expected the second or the last side to be smaller, as C"):
        DeepClusterer(n_clusters=2, **SETTINGS).fit(np.zeros((4, 8, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="X: expected images of 3 channels, got 1"):
        last.predict(scans())


def test_images_of_other_sizes_are_made_what_the_recipe_sees(tmp_path: Path) -> None:
    large = np.repeat(np.repeat(scans(), 2, axis=1), 2, axis=2)
    clusterer = DeepClusterer(n_clusters=3, **SETTINGS).fit(large)
    assert clusterer.n_features_in_ == 64
    assert clusterer.predict(large).tolist() == clusterer.labels_.tolist()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda clusterer: pickle.loads(pickle.dumps(clusterer))])
def test_a_copy_is_the_same_to_the_bit(fitted: DeepClusterer, how: Any) -> None:
    other = how(fitted)
    assert results(other, scans(9)) == results(fitted, scans(9))
    assert other.history_ == fitted.history_
    copied = clone(fitted)
    assert not hasattr(copied, "labels_")
    assert copied.get_params() == fitted.get_params()
    assert results(copied.fit(scans()), scans(9)) == results(fitted, scans(9))


def test_a_pickle_serves_another_process_which_then_imports_the_estimator(
    fitted: DeepClusterer, tmp_path: Path
) -> None:
    (tmp_path / "fitted.pickle").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "images.npy", scans(9))
    code = (
        "import deepclust_ext, sys; assert not {'sklearn', 'torchvision'} & set(sys.modules);"
        "assert 'DeepClusterer' in deepclust_ext.__all__;"
        "import pickle, numpy as np, torch; torch.set_num_threads(int(sys.argv[2]));"
        "c = pickle.load(open(sys.argv[1] + '/fitted.pickle', 'rb'));"
        "assert 'sklearn' in sys.modules; assert type(c) is deepclust_ext.DeepClusterer;"
        "print(c.transform(np.load(sys.argv[1] + '/images.npy')).tobytes().hex())"
    )
    found = run_python(code, tmp_path, torch.get_num_threads())
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == fitted.transform(scans(9)).tobytes().hex()


def test_labels_are_never_read(fitted: DeepClusterer) -> None:
    class Trap:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"labels were asked for {name}")

    clusterer = DeepClusterer(n_clusters=3, **SETTINGS)
    assert clusterer.fit_predict(scans(), Trap()).tolist() == fitted.labels_.tolist()
    assert clusterer.score(scans(), Trap()) == fitted.score(scans())
    labeled = load_images(scans(), labels=np.arange(24) % 2, cache="none")
    assert clusterer.fit(labeled).labels_.tolist() == fitted.labels_.tolist()


def test_random_numbers_outside_go_on_as_if_nothing_was() -> None:
    np.random.seed(4), torch.manual_seed(4)
    expected = np.random.rand(), torch.rand(())
    np.random.seed(4), torch.manual_seed(4)
    DeepClusterer(n_clusters=3, **SETTINGS).fit(scans()).predict(scans())
    assert (np.random.rand(), torch.rand(())) == expected


def test_seeds() -> None:
    def rows(state: Any) -> Any:
        return DeepClusterer(n_clusters=3, **SETTINGS, random_state=state).fit(scans()).transform(scans()).tolist()

    assert rows(1) == rows(np.int64(1)) != rows(2)
    assert rows(np.random.RandomState(3)) == rows(np.random.RandomState(3)) != rows(np.random.RandomState(4))
    assert rows(np.random.default_rng(3)) == rows(np.random.default_rng(3))


def test_score_is_the_silhouette_by_centers(fitted: DeepClusterer) -> None:
    rows, labels = fitted.transform(scans()).astype(float), fitted.predict(scans())
    present = [cluster for cluster in range(3) if fitted.cluster_centers_[cluster].any()]
    expected = []
    for row, label in zip(rows, labels, strict=True):
        distances = {cluster: 1 - row @ fitted.cluster_centers_[cluster] for cluster in present}
        own = distances.pop(label)
        other = min(distances.values(), default=own)
        expected.append((other - own) / max(other, own))
    assert fitted.score(scans()) == pytest.approx(np.mean(expected), abs=1e-5)
    alone = DeepClusterer(n_clusters=1, **SETTINGS).fit(scans())
    assert alone.score(scans()) == 0


def test_a_run_is_left_where_it_is_asked_for(tmp_path: Path) -> None:
    clusterer = DeepClusterer(n_clusters=3, **SETTINGS, out=tmp_path / "run").fit(scans())
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    with pytest.raises(FileExistsError):
        clusterer.fit(scans())


def test_recipes_by_name_file_and_as_they_are(tmp_path: Path, fitted: DeepClusterer) -> None:
    recipe = recipes.load("sacc-digits")
    (tmp_path / "mine.yaml").write_text(recipes.dump(recipe))
    for given in (recipe, tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        settings = SETTINGS | {"recipe": given}
        assert DeepClusterer(n_clusters=3, **settings).fit(scans()).labels_.tolist() == fitted.labels_.tolist()


def test_without_a_recipe_the_default_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def default_recipe(images: Images, num_clusters: int, **settings: Any) -> tuple[Recipe, list[str]]:
        asked.append((len(images), num_clusters, settings))
        own: dict[str, Any] = {"data.images": 24, "data.num_clusters": num_clusters, "batch_size": 12}
        own |= {"test_view": {"name": "resize", "size": 8}}
        return recipes.load("sacc-digits", own), ["because"]

    module = types.ModuleType("deepclust_ext.recipes.defaults")
    vars(module)["default_recipe"] = default_recipe
    monkeypatch.setitem(sys.modules, module.__name__, module)
    clusterer = DeepClusterer("SACC", 3, epochs=1, device="cpu").fit(scans())
    assert asked == [(24, 3, {"method": "SACC", "device": torch.device("cpu")})]
    assert clusterer.recipe_.method == "SACC"


@pytest.mark.parametrize("method", ["hadis", "SACC", "clc"])
def test_rows_of_features(method: str) -> None:
    generator = np.random.RandomState(0)
    classes = np.arange(90) % 3
    rows = 1000 + 50 * generator.randn(3, 6)[classes] + generator.randn(90, 6)
    clusterer = DeepClusterer(method, 3, epochs=20, device="cpu").fit(rows)
    assert adjusted_rand_score(classes, clusterer.labels_) > 0.5
    assert clusterer.n_features_in_ == 6
    assert clusterer.predict(rows).tolist() == clusterer.labels_.tolist()
    assert clusterer.predict(rows[3:4]).tolist() == clusterer.labels_[3:4].tolist()  # scaled as the rows of fit were
    with pytest.raises(ValueError, match="X: expected rows as in fit, got images"):
        clusterer.predict(scans())
    with pytest.raises(ValueError, match="X has 5 features, but DeepClusterer is expecting 6 features"):
        clusterer.predict(rows[:, 1:])
    # A second fit goes by the second rows alone.
    clusterer.set_params(epochs=1).fit(rows / 1000)
    expected = DeepClusterer(method, 3, epochs=1, device="cpu").fit(rows / 1000)
    assert clusterer.transform(rows / 1000).tolist() == expected.transform(rows / 1000).tolist()


def test_in_pipelines_and_searches() -> None:
    rows = np.random.RandomState(0).randn(30, 4)
    pipeline = make_pipeline(StandardScaler(), DeepClusterer(n_clusters=3, epochs=1, device="cpu"))
    assert pipeline.fit_predict(rows).shape == (30,)
    search = GridSearchCV(pipeline, {"deepclusterer__n_clusters": [2, 3]}, cv=2, error_score="raise").fit(rows)
    assert -1 <= search.best_score_ <= 1


@pytest.mark.parametrize(
    ("settings", "given", "error", "message"),
    [
        ({"method": "kmeans"}, [[0.0], [1.0]], ValueError, "method: expected one of .*hadis.*, got 'kmeans'"),
        ({"n_clusters": 0}, scans(), ValueError, "n_clusters: expected at least 1, got 0"),
        ({"n_clusters": 99, **SETTINGS}, scans(), ValueError, "num_clusters: expected 1 to 24, the number of images"),
        ({"epochs": 0}, [[0.0], [1.0]], ValueError, "epochs: expected at least 1, got 0"),
        ({"random_state": -1}, scans(), ValueError, "random_state: expected 0 to 4294967295, got -1"),
        ({"random_state": 2**32}, scans(), ValueError, "random_state: expected 0 to 4294967295, got 4294967296"),
        ({"random_state": "x"}, scans(), TypeError, "random_state: expected an integer"),
        ({"recipe": "sacc-digit"}, scans(), ValueError, "did you mean 'sacc-digits'"),
        ({}, scans()[:1], ValueError, "X: expected at least 2 images or rows, got n_samples = 1"),
        ({}, "no/such/folder", FileNotFoundError, "no/such/folder: expected a folder or a file"),
        ({}, np.zeros((2, 2, 2, 2, 2)), ValueError, r"X: expected shape \(N, D\)"),
        ({}, [[1.0], [1.0, 2.0]], TypeError, "X: expected an array of numbers, got list"),
    ],
)
def test_errors(settings: dict[str, Any], given: Any, error: type[Exception], message: str) -> None:
    clusterer = DeepClusterer(**{"n_clusters": 1, "device": "cpu", **settings})
    with pytest.raises(error, match=message):
        clusterer.fit(given)
    with pytest.raises(NotFittedError, match="DeepClusterer: expected fit to be called first"):
        clusterer.predict(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "kmeans"}, "method: expected one of"),
        ({"recipe": "sacc-digit"}, "did you mean 'sacc-digits'"),
        (
            {"recipe": replace(recipes.load("sacc-digits"), backbone=Backbone("resnet19"))},
            "backbone.name: expected one",
        ),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"random_state": 2**32}, "random_state: expected 0 to 4294967295, got 4294967296"),
    ],
)
def test_what_can_be_told_without_images_is_told_before_they_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepClusterer(**settings).fit("no/such/folder")


def test_a_file_of_a_list_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    paths = files_of(tmp_path)
    paths[3].write_bytes(b"no image")
    with pytest.raises(ValueError, match=paths[3].name):
        DeepClusterer(n_clusters=3, **SETTINGS).fit(paths)
    clusterer = DeepClusterer(n_clusters=3, **SETTINGS).fit(tmp_path)  # of a folder it is left out
    assert clusterer.names_ is not None
    assert paths[3].name not in clusterer.names_
    assert len(clusterer.labels_) == 23


def test_the_examples_of_the_page() -> None:
    page = Path(__file__).parents[1] / "docs" / "estimators.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 10
    assert not found.failed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_under_any_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        clusterer = DeepClusterer(n_clusters=3, **SETTINGS).fit(scans())
        given = results(clusterer, scans())
    finally:
        torch.set_default_dtype(torch.float32)
    assert clusterer.labels_.tolist() == given[0]
    assert clusterer.cluster_centers_.dtype == np.float32
