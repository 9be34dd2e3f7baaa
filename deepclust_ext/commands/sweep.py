"""Cluster the rows of a run again for a range of K, to help choose the number of clusters.

For each K, a table, sweep.csv and sweep.png show the silhouette, the stability over random parts of the images, the
sizes of the smallest and the largest cluster, and the inertia. No labels are read and nothing is trained. These scores
favor the K that the network was trained with: docs/sweep.md says what they can and cannot tell.

Example:
  deepclust-ext sweep runs/photos --clusters 5:50
  deepclust-ext sweep runs/photos --clusters 10:200:10 --seeds 10 --out photos-sweep --json
"""

import argparse
from pathlib import Path
from typing import Any

from deepclust_ext.commands._arguments import add_device, add_run, add_seed, at_least, device
from deepclust_ext.commands._backbone import add_weights
from deepclust_ext.commands._output import add_json, refuse_to_replace


def clusters(text: str) -> range:
    """Read FIRST:LAST or FIRST:LAST:STEP; LAST is part of it."""
    numbers = text.split(":")
    if not all(number.removeprefix("-").isdecimal() for number in numbers) or not 2 <= len(numbers) <= 3:
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST or FIRST:LAST:STEP, such as 5:50, got {text!r}")
    first, last, step = map(int, [*numbers, "1"][:3])
    if not 1 <= first <= last or step < 1:
        raise argparse.ArgumentTypeError(f"expected 1 <= FIRST <= LAST and a STEP of at least 1, got {text!r}")
    return range(first, last + 1, step)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run(parser)
    parser.add_argument("--clusters", type=clusters, required=True, metavar="FIRST:LAST[:STEP]", help="each K to try")
    parser.add_argument(
        "--seeds", type=at_least(2), default=5, help="how many random parts to compare (default: %(default)s)"
    )
    add_seed(parser)
    add_weights(parser)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for sweep.csv and sweep.png (default: here)")
    add_json(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Write and print the scores of every K, and return the exit status 0."""
    import json
    from dataclasses import asdict

    from deepclust_ext.evaluation.sweep import check_counts, format_sweep, sweep
    from deepclust_ext.recipes.defaults import SCHEDULES
    from deepclust_ext.runs import open_run
    from deepclust_ext.runs.sweep import FIGURE_NAME, TABLE_NAME, write_sweep

    for name in (TABLE_NAME, FIGURE_NAME):
        refuse_to_replace(args.out / name, args.overwrite)
    opened = open_run(args.run_folder, device=device(args), weights=args.weights)
    opened.check_outside(args.out, "out", args.data)  # the figure is an image
    images: Any = opened.images(*args.data)
    check_counts(args.clusters, len(images))  # before anything is embedded
    rows, _ = opened.trained.infer(images, batch_size=opened.recipe.batch_size, num_workers=args.workers)
    results = sweep(rows, args.clusters, seeds=args.seeds, seed=args.seed)
    trained = opened.recipe.data.num_clusters
    files, note = write_sweep(args.out, results, trained=trained)
    if args.json:
        facts = {"images": len(rows), "trained_clusters": trained, "seeds": args.seeds, "files": list(map(str, files))}
        print(json.dumps({**facts, "sweep": [asdict(scores) for scores in results]}, indent=2))
    else:
        print(format_sweep(results))
        if opened.recipe.method in (*SCHEDULES, "Boost"):
            print(f"the network was trained with {trained} clusters, which favors {trained}")
        else:
            print(f"{opened.recipe.method} leaves the rows as they are: no number of clusters is favored")
        print(f"written: {' and '.join(map(str, files))}" + (note and f"; {note}"))
    return 0
