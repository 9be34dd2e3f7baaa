"""Write a feature row for each image, by the trained model of a run or by a frozen network.

A .npz file has the arrays rows (N, D) and names (N,). A .npy file has the rows, and a .txt next to it has a name on
each line. A .csv file has a column for the path and one for each feature. Rows of a run have length 1. With --backbone
there is no RUN: rows of DATA are the network's output, and `train`, `cluster` and `sweep` accept the file as features.

Example:
  deepclust-ext embed runs/photos --out photos.npz
  deepclust-ext embed runs/photos new-photos --format csv
  deepclust-ext embed photos --backbone mypackage.nets:build --weights net.pth --out features.npz
  torchrun --nproc-per-node 4 -m deepclust_ext embed runs/photos more-photos --out more.npz
"""

import argparse
from pathlib import Path
from typing import Any

from deepclust_ext.commands._arguments import add_device, add_run, device
from deepclust_ext.commands._backbone import add_backbone, backbone
from deepclust_ext.commands._given import require
from deepclust_ext.commands._output import add_json, refuse_to_replace

ON_RANKS = True  # of torchrun, which share the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run(parser)
    add_backbone(parser)
    parser.add_argument("--format", choices=("npz", "npy", "csv"), help="default: as --out ends, else npz")
    parser.add_argument("--out", type=Path, help="the file (default: embedding.FORMAT here)")
    add_json(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Write the rows, print their shape and return the exit status 0."""
    import json
    import sys

    from deepclust_ext.distributed import num_ranks, rank_of
    from deepclust_ext.ops._checks import counted
    from deepclust_ext.runs import Source, open_run
    from deepclust_ext.runs.rows import FORMATS, check_names, names_beside, write_rows
    from deepclust_ext.runs.source import names_of

    ending = "" if args.out is None else args.out.suffix.removeprefix(".")
    kind = args.format or ending or "npz"
    expected = f"--out: expected a name that ends in .{kind if kind in FORMATS else 'npz'}, got {args.out}"
    require(kind in FORMATS and (args.out is None or ending == kind), expected)
    path = refuse_to_replace(args.out or Path(f"embedding.{kind}"), args.overwrite)
    if kind == "npy":
        refuse_to_replace(names_beside(path), args.overwrite)
    network = backbone(args, of_run=True)
    loop: dict[str, Any] = {"num_workers": args.workers}
    if network is not None:
        images: Any = Source((str(args.run_folder), *args.data), network=network).open(device=device(args), **loop)
        check_names(path, names_of(images))
        rows = images.stored()
        for note in images.notes[1:]:
            print(f"deepclust-ext: {note}", file=sys.stderr)
    else:
        opened = open_run(args.run_folder, device=device(args), weights=args.weights)
        images = opened.images(*args.data)
        check_names(path, names_of(images))
        shared = num_ranks() > 1
        rows, _ = opened.trained.infer(images, batch_size=opened.recipe.batch_size, gather_distributed=shared, **loop)
    if rank_of():  # rank 0 writes what all have found
        return 0
    written = write_rows(path, rows, names_of(images))
    shape = list(rows.shape)
    if args.json:
        print(json.dumps({"rows": shape, "files": [str(file) for file in written]}, indent=2))
    else:
        print(
            f"{counted(shape[0], 'row')} of {counted(shape[1], 'number')}, written: {' and '.join(map(str, written))}"
        )
    return 0
