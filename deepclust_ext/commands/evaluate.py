"""Score the clusters of a run against true labels, which training never sees.

Labels are the names of the images' folders ("folders"), labels in the data ("own": of an .npz file, or of a data set
given by its name), or a CSV file with the columns path and label, whose paths are relative to DATA.

Example:
  deepclust-ext evaluate runs/photos --labels folders
  deepclust-ext evaluate runs/photos test-photos --labels labels.csv --json
  deepclust-ext evaluate runs/scans --labels own
  torchrun --nproc-per-node 4 -m deepclust_ext evaluate runs/photos --labels folders
"""

import argparse

from deepclust_ext.commands._arguments import add_device, add_labels, add_run, add_seed, device
from deepclust_ext.commands._backbone import add_weights
from deepclust_ext.commands._output import add_json

ON_RANKS = True  # of torchrun, which share the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    add_run(parser)
    add_labels(parser, "those that `train` was told")
    add_seed(parser, "k-means")
    add_weights(parser)
    add_json(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Print the scores and return the exit status 0."""
    import json

    from deepclust_ext.data.words import item_of
    from deepclust_ext.distributed import num_ranks, rank_of
    from deepclust_ext.runs import open_run
    from deepclust_ext.runs.scores import check_labels, format_scores, score_run
    from deepclust_ext.training.files import without_nan

    opened = open_run(args.run_folder, device=device(args), weights=args.weights)
    check_labels(opened, args.data, args.labels)
    images = opened.images(*args.data, labels=args.labels)
    shared = num_ranks() > 1
    scores = score_run(opened, images, seed=args.seed, num_workers=args.workers, gather_distributed=shared)
    if rank_of():  # rank 0 scores what all have found
        return 0
    print(json.dumps(without_nan(scores), indent=2) if args.json else format_scores(scores, item_of(images)))
    return 0
