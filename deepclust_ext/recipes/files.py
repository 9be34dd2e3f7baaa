"""The recipes that come with the package, and those of a user's files."""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from deepclust_ext import methods
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.recipes.checks import build, check, check_keys, nearest
from deepclust_ext.recipes.schema import Recipe

FOLDER = Path(__file__).parent

#: Arguments of every method that come from the data and the backbone.
GIVEN = ("self", "backbone", "feature_dim", "num_clusters")


def names(ending: str = "") -> list[str]:
    """Return the names of the bundled recipes, METHOD-DATASET, in alphabetical order.

    Args:
        ending: Of those to return, such as "-digits".
    """
    return sorted(path.stem for path in FOLDER.glob(f"*{ending}.yaml"))


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe.

    Args:
        name: Of a bundled recipe, or the path of a file, which ends in ".yaml".
        overrides: New values by dotted keys, such as {"optimizer.lr": 0.1}.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such recipe, the file is no YAML, a key is unknown, missing or given twice, or a
            value is of the wrong type or out of range.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        if str(name) not in names():
            known = ", ".join(names())
            raise ValueError(
                f"recipe: expected one of {known}, or a file .yaml, got {str(name)!r}{nearest(name, names())}"
            )
        path = FOLDER / f"{name}.yaml"
    values = _read(path)
    check_keys(values, [key for key in inspect.signature(Recipe).parameters if key != "name"], path.name)
    for key, value in (overrides or {}).items():
        _override(values, key, value, path.name)
    recipe = replace(build(Recipe, values, path.name), name=path.stem)
    return replace(recipe, model=_checked_model(recipe, path.name))


def method_class(name: str, where: str = "recipe") -> type[ClusteringMethod]:
    """Return the method of a name: every class of deepclust_ext.methods that is one is found, no list is kept."""
    classes = {
        key: entry
        for key, entry in vars(methods).items()
        if isinstance(entry, type) and issubclass(entry, ClusteringMethod) and not inspect.isabstract(entry)
    }
    if name not in classes:
        raise ValueError(f"{where}.method: expected one of {', '.join(classes)}, got {name!r}{nearest(name, classes)}")
    return classes[name]


def _checked_model(recipe: Recipe, where: str) -> dict[str, Any]:
    """Return the arguments of the method, checked against its constructor's annotations."""
    constructor = method_class(recipe.method, where).__init__
    hints = typing.get_type_hints(constructor)
    known = [key for key in inspect.signature(constructor).parameters if key not in GIVEN]
    check_keys(recipe.model, known, f"{where}.model")
    return {key: check(value, hints[key], f"{where}.model.{key}") for key, value in recipe.model.items()}


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, got: {error}") from error


def _override(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected a section before the last part of {key!r}, got the value {values!r}")
    values[last] = value


class _Loader(yaml.SafeLoader):
    """The safe loader, which by itself takes the last of two values of one key without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
