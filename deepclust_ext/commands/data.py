"""Say what a folder of images holds: counts, sizes, types, and which files would be left out and why.

Example:
  deepclust-ext data photos
  deepclust-ext data scans.npz --json
"""

import argparse
from pathlib import Path

from deepclust_ext.commands._arguments import add_labels
from deepclust_ext.commands._output import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("data", metavar="DATA", nargs="+", help="folders, files, lists, arrays, or a data set's name")
    parser.add_argument("--root", type=Path, help="folder of a data set of the papers; DATA is then its name")
    add_labels(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what was found and return the exit status 0."""
    import json

    from deepclust_ext.runs import Source
    from deepclust_ext.runs.look import describe, format_description

    root = None if args.root is None else str(args.root)
    found = describe(Source(tuple(args.data), root, labels=args.labels))
    print(json.dumps(found, indent=2) if args.json else format_description(found))
    return 0
