"""What a user gave of options, and what makes no sense together."""

import argparse
from typing import Any


def require(fine: object, message: str) -> None:
    """Require options that make sense together; argparse.ArgumentError, the status 2, with the message otherwise."""
    if not fine:
        raise argparse.ArgumentError(None, message)


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options of these names that the user gave."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
