"""The command line: `deepclust-ext COMMAND`, or `python -m deepclust_ext COMMAND`."""

import argparse
import json
import sys
from collections.abc import Sequence

import deepclust_ext
from deepclust_ext.commands import demo
from deepclust_ext.commands.info import collect_info, format_info


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, a function from the arguments to the exit status."""
    parser = argparse.ArgumentParser("deepclust-ext", description=deepclust_ext.__doc__)
    parser.add_argument("--version", action="version", version=deepclust_ext.__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    info = commands.add_parser("info", help="what was built, for which torch and devices, and why not")
    info.add_argument("--json", action="store_true", help="print JSON for programs to read")
    info.set_defaults(run=_run_info)
    demonstration = commands.add_parser("demo", help="cluster real images, here and now", description=demo.__doc__)
    demo.add_arguments(demonstration)
    demonstration.set_defaults(run=demo.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an expected failure is one line on standard error."""
    parsed = make_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"deepclust-ext: {error}", file=sys.stderr)
        return 1
    return status


def _run_info(arguments: argparse.Namespace) -> int:
    info = collect_info()
    print(json.dumps(info, indent=2) if arguments.json else format_info(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
