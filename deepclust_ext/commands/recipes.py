"""List the bundled recipes, or print one: a file with all settings of a run of a method on a data set.

Example:
  deepclust-ext recipes
  deepclust-ext recipes hadis-cifar10 > mine.yaml
"""

import argparse

from deepclust_ext.commands._output import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a recipe, or the path of a file")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the names or the recipe and return the exit status 0."""
    import json
    from dataclasses import asdict

    from deepclust_ext import recipes
    from deepclust_ext.ops._checks import counted

    if args.name is not None:
        recipe = recipes.completed(recipes.load(args.name))
        print(json.dumps(asdict(recipe), indent=2) if args.json else recipes.dump(recipe), end="\n" * args.json)
        return 0
    known = [recipes.load(name) for name in recipes.names()]
    if args.json:
        print(json.dumps([recipe.name for recipe in known], indent=2))
        return 0
    for recipe in known:
        data = recipe.data
        what = f"{data.images} images of {data.size} x {data.size}, K = {data.num_clusters}, {recipe.backbone.name}"
        published = "" if recipe.published.acc is None else f", published ACC {recipe.published.acc} %"
        print(f"{recipe.name:22} {what}, {counted(recipe.epochs, 'epoch')}{published}")
    return 0
