"""Cluster 1,797 scanned digits without labels: train, score, and draw the result.

Nothing is downloaded: the scans ship with scikit-learn. Labels are read only after training, for scores and figure.

Example:
  deepclust-ext demo --method sacc
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from deepclust_ext.commands._arguments import add_out, add_profile, add_seed, add_threads, at_least

ENDING = "-digits"  # of the recipes to choose from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    choices = _read_recipes()
    parser.add_argument("--method", choices=choices, default="hadis", help="what to train (default: %(default)s)")
    add_seed(parser)
    for name, what in (("epochs", "passes over the scans"), ("batch_size", "images of a step")):
        defaults = ", ".join(f"{method} {numbers[name]}" for method, numbers in choices.items())
        parser.add_argument("--" + name.replace("_", "-"), type=at_least(1), help=f"{what} (default: {defaults})")
    add_out(parser, "folder for results (default: runs/demo-METHOD-seedSEED)")
    add_threads(parser)
    add_profile(parser)


def _read_recipes() -> dict[str, dict[str, Any]]:
    """Return each method's recipe and its epochs, without importing the rooms that check recipes."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "recipes").glob(f"*{ENDING}.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "base" in values["model"]:  # goes on from a run
            continue
        values["epochs"] = sum(phase["epochs"] for phase in values["phases"])
        found[path.stem.removesuffix(ENDING)] = values
    return found


def run(args: argparse.Namespace) -> int:
    """Run the demo with the parsed options, print the scores and return the exit status 0."""
    import torch

    from deepclust_ext import recipes
    from deepclust_ext.cluster import KMeans
    from deepclust_ext.data import Digits
    from deepclust_ext.evaluation import score_clusters
    from deepclust_ext.runs import Options, Source
    from deepclust_ext.runs.scored import train_scored
    from deepclust_ext.runs.train import check_folder

    out = args.out or Path("runs") / f"demo-{args.method}-seed{args.seed}"
    check_folder(out, resume=args.resume, overwrite=args.overwrite)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    overrides = {} if args.batch_size is None else {"batch_size": args.batch_size}
    recipe = recipes.load(args.method + ENDING, overrides)
    if args.epochs is not None:
        recipe = recipe.with_epochs(args.epochs)
    digits = Digits()
    pixels = digits.images.flatten(1)
    num_clusters = recipe.data.num_clusters
    predicted = KMeans(num_clusters, n_init=20, random_state=args.seed).fit_predict(pixels)
    run = train_scored(
        recipe,
        digits,
        out,
        Options(seed=args.seed, resume=args.resume, overwrite=args.overwrite, profile=args.profile),
        source=Source(("digits",)),
        baselines={"pixels": score_clusters(digits.labels, predicted, pixels, num_clusters)},
    )
    print(f"the page of the run, to open in a browser: {run.path / 'report.html'}")
    return 0
