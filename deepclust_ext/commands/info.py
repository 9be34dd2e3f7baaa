"""Describe this installation: versions, what the native library was built for, and why something is missing.

Example:
  deepclust-ext info --json
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of the command to a parser."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs to read")


def run(args: argparse.Namespace) -> int:
    """Print the facts and return the exit status 0."""
    import json

    from deepclust_ext.commands._installation import collect_info, format_info

    info = collect_info()
    print(json.dumps(info, indent=2) if args.json else format_info(info))
    return 0
