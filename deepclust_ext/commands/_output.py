"""What commands print and write."""

import argparse
from pathlib import Path


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add whether to print JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs to read")


def refuse_to_replace(path: Path, overwrite: bool, option: str = "out") -> Path:
    """Return a path to write to.

    Raises:
        FileExistsError: If there is a file, and it may not be replaced.
        IsADirectoryError: If it is a folder.
        NotADirectoryError: If something that is no folder is in the way of its folder.
        PermissionError: If nothing can be written there.
    """
    from deepclust_ext.training.files import check_writable

    if path.is_dir():
        raise IsADirectoryError(f"{option}: expected a file to write, got the folder {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{option}: expected no file at {path}, which is there; --overwrite replaces it")
    check_writable(path.parent, option)
    return path
