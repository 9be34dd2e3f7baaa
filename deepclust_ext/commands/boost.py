"""Train the network of a run further, by its reliable images and their neighbors, and cluster the images again.

Any run of hadis, sacc, pici or clc can be boosted, even while it is training. The new run takes over its images,
network and views, and does not need the old run afterwards. `train --resume` continues a boost that was stopped. If it
was stopped before its first checkpoint, start it again with the same command.

Example:
  deepclust-ext boost runs/photos --out runs/photos-boosted
  deepclust-ext boost runs/photos --set optimizer.lr=0.0001 --epochs 20 --out runs/photos-slower
  deepclust-ext train --resume --out runs/photos-boosted
"""

import argparse
from dataclasses import replace
from pathlib import Path

from deepclust_ext.commands._arguments import add_device, add_scores, add_set, add_steps, device, seed
from deepclust_ext.commands._backbone import add_weights
from deepclust_ext.commands._given import given

ON_RANKS = True  # of torchrun, which share the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run, or its checkpoint.pt")
    add_set(parser, "the recipe boost-digits")
    add_scores(parser)
    add_weights(parser)
    add_steps(parser)
    parser.add_argument("--seed", type=seed, help="of everything random (default: the run's)")
    parser.add_argument("--out", type=Path, help="folder of the new run (default: RUN-boosted)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Train, print where the results are, and return the exit status 0."""
    from deepclust_ext.distributed import rank_of
    from deepclust_ext.ops._checks import counted
    from deepclust_ext.recipes import changed
    from deepclust_ext.recipes.boost import boost_recipe, check_settings
    from deepclust_ext.runs import Options, open_run, train
    from deepclust_ext.runs.prepare import check_parts
    from deepclust_ext.runs.train import check_folder, closing_words
    from deepclust_ext.training.files import CHECKPOINT_NAME

    folder = args.run_folder.parent if args.run_folder.name == CHECKPOINT_NAME else args.run_folder
    out = args.out or folder.resolve().with_name(f"{folder.resolve().name}-boosted")
    check_folder(out, resume=False, overwrite=args.overwrite)
    overrides = dict(args.set) | given(args, "batch_size", "sync_batch_norm")
    check_settings(overrides)
    start = open_run(folder, device=device(args), weights=args.weights)
    recipe = changed(boost_recipe(start.recipe), overrides, "set")
    if args.epochs is not None:
        recipe = recipe.with_epochs(args.epochs)
    check_parts(recipe)  # before images are read
    source = start.source if args.labels is None else replace(start.source, labels=args.labels)
    images = start.images(labels=args.labels, say_notes=False, cache_folder=out)  # the new run's log says them
    options = Options(
        seed=start.record["config"]["seed"] if args.seed is None else args.seed,
        device=device(args),
        num_workers=args.workers,
        overwrite=args.overwrite,
        **given(args, "precision", "compile", "score_every", "profile"),
    )
    reasons = (f"boosts {start.path}, {start.recipe.method} after {counted(len(start.history), 'epoch')}",)
    finished = train(recipe, images, out, options, source=source, reasons=reasons, start=start)
    if not rank_of():
        print(closing_words(finished))
    return 0
