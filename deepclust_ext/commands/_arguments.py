"""Options that several commands share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepclust_ext.commands._ranks import local_device


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a function that reads an integer of at least ``least`` and, if given, at most ``most``."""

    def integer(text: str) -> int:
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, {expected}, got {text!r}") from None
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return number

    return integer


def seed(text: str) -> int:
    """Read a seed that a run can have."""
    from deepclust_ext.ops._checks import LARGEST_SEED

    return at_least(0, LARGEST_SEED)(text)


def add_seed(parser: argparse.ArgumentParser, what: str = "everything random", default: int | None = 0) -> None:
    """Add the seed of something; with the default None the help still says 0."""
    help_text = f"of {what} (default: {default or 0})"
    parser.add_argument("--seed", type=seed, default=default, help=help_text)


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of a run."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run, as `train` makes it")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the folder of a run, and optional other images."""
    add_run_folder(parser)
    parser.add_argument("data", metavar="DATA", nargs="*", default=[], help="other images: folders, files, lists")


def add_out(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add the folder of a run to train, and whether to resume or overwrite the run in it."""
    parser.add_argument("--out", type=Path, help=help_text)
    old = parser.add_mutually_exclusive_group()
    old.add_argument("--resume", action="store_true", help="continue the run that --out holds")
    old.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add how many steps there are, how they are made, and whether to profile them; None leaves it to the recipe."""
    parser.add_argument("--epochs", type=at_least(1), help="passes over the images (default: the recipe's)")
    parser.add_argument("--batch-size", type=at_least(2), help="images of a step (default: the recipe's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of steps (default: fp32)")
    parser.add_argument("--compile", action="store_true", default=None, help="compile the step with torch.compile")
    parser.add_argument(
        "--sync-batch-norm",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="on several ranks, normalize by the images of all, as one process does (default: the recipe's)",
    )
    add_profile(parser)


def add_labels(parser: argparse.ArgumentParser, default: str = "none") -> None:
    """Add whose labels the true ones are."""
    what = "true labels, for scores alone: folders' names, those in the data, or a CSV of path,label"
    parser.add_argument("--labels", metavar="folders|own|FILE", help=f"{what} (default: {default})")


def add_scores(parser: argparse.ArgumentParser) -> None:
    """Add true labels, and how often clusters are scored by them."""
    add_labels(parser)
    parser.add_argument(
        "--score-every", type=at_least(1), metavar="N", help="epochs between two scores by --labels (default: none)"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add what a recipe says: the number of clusters, the method, and all else."""
    parser.add_argument("--clusters", type=at_least(1), metavar="K", help="how many (default: the recipe's)")
    parser.add_argument("--method", help="hadis, sacc, pici, clc; on features neighborhead, turtle (default: chosen)")
    parser.add_argument("--recipe", help="a bundled recipe, see `recipes`, or a file (default: chosen)")
    add_set(parser, "the recipe")


def add_set(parser: argparse.ArgumentParser, of: str) -> None:
    """Add settings of a recipe."""
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"a setting of {of}, such as optimizer.lr=0.1",
    )


def setting(text: str) -> tuple[str, Any]:
    """Read a setting of a recipe, KEY=VALUE, whose value is YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, such as optimizer.lr=0.1, got {text!r}")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"expected YAML after {key}=, got {value!r}") from error
    try:  # what people write as a number and YAML reads as text, such as 1e-3
        number = float(value) if isinstance(read, str) else math.nan
    except ValueError:
        return key, read
    return key, number if math.isfinite(number) else read


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add how many threads compute."""
    parser.add_argument("--threads", type=at_least(1), help="CPU threads (default: torch's choice)")


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add whether to profile the steps."""
    parser.add_argument("--profile", action="store_true", help="print where the time goes; meant for few epochs")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add where to compute, and how many processes load images."""
    parser.add_argument("--device", help='such as "cuda" (default: cuda where there is a GPU, else cpu)')
    add_threads(parser)
    parser.add_argument("--workers", type=at_least(0), default=0, help="processes that load images (default: none)")


def device(args: argparse.Namespace) -> str:
    """Return where to compute, and set the number of threads; each rank of torchrun has its own GPU.

    Raises:
        ValueError: If torch has no such device, or ranks would share one GPU.
    """
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name = local_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected one that torch can use here, got {name!r}: {reason}") from error
    return str(name)
