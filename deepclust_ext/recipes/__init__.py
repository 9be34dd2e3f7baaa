"""Recipes: all settings of a run of a method on a data set, one YAML file each, named METHOD-DATASET."""

from deepclust_ext.recipes.files import changed, completed, dump, load, names
from deepclust_ext.recipes.schema import Recipe

__all__ = ["Recipe", "changed", "completed", "dump", "load", "names"]
