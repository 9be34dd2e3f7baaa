"""Assign each image to a cluster: the images of a run, or others that its trained model has not seen.

Writes a table of path, cluster, confidence and second cluster. A high confidence means that an image is clear; it is no
calibrated probability.

Example:
  deepclust-ext cluster runs/photos --into sorted --mode symlink
  deepclust-ext cluster runs/photos new-photos --out new.csv
  torchrun --nproc-per-node 4 -m deepclust_ext cluster runs/photos more-photos --out more.csv
"""

import argparse
from pathlib import Path
from typing import Any

from deepclust_ext.commands._arguments import add_device, add_run, device
from deepclust_ext.commands._backbone import add_weights
from deepclust_ext.commands._output import add_json, refuse_to_replace

ON_RANKS = True  # of torchrun, which share the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run(parser)
    table = "the table (default: clusters.csv in RUN; of other images in DIR, else here)"
    parser.add_argument("--out", type=Path, help=table)
    parser.add_argument("--into", type=Path, metavar="DIR", help="sort the files into a folder for each cluster")
    parser.add_argument("--mode", choices=("symlink", "copy", "list"), default="symlink", help="default: %(default)s")
    add_weights(parser)
    add_json(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Write the table, sort files if asked to, print the sizes of clusters and return the exit status 0."""
    import json

    from deepclust_ext.data.words import item_of
    from deepclust_ext.distributed import num_ranks, rank_of
    from deepclust_ext.ops._checks import counted
    from deepclust_ext.runs import open_run
    from deepclust_ext.runs.clusters import check_into, check_sorting, sort_files, write_clusters
    from deepclust_ext.training.files import CLUSTERS_NAME

    own = args.out is None and not args.data  # a table that is made anew from the run's last checkpoint
    path = args.out or (args.run_folder if own else args.into or Path()) / CLUSTERS_NAME
    if args.out is not None or (args.data and args.into is None):  # DIR has to be empty anyway
        refuse_to_replace(path, args.overwrite)
    opened = open_run(args.run_folder, device=device(args), weights=args.weights)
    if own:
        refuse_to_replace(path, overwrite=True)
    if args.into is not None:
        check_into(args.into, opened, args.data)
    images = opened.images(*args.data)
    if args.into is not None:
        check_sorting(images, mode=args.mode)
    loop: dict[str, Any] = {"num_workers": args.workers, "gather_distributed": num_ranks() > 1}
    _, shares = opened.trained.infer(images, batch_size=opened.recipe.batch_size, **loop)
    if rank_of():  # rank 0 writes what all have found
        return 0
    sorted_into = None
    if args.into is not None:
        sort_files(args.into, images, shares, mode=args.mode)
        sorted_into = str(args.into)
    write_clusters(path, images, shares)
    sizes = shares.argmax(1).bincount(minlength=shares.shape[1]).tolist()
    if args.json:
        skipped = [{"path": name, "reason": reason} for name, reason in getattr(images, "skipped", ())]
        facts = {"images": len(shares), "sizes": sizes, "table": str(path), "into": sorted_into, "skipped": skipped}
        print(json.dumps(facts, indent=2))
        return 0
    found = f"{counted(len(shares), item_of(images))} in {sum(size > 0 for size in sizes)}"
    print(f"{found} of {counted(len(sizes), 'cluster')}, written: {path}")
    print("sizes: " + ", ".join(f"{cluster}: {size}" for cluster, size in enumerate(sizes)))
    if sorted_into:
        print(f"sorted into {sorted_into}, by {args.mode}")
    return 0
