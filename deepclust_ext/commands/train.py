"""Train a method on images or on rows of features, without labels, and cluster them.

Without --recipe, a recipe is chosen from the images, and the log says which and why. The run's folder keeps everything:
recipe, history, checkpoint, clusters, log, and an HTML report.

Example:
  deepclust-ext train photos --clusters 10 --out runs/photos
  deepclust-ext train --resume --out runs/photos
  deepclust-ext train features.npy --clusters 1000
  deepclust-ext train photos --clusters 20 --backbone timm:vit_small_patch14_dinov2 --weights dinov2.pth
  deepclust-ext train cifar10 --root data --recipe hadis-cifar10 --device cuda --precision bf16
  torchrun --nproc-per-node 4 -m deepclust_ext train photos --clusters 10 --out runs/photos-by-4
"""

import argparse
from dataclasses import replace
from pathlib import Path

from deepclust_ext.commands._arguments import add_device, add_out, add_recipe, add_scores, add_seed, add_steps, device
from deepclust_ext.commands._backbone import add_backbone, backbone
from deepclust_ext.commands._given import given, require

ON_RANKS = True  # of torchrun, which share the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    what = "folders, files, lists, arrays, or a data set's name"
    scale = "black and white by the type of the values, or by percentiles of all (default: %(default)s)"
    parser.add_argument("data", metavar="DATA", nargs="*", default=[], help=what)
    add_recipe(parser)
    parser.add_argument("--root", help="folder of a data set of the papers; DATA is then its name")
    parser.add_argument("--scale", choices=("type", "percentile"), default="type", help=scale)
    add_scores(parser)
    add_backbone(parser)
    add_steps(parser)
    add_seed(parser, default=None)
    add_out(parser, "folder of the run (default: runs/DATA-seedSEED)")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Train, print where the results are, and return the exit status 0."""
    from deepclust_ext.distributed import rank_of
    from deepclust_ext.runs import Options, Source, train
    from deepclust_ext.runs.prepare import Wishes, prepare, prepare_to_resume
    from deepclust_ext.runs.train import check_folder, closing_words, recorded_options

    overrides = dict(args.set) | given(args, "batch_size", "sync_batch_norm")
    wishes = Wishes(args.clusters, args.method, args.recipe, args.epochs, overrides)
    source = Source(tuple(args.data), args.root, None, args.scale, args.labels, backbone(args, of_run=args.resume))
    known = args.resume or args.recipe or args.clusters
    require(args.data or args.resume, "DATA: expected a folder of images, got none")
    require(args.out or not args.resume, "--out: expected the folder of the run to resume, got none")
    require(known, "--clusters: expected how many, since no recipe says so, got none")
    out = args.out or Path("runs") / f"{source.name}-seed{args.seed or 0}"
    check_folder(out, resume=args.resume, overwrite=args.overwrite, data=source.data)
    options = replace(
        recorded_options(out) if args.resume else Options(),
        device=device(args),
        num_workers=args.workers,
        resume=args.resume,
        overwrite=args.overwrite,
        **given(args, "seed", "precision", "compile", "score_every", "profile"),
    )
    how = {name: getattr(options, name) for name in ("score_every", "device", "num_workers")}
    if args.resume:
        ready = prepare_to_resume(out, wishes, source, weights=args.weights, **how)
    else:
        ready = prepare(source, wishes, cache_folder=out, **how)
    finished = train(ready.recipe, ready.images, out, options, source=ready.source, reasons=ready.reasons)
    if not rank_of():
        print(closing_words(finished))
    return 0
