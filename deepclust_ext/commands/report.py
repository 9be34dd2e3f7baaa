"""Write the report of a run again, for example with labels: report.html, to open in a browser.

The page works offline. It shows what each cluster holds, the neighbors of an image on a click, a map of all images, the
curves of the run, its recipe, and with labels scores and the confusion matrix.

Example:
  deepclust-ext report runs/photos --labels folders
  deepclust-ext report runs/photos --out photos.html
"""

import argparse
from pathlib import Path

from deepclust_ext.commands._arguments import add_device, add_labels, add_run_folder, device
from deepclust_ext.commands._backbone import add_weights
from deepclust_ext.commands._output import add_json, refuse_to_replace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run_folder(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in RUN)")
    add_labels(parser, "those that `train` was told")
    add_weights(parser)
    add_json(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page, print where it is and return the exit status 0."""
    import json

    from deepclust_ext.data.words import item_of
    from deepclust_ext.ops._checks import counted
    from deepclust_ext.runs import open_run
    from deepclust_ext.runs.page import write_page
    from deepclust_ext.training.files import REPORT_NAME

    own = args.out is None  # a page that is made anew from the run's last checkpoint
    if not own:
        refuse_to_replace(args.out, args.overwrite)
    opened = open_run(args.run_folder, device=device(args), weights=args.weights)
    if own:
        refuse_to_replace(args.run_folder / REPORT_NAME, overwrite=True)
    images = opened.images(labels=args.labels)
    rows, shares = opened.trained.infer(images, batch_size=opened.recipe.batch_size, num_workers=args.workers)
    path = write_page(opened, images, rows, shares, args.out)
    count, clusters, size = len(rows), shares.shape[1], path.stat().st_size
    if args.json:
        print(json.dumps({"images": count, "clusters": clusters, "page": str(path), "bytes": size}, indent=2))
    else:
        found = f"{counted(count, item_of(images))} in {counted(clusters, 'cluster')}"
        print(f"{found}, {size / 1e6:.1f} MB, to open in a browser: {path}")
    return 0
