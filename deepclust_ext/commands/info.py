"""Describe this installation: versions, what the native library was built for, and why something is missing.

Example:
  deepclust-ext info --json
"""

import argparse

from deepclust_ext.commands._output import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of the command to a parser."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the facts and return the exit status 0."""
    import json

    from deepclust_ext.commands._installation import collect_info, format_info

    info = collect_info()
    print(json.dumps(info, indent=2) if args.json else format_info(info))
    return 0
