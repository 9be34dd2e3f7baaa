"""Every recipe builds and makes steps; what a file may hold, and what it says of a mistake."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from deepclust_ext import methods, recipes
from deepclust_ext.recipes.build import make_trainer
from deepclust_ext.recipes.files import FOLDER, method_class
from deepclust_ext.recipes.schema import Published
from deepclust_ext.training.phases import MAIN

DIGITS = (FOLDER / "hadis-digits.yaml").read_text()


class Pictures(Dataset[Any]):
    """A few random images of a recipe's shape, with classes that nobody may see."""

    def __init__(self, recipe: recipes.Recipe, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, recipe.data.channels, recipe.data.size, recipe.data.size, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.images[index], "secret"


def resized(recipe: recipes.Recipe, size: int) -> recipes.Recipe:
    """Return a recipe of images of another size, in data and views, and of a decoder that is quick to draw."""
    views = tuple(view | {"size": size} if "size" in view else view for view in recipe.views)
    test_view = recipe.test_view and recipe.test_view | {"size": size}
    model = {**recipe.model, "decoder_depth": 1} if "decoder_depth" in recipe.model else recipe.model
    return replace(recipe, views=views, test_view=test_view, model=model, data=replace(recipe.data, size=size))


def assert_steps(recipe: recipes.Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require two steps at least, on two images each, that move weights and log finite numbers."""
    pytest.importorskip("torchvision", exc_type=ImportError)
    phases = tuple(replace(phase, epochs=1) for phase in recipe.phases)
    steps = 1 if len(phases) > 1 else 2
    shape = replace(recipe.data, num_clusters=2, images=2 * steps, unlabelled=2 * steps)
    recipe = replace(recipe, phases=phases, batch_size=2, data=shape)
    data: dict[str, Dataset[Any]] = {source: Pictures(recipe, 2 * steps) for phase in phases for source in phase.passes}
    trainer = make_trainer(recipe, data, out)
    for name in ("save", "load"):  # of checkpoints, which have tests of their own: of a ResNet these take longer
        monkeypatch.setattr(trainer.folder, name, lambda *arguments: None)
    before = {name: weight.clone() for name, weight in trainer.method.named_parameters()}
    history = trainer.fit()
    assert len(history) == len(phases)
    assert all(torch.tensor(list(record.values())).isfinite().all() for record in history)
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.method.named_parameters())
    assert trainer.settings()["recipe.name"] == recipe.name
    assert trainer.embed().shape[0] == 2 * steps


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # of batches as small as these
def test_every_recipe_makes_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(name)
    assert_steps(recipe if recipe.data.size <= 32 else resized(recipe, 32), tmp_path, monkeypatch)


def large_recipes() -> list[str]:
    """Return recipes of large images, one of those that differ in nothing that :func:`assert_steps` leaves as it is."""
    first: dict[str, str] = {}
    for name in recipes.names():
        recipe = recipes.load(name)
        shape = replace(recipe.data, dataset="", protocol="", images=1, unlabelled=0, num_clusters=1)
        phases = [replace(phase, epochs=1) for phase in recipe.phases]
        steps = replace(recipe, name="", data=shape, phases=tuple(phases), batch_size=2, published=Published())
        if shape.size > 32:
            first.setdefault(repr(steps), name)
    return list(first.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", large_recipes())
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_every_recipe_makes_two_steps_at_its_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_steps(recipes.load(name), tmp_path, monkeypatch)


def test_there_is_a_recipe_for_each_method_and_each_cell_of_the_tables() -> None:
    hadis = {"cifar10", "cifar20", "stl10", "imagenet10", "imagenet-dogs", "digits"}
    expected = {f"hadis-{name}" for name in hadis} | {f"sacc-{name}" for name in hadis | {"tiny-imagenet"}}
    pici = {"rsod", "uc-merced", "siri-whu", "aid", "d0-40", "chaoyang", "digits"}
    assert expected | {f"pici-{name}" for name in pici} | {"clc-digits"} <= set(recipes.names())
    classes = [name for name in methods.__all__ if not name.endswith("Method") and name != "OptimizerSettings"]
    assert {recipes.load(f"{name.lower()}-digits").method for name in classes} == set(classes)


@pytest.mark.parametrize("name", [name for name in methods.__all__ if hasattr(getattr(methods, name), "axes")])
def test_every_method_has_a_page(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / f"{name.lower()}.md"
    assert page.is_file(), f"missing: {page}"
    assert f"methods/{name.lower()}.py" in page.read_text()


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_complete_and_of_its_name(name: str) -> None:
    recipe = recipes.load(name)
    assert name == f"{recipe.method.lower()}-{recipe.data.dataset}" == recipe.name
    assert len(recipe.views) == method_class(recipe.method).num_views
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    # Nothing that decides the run is left to a default of the code.
    assert {"model", "optimizer", "learning_rate", "batch_size", "phases", "published"} <= set(raw)
    assert recipe.epochs > 0


def test_published_figures_and_settings_of_the_papers() -> None:
    cifar20 = recipes.load("hadis-cifar20")
    assert asdict(cifar20.published) == {"nmi": 56.8, "acc": 56.3, "ari": 41.1, "source": "arXiv 2401.14038"}
    assert (cifar20.model["prototype_weight"], cifar20.model["momentum_rises"]) == (0.05, True)
    assert [phase.resample for phase in cifar20.phases] == [False, True]
    assert cifar20.data.num_clusters == 20
    ends = {name: recipes.load(name).learning_rate.factor(1000.0, 1000) for name in ("hadis-stl10", "sacc-stl10")}
    assert ends == pytest.approx({"hadis-stl10": 0.006155829702431115, "sacc-stl10": 1.0})
    stl10 = recipes.load("sacc-stl10")
    assert list(stl10.phases[0].passes.items()) == [("unlabelled", "instance"), (MAIN, "all")]
    assert recipes.load("sacc-cifar20").model["cluster_weight"] == 0.5
    aid = recipes.load("pici-aid")
    assert (aid.published.acc, aid.data.num_clusters, aid.batch_size, aid.kmeans.n_init) == (74.8, 30, 96, 100)
    assert [phase.epochs for phase in aid.phases] == [200, 800, 50]
    assert [dict(phase.passes)["images"] for phase in aid.phases] == ["reconstruction", "all", "labels"]
    assert [recipes.load(f"pici-{name}").data.images for name in ("rsod", "d0-40", "chaoyang")] == [976, 4508, 6160]


def load_text(text: str, tmp_path: Path, overrides: Mapping[str, Any] | None = None) -> recipes.Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return recipes.load(path, overrides)


def test_a_file_of_the_user_s_is_a_recipe(tmp_path: Path) -> None:
    assert load_text(DIGITS, tmp_path) == replace(recipes.load("hadis-digits"), name="mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "batch_size: 64",
            "batch_sise: 64",
            "mine.yaml: expected one of .*, got 'batch_sise'; did you mean 'batch_size'?",
        ),
        ("hidden_dim: 256", "hiden_dim: 256", "mine.yaml.model: .* got 'hiden_dim'; did you mean 'hidden_dim'?"),
        ("n_init: 10", "n_inits: 10", "mine.yaml.kmeans: .* got 'n_inits'; did you mean 'n_init'?"),
        ("method: HaDis", "method: hadis", "mine.yaml.method: .* got 'hadis'; did you mean 'HaDis'?"),
        ("epochs: 33", "epoch: 33", "mine.yaml.phases.0: .* got 'epoch'; did you mean 'epochs'?"),
        ("  images: 1797\n", "", "mine.yaml.data: expected the key 'images', got none"),
        ("batch_size: 64", "batch_size: many", "mine.yaml.batch_size: expected an integer, got 'many'$"),
        ("batch_size: 64", "batch_size: 64.5", "mine.yaml.batch_size: expected an integer, got 64.5"),
        (
            "batch_size: 64",
            "batch_size: yes",
            "expected an integer, got True; YAML reads on, off, yes and no .* as true",
        ),
        ("lr: 0.05", "lr: 5e-2", "mine.yaml.optimizer.lr: expected a finite number, got '5e-2'; .*, so write 0.05$"),
        ("lr: 0.05", "lr: nan", "mine.yaml.optimizer.lr: expected a finite number, got 'nan'$"),
        ("lr: 0.05", "lr: .inf", "mine.yaml.optimizer.lr: expected a finite number, got inf$"),
        ("batch_size: 64", "batch_size: inf", "mine.yaml.batch_size: expected an integer, got 'inf'$"),
        ("momentum: 0.9893 ", "momentum: .nan ", "mine.yaml.model.momentum: expected a finite number, got nan$"),
        ("tol: 1.0e-4", "tol: 1e-9", "mine.yaml.kmeans.tol: .* got '1e-9'; .*, so write 1.0e-09$"),
        ("dataset: digits", "dataset: off", "mine.yaml.data.dataset: expected text, got False; YAML reads on, off"),
        ("momentum: 0.9893 ", "momentum: [1] ", r"mine.yaml.model.momentum: expected a finite number, got \[1\]"),
        (
            "images: 1797",
            "images: 1797\n  images: 1798",
            "mine.yaml: expected YAML, got: the key 'images' is given twice",
        ),
        (
            "warmup_cosine",
            "cosine",
            "mine.yaml.learning_rate.name: expected one of constant, warmup_cosine",
        ),
        (
            "pseudo_labels: 1",
            "pseudo_labels: 1.5",
            "mine.yaml.phases.1.pseudo_labels: expected text or an integer, got 1.5",
        ),
        ("method: HaDis", "method: {HaDis", "mine.yaml: expected YAML, got: "),
        ("optimizer: {name: sgd", "optimizer: {name: [sgd]", "mine.yaml.optimizer.name: expected text"),
        (
            "lr: 0.05",
            "lr: -0.05",
            "mine.yaml.optimizer.lr: expected a finite number .*, got -0.05",
        ),
        ("momentum: 0.9,", "momentum: 2.0,", r"optimizer.momentum: expected a number in \[0, 1\), got 2.0"),
        ("name: sgd", "name: adam", "mine.yaml.optimizer.momentum: expected none for 'adam', got 0.9"),
        ("weight_decay: 5.0e-4", "weight_decay: -1.0", "optimizer.weight_decay: expected a finite number .*, got -1.0"),
        ("lr_batch_size: 256", "lr_batch_size: 0", "optimizer.lr_batch_size: expected at least 1, got 0"),
        ("warmup: 2}", "warmup: .inf}", "learning_rate.warmup: expected a finite number, got inf"),
        ("final_n_init: 20", "final_n_init: 0", "mine.yaml.kmeans.final_n_init: expected at least 1, got 0"),
        ("name: affine", "name: afine", "mine.yaml.views.0.views.0.name: expected one of .*; did you mean 'affine'?"),
        ("name: affine, ", "", "mine.yaml.views.0.views.0: expected a view, with the key 'name', got {'degrees'"),
        ("degrees: 15.0", "degrees: many", "mine.yaml.views.0.views.0.degrees: expected a finite number, got 'many'"),
        ("degrees: 15.0", "degree: 15.0", "mine.yaml.views.0.views.0: .* got 'degree'; did you mean 'degrees'?"),
        (
            "- *view",
            "- {name: sequential, views: [{name: gamma, gamma: x}]}",
            "mine.yaml.views.1.views.0.gamma: expected a finite number, got 'x'",
        ),
        (
            "method: HaDis",
            "method: ClusterHeadMethod",
            "expected a whole method, got .*, which lacks collapse_warning, ",
        ),
        ("backbone: {name: small}", "backbone: small", "mine.yaml.backbone: expected keys and values, got 'small'"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in DIGITS
    with pytest.raises(ValueError, match=message):
        load_text(DIGITS.replace(old, new, 1), tmp_path)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not determine a constructor"):
        load_text(DIGITS.replace("batch_size: 64", "batch_size: !!python/object/apply:os.getpid []"), tmp_path)


def test_what_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="recipe: expected one of .*, got 'hadis-cifar1'; did you mean 'hadis-cifar10'?"
    ):
        recipes.load("hadis-cifar1")
    with pytest.raises(TypeError, match="name: expected the name of a recipe or a path, got NoneType"):
        recipes.load(None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        recipes.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml: expected YAML, got: 'utf-8' codec"):
        recipes.load(tmp_path / "latin.yaml")
    with pytest.raises(ValueError, match="expected keys and values, got None"):
        load_text("", tmp_path)


def test_overrides_are_checked_like_the_file() -> None:
    recipe = recipes.load("hadis-digits", {"model.hsd_weight": 0, "batch_size": 32, "optimizer.lr": 0.1})
    assert (recipe.model["hsd_weight"], recipe.batch_size) == (0.0, 32)
    assert recipe.optimizer == replace(recipes.load("hadis-digits").optimizer, lr=0.1)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="hadis-digits.yaml: expected one of .*, got 'name'"):
        recipes.load("hadis-digits", {"name": "mine"})
    with pytest.raises(ValueError, match="got 'hsd_wight'; did you mean 'hsd_weight'?"):
        recipes.load("hadis-digits", {"model.hsd_wight": 0})
    with pytest.raises(ValueError, match="batch_size: expected an integer, got '32'; .* write 32"):
        recipes.load("hadis-digits", {"batch_size": "32"})
    with pytest.raises(
        ValueError, match=r"yaml.batch_size.x: expected sections before its last part, got batch_size, the value 64"
    ):
        recipes.load("hadis-digits", {"batch_size.x": 1})


def test_other_epochs_keep_the_shares_of_the_phases() -> None:
    recipe = recipes.load("hadis-digits")
    assert [phase.epochs for phase in recipe.with_epochs(37).phases] == [11, 26]
    assert recipe.with_epochs(111) == recipe


def test_the_same_seed_gives_the_same_method(tmp_path: Path) -> None:
    recipe = recipes.load("sacc-digits", {"data.images": 128, "batch_size": 128})
    first, second, other = (make_trainer(recipe, Pictures(recipe, 128), tmp_path, seed=seed) for seed in (1, 1, 2))
    weights = [torch.cat([p.flatten() for p in trainer.method.parameters()]) for trainer in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config.seed == 1


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (127, 1, 8), "data.images: expected 128 images, as the recipe hadis-digits has it, got 127"),
        ({}, (128, 3, 8), "data.channels: expected 1, as the recipe hadis-digits has it, got 3 in images"),
        ({}, (128, 1, 9), r"data.size: expected 8, as .* has it, got \(9, 9\) in images from the image itself"),
        ({"test_view": {"name": "resize", "size": 8}}, (128, 1, 9), r"got \(9, 9\) in images from views.0"),
        ({"test_view": {"name": "resize", "size": 9}}, (128, 1, 8), r"got \(9, 9\) in images from test_view"),
    ],
)
def test_images_that_the_recipe_is_not_of_are_named(
    changes: dict[str, Any], shape: tuple[int, int, int], message: str, tmp_path: Path
) -> None:
    if changes:
        pytest.importorskip("torchvision", exc_type=ImportError)
    recipe = recipes.load("hadis-digits", {"data.images": 128} | changes)
    count, channels, size = shape
    images = TensorDataset(torch.rand(count, channels, size, size))
    with pytest.raises(ValueError, match=message):
        make_trainer(recipe, images, tmp_path)


def test_the_recipe_of_a_run_has_no_name_of_its_own(tmp_path: Path) -> None:
    recipe = replace(recipes.load("hadis-digits"), name="recipe")
    with pytest.raises(ValueError, match="data.images: expected 1797 images, as the recipe has it, got 9"):
        make_trainer(recipe, TensorDataset(torch.rand(9, 1, 8, 8)), tmp_path)


def test_unlabelled_images_are_counted_too(tmp_path: Path) -> None:
    recipe = recipes.load("sacc-digits", {"data.images": 128, "data.unlabelled": 140})
    data = {"images": Pictures(recipe, 128), "unlabelled": Pictures(recipe, 128)}
    with pytest.raises(ValueError, match="data.unlabelled: expected 140 images, as .* has it, got 128"):
        make_trainer(recipe, data, tmp_path)


def test_recipes_are_packaged() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'^deepclust_ext = \[.*"recipes/\*\.yaml".*\]$', text, re.MULTILINE)
