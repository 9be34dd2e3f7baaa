"""The recipes that come with the package, and those of a user's files."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from deepclust_ext import methods
from deepclust_ext.data import VIEWS
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.methods.base import SURROUNDINGS
from deepclust_ext.ops._checks import check_type
from deepclust_ext.recipes.checks import build, check, check_keys, nearest
from deepclust_ext.recipes.schema import Recipe

FOLDER = Path(__file__).parent

#: Arguments of every method that come from the data, the backbone and the ranks.
GIVEN = ("self", "backbone", "feature_dim", "num_clusters", *SURROUNDINGS)


def names(ending: str = "") -> list[str]:
    """Return the names of the bundled recipes, METHOD-DATASET, in alphabetical order.

    Args:
        ending: Ending of the names to return, such as "-digits".
    """
    return sorted(path.stem for path in FOLDER.glob(f"*{ending}.yaml"))


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe.

    Args:
        name: Name of a bundled recipe, or path of a file that ends in ".yaml".
        overrides: New values by dotted keys, such as {"optimizer.lr": 0.1}.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the name is neither text nor a path.
        ValueError: If there is no such recipe, the file is no YAML, a key is unknown, missing or given twice, or a
            value is of the wrong type or out of range.
    """
    path = Path(check_type(name, "name", str | os.PathLike, "the name of a recipe or a path"))
    if path.suffix != ".yaml":
        if str(name) not in names():
            known, got = ", ".join(names()), f"{str(name)!r}{nearest(name, names())}"
            raise ValueError(f"recipe: expected one of {known}, or a file that ends in .yaml, got {got}")
        path = FOLDER / f"{name}.yaml"
    return _checked(_read(path), overrides or {}, path.stem, path.name)


def changed(recipe: Recipe, overrides: Mapping[str, Any], where: str | None = None) -> Recipe:
    """Return a recipe with new values by dotted keys.

    Args:
        recipe: The recipe.
        overrides: The new values.
        where: What messages call the recipe; None for the name of its file.

    Raises:
        ValueError: As :func:`load`.
    """
    values = _plain(asdict(recipe))
    name = values.pop("name")
    return _checked(values, overrides, name, where or f"{name}.yaml")


def _checked(values: Any, overrides: Mapping[str, Any], name: str, where: str) -> Recipe:
    """Return the recipe of a name with values that a file holds, and new ones by dotted keys."""
    keys = [key for key in inspect.signature(Recipe).parameters if key != "name"]
    check_keys(values, keys, where)
    if not values.get("optimizer") and any(key.startswith("optimizer.") for key in overrides):
        kind = _classes().get(str(overrides.get("method", values.get("method"))))
        values["optimizer"] = {} if kind is None else asdict(kind.default_optimizer)
    for key, value in overrides.items():
        _override(values, key, value, where)
    check_keys(values, keys, where)
    recipe = replace(build(Recipe, values, where), name=name)
    for place, view in enumerate(recipe.views):
        _check_view(view, f"{where}.views.{place}")
    if recipe.test_view is not None:
        _check_view(recipe.test_view, f"{where}.test_view")
    return replace(recipe, model=_checked_model(recipe, where))


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML text, which :func:`load` reads back; defaults are written out."""
    values = asdict(completed(recipe))
    del values["name"]
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def completed(recipe: Recipe) -> Recipe:
    """Return a recipe with the defaults of its method's constructor and optimizer filled in."""
    kind = method_class(recipe.method)
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {name: entry.default for name, entry in parameters.items() if name not in GIVEN}
    return replace(recipe, model={**defaults, **recipe.model}, optimizer=recipe.optimizer or kind.default_optimizer)


def _plain(value: Any) -> Any:
    """Return a value in the form that YAML's safe dumper takes: lists instead of tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def method_named(name: object) -> str:
    """Return the name of a method's class from a name in upper or lower case; ValueError if there is none."""
    known = {each.lower(): each for each in _classes()}
    if str(name).lower() not in known:
        begin_anew = ", ".join(each for each in known if each != "boost")  # which goes on from a run
        raise ValueError(f"method: expected one of {begin_anew}, got {name!r}")
    return known[str(name).lower()]


def _classes() -> dict[str, type[ClusteringMethod]]:
    """Return every method class in deepclust_ext.methods by its name."""
    return {
        key: entry
        for key, entry in vars(methods).items()
        if isinstance(entry, type) and issubclass(entry, ClusteringMethod) and not inspect.isabstract(entry)
    }


def method_class(name: str, where: str = "recipe") -> type[ClusteringMethod]:
    """Return the method of a name."""
    classes = _classes()
    missing = getattr(vars(methods).get(name), "__abstractmethods__", ())
    if name not in classes and missing:
        raise ValueError(
            f"{where}.method: expected a whole method, got {name!r}, which lacks {', '.join(sorted(missing))}"
        )
    if name not in classes:
        raise ValueError(f"{where}.method: expected one of {', '.join(classes)}, got {name!r}{nearest(name, classes)}")
    return classes[name]


def _checked_model(recipe: Recipe, where: str) -> dict[str, Any]:
    """Return the arguments of the method, checked against its constructor's annotations."""
    constructor = method_class(recipe.method, where).__init__
    hints = inspect.get_annotations(constructor)
    known = [key for key in inspect.signature(constructor).parameters if key not in GIVEN]
    check_keys(recipe.model, known, f"{where}.model")
    return {key: check(value, hints[key], f"{where}.model.{key}") for key, value in recipe.model.items()}


def _check_view(view: Any, where: str) -> None:
    """Require a view's name and settings to be known and of their types; ValueError otherwise."""
    if not isinstance(view, Mapping) or "name" not in view:
        raise ValueError(f"{where}: expected a view, with the key 'name', got {view!r}")
    name = view["name"]
    if name not in VIEWS:
        raise ValueError(f"{where}.name: expected one of {', '.join(VIEWS)}, got {name!r}{nearest(name, VIEWS)}")
    parameters = inspect.signature(VIEWS[name][0]).parameters
    settings = {key: value for key, value in view.items() if key != "name"}
    check_keys(settings, list(parameters), where)
    for key, value in settings.items():
        check(value, parameters[key].annotation, f"{where}.{key}")
    if name == "sequential":
        for place, part in enumerate(settings.get("views", ())):
            _check_view(part, f"{where}.views.{place}")


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:  # whose own message takes several lines
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}: expected YAML, got: {error.problem}{line}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected YAML, got: {error}") from error


def _override(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        found: Any = values.setdefault(section, {})
        if not isinstance(found, dict):
            kind = "a list, which is set as a whole" if isinstance(found, list) else f"the value {found!r}"
            raise ValueError(f"{where}.{key}: expected sections before its last part, got {section}, {kind}")
        values = found
    values[last] = value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is given twice; by itself it silently takes the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
