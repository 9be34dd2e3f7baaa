"""The command line: `deepclust-ext COMMAND`, or `python -m deepclust_ext COMMAND`."""

import argparse
import importlib
import os
import pkgutil
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import shtab

import deepclust_ext
from deepclust_ext import commands
from deepclust_ext.commands._ranks import is_first_rank, joined, rank_name

#: What messages call an argument whose option has another name, of which the first that the command has counts.
_OPTIONS = {
    "num_clusters": ("clusters",),
    "run": ("run_folder", "out"),
    "recipe": ("name",),
    "backbone.name": ("backbone",),
    **dict.fromkeys(("images", "features", "sources", "name", "data.images"), ("data",)),
}
#: What a recipe says too, so that only an option that was given is to be named.
_SETTINGS = ("backbone", "backbone.name", "batch_size", "epochs", "mean", "num_clusters", "std")

#: What commands end with where not the program is at fault.
_FAILURES = (FloatingPointError, ImportError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse prints all options first."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # values too, such as -1:3 and -0.5,0.5,0.5

    def error(self, message: str) -> NoReturn:
        """Exit with the status 2."""
        self.exit(2, f"deepclust-ext: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`, a function from the arguments to the exit status.

    Every module of deepclust_ext.commands without a leading underscore is a command. Its docstring is its help, and the
    first line of that is the short help. It has the functions `add_arguments(parser)` and `run(arguments)`. If torchrun
    starts several ranks, only commands with `ON_RANKS = True` run.
    """
    begin = "To begin: deepclust-ext train FOLDER --clusters K. Every COMMAND has --help with examples."
    parser = _Parser("deepclust-ext", description=deepclust_ext.__doc__, epilog=begin)
    parser.add_argument("--version", action="version", version=deepclust_ext.__version__)
    shtab.add_argument_to(parser, help="print what completes commands in a shell, for it to read, and exit")
    chosen = parser.add_subparsers(metavar="COMMAND", required=True)
    for found in pkgutil.iter_modules(commands.__path__):
        if found.name.startswith("_"):
            continue
        command = importlib.import_module(f"{commands.__name__}.{found.name}")
        description = (command.__doc__ or "").strip()
        subparser = chosen.add_parser(
            found.name,
            help=description.split("\n")[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show where in the code an error comes from")
        for action in subparser._actions:  # without a hint a shell completes no names of files
            if action.nargs != 0 and not action.choices and action.type in (None, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        subparser.set_defaults(run=command.run, parser=subparser, on_ranks=getattr(command, "ON_RANKS", False))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    An expected failure prints one line on standard error and has status 1; wrong options have status 2. After SIGINT
    the status is 130, and after SIGTERM, if a run has saved its state, 143.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    parsed = _parsed(arguments)
    try:
        with warnings.catch_warnings(), _terminable(), joined(parsed):
            warnings.showwarning = _show_warning
            status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if is_first_rank():  # all have been asked at once
            _say(str(error) or "interrupted", parsed.debug)
        return getattr(error, "status", 130)
    except BrokenPipeError:  # whoever read the output has enough
        sys.stderr.close()
        return 0
    except argparse.ArgumentError as error:  # of options that make no sense together
        _say(str(error), parsed.debug)
        return 2
    except _FAILURES as error:
        given = sys.argv[1:] if arguments is None else arguments
        _say(_as_given(_words(error), parsed, given[1:]), parsed.debug)
        return 1
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command; DATA may also follow options, which argparse alone does not allow."""
    parsed, left_over = make_parser().parse_known_args(arguments)
    options = [word for word in left_over if word.startswith("-")]
    if options or (left_over and not hasattr(parsed, "data")):
        parsed.parser.error(f"unrecognized arguments: {' '.join(options or left_over)}")
    if left_over:
        parsed.data = [*parsed.data, *left_over]
    return parsed


class _Terminated(KeyboardInterrupt):
    status = 143


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as SIGINT does, so that nothing half written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated("terminated")

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _words(error: Exception) -> str:
    """Return what to say of an expected failure."""
    if isinstance(error, KeyError):
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror is not None:  # the system's own, which begins with a number
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        return f"{name}: cannot be read or written: {error.strerror}"
    return str(error) or type(error).__name__


def _as_given(message: str, parsed: argparse.Namespace, given: Sequence[str]) -> str:
    """Return a message that begins with the argument of a function as the option by which the user gave it."""
    name, colon, rest = message.partition(":")
    if name in given:  # a folder of that name
        return message
    if name.startswith("set."):
        return f"--set {message.removeprefix('set.')}"
    for key, _ in getattr(parsed, "set", ()):
        if f"{name}.".startswith(f"{key}."):
            return f"--set {message}"
        if key.endswith(f".{name}"):
            return f"--set {key}:{rest}"
    options = {action.dest: (*action.option_strings, action.metavar)[0] for action in parsed.parser._actions}
    option = next((options[each] for each in (name, *_OPTIONS.get(name, ())) if each in options), name)
    is_given = any(word.partition("=")[0] == option for word in given)
    return message if name in _SETTINGS and not is_given else f"{option}{colon}{rest}"


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"deepclust-ext: {rank_name()}{_one_line(message)}", file=sys.stderr)


def _one_line(message: object) -> str:
    """Return a message of a library, such as YAML's or torch's, without its ends of lines."""
    return " ".join(line.strip() for line in str(message).splitlines())


def _show_warning(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
    print(f"deepclust-ext: warning: {_one_line(message)}", file=file or sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
