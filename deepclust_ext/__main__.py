"""The command line: `deepclust-ext COMMAND`, or `python -m deepclust_ext COMMAND`."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

import deepclust_ext
from deepclust_ext import commands


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, a function from the arguments to the exit status.

    Every module of deepclust_ext.commands is a command: the first line of its docstring is its help, and it has the
    functions `add_arguments(parser)` and `run(arguments)`.
    """
    parser = argparse.ArgumentParser("deepclust-ext", description=deepclust_ext.__doc__)
    parser.add_argument("--version", action="version", version=deepclust_ext.__version__)
    chosen = parser.add_subparsers(metavar="COMMAND", required=True)
    for found in pkgutil.iter_modules(commands.__path__):
        command = importlib.import_module(f"{commands.__name__}.{found.name}")
        description = (command.__doc__ or "").strip()
        subparser = chosen.add_parser(found.name, help=description.split("\n")[0], description=description)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    An expected failure is one line on standard error and the status 1; an interruption by the user is a line and 130.
    """
    try:
        parsed = make_parser().parse_args(arguments)
        status: int = parsed.run(parsed)
    except KeyboardInterrupt as error:
        print(f"deepclust-ext: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except (FloatingPointError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"deepclust-ext: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
