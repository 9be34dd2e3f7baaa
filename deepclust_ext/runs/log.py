"""The messages of a run: on standard error, and with more detail in its train.log."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepclust_ext.training.files import named

#: Of the whole package: a program that has its own handlers gets these lines too.
LOGGER = logging.getLogger("deepclust_ext")


def say(text: str) -> None:
    """Write a line for the user, on standard error and in the log."""
    print(text, file=sys.stderr, flush=True)
    LOGGER.info(text)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what the package logs, warnings included, to a file for a while.

    Raises:
        OSError: If it cannot be written; the message names it.
    """
    with named(path):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=False)
    # What cannot be logged, as on a full disk, is said on standard error; the checkpoint decides whether the run ends.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before, show = LOGGER.level, warnings.showwarning

    def show_and_log(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
        LOGGER.warning("%s: %s", category.__name__, message)
        show(message, category, filename, lineno, file, line)

    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    warnings.showwarning = show_and_log
    try:
        yield
    finally:
        warnings.showwarning = show
        LOGGER.setLevel(before)
        LOGGER.removeHandler(handler)
        handler.close()
